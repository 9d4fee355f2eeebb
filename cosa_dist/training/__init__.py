"""The co-training itself: optimiser, state, checkpoints, one step, the loop."""
