"""Filtering in high-dimensional feature spaces on the permutohedral lattice, in pure torch.

`simplex` finds where a point lies in the lattice, `permutohedral` builds the lattice and filters on
it, `bilateral` makes the colour-and-position features of images, `dense_crf` refines segmentations with
both; `pixel_adaptive` refines them without a lattice. Nothing here needs a compiled extension.
"""
