"""How a run gets onto workers: Ray Train around Accelerate around the loop."""
