"""Support of experiments/low_rank_anchor.py."""
