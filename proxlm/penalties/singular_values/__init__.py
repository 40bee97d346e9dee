"""Penalties and sets that act on the singular values of matrices."""
