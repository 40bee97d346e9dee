"""Support of experiments/overoptimisation.py."""
