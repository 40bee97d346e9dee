"""Advantages: temporal differences, returns, and baselines of groups."""
