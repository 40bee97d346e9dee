"""Penalties that act on each coordinate by itself."""
