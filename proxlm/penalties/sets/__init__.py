"""Indicators of sets, whose proximal operators are projections, and their dual norms."""
