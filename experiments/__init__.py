"""Experiments: one runnable claim a file, listed by `python -m experiments --list`."""
