"""Support of experiments/inspect_lm.py."""
