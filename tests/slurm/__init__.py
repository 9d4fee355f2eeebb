"""SLURM for tests: a real cluster of namespaces on one machine, and `slurm/cosa.sh` on it."""
