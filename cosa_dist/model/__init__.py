"""The network that both sides of the co-training share, and the assignment network that follows it."""
