"""Kills of parts of small runs at random."""
