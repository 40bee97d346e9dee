"""Support of experiments/exact.py."""
