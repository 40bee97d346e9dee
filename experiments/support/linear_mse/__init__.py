"""Support of experiments/linear_mse.py."""
