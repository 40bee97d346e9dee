"""Support of experiments/sparse_rl.py."""
