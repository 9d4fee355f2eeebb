"""Plain formulations that the components are compared with."""
