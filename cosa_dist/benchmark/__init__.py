"""Measurements of what costs time, on the machine they run on."""
