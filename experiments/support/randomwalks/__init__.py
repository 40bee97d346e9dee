"""Support of experiments/randomwalks.py."""
