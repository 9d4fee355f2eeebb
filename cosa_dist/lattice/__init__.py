"""Filtering on the permutohedral lattice in pure torch, and refinements of segmentations by the image."""
