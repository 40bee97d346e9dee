"""Support of experiments/verifiable.py."""
