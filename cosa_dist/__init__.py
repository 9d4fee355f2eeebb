"""Distributed experiments with CoSA: segmentation networks trained from image tags alone."""

import os

# Read when torch is loaded. Threads that wait for each other should sleep: spinning starves them on a machine
# with other work, such as a run's own loader processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
