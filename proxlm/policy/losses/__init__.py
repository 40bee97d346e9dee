"""Losses per token: clipped, token-level, sequence-level, preference and supervised ones."""
