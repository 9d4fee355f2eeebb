"""Pseudo-masks of a whole data set over all workers."""
