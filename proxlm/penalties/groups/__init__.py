"""Penalties on groups of coordinates, and the groupings they act on."""
