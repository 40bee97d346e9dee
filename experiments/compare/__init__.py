"""Comparison of runs: `python -m experiments.compare RUN RUN`."""
