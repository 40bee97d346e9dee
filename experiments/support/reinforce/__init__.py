"""Support of experiments/reinforce.py."""
