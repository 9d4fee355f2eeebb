"""Distributed experiments with CoSA: segmentation networks trained from image tags alone."""
