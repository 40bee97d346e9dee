"""Penalties made of other penalties."""
