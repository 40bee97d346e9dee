"""Support of experiments/text_classification.py."""
