"""Sweeps with Ray Tune: space, plan, trials, the record of both."""
