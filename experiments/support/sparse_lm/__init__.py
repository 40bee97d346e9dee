"""Support of experiments/sparse_lm.py."""
