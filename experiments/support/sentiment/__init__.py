"""Support of experiments/sentiment.py."""
