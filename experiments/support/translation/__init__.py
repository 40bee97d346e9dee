"""Support of experiments/translation.py."""
