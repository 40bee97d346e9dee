"""Support of experiments/prune_lm.py."""
