"""Corpora, tokenization and metrics of texts."""
