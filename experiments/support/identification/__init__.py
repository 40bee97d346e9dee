"""Support of experiments/identification.py."""
