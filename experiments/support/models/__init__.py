"""Models and losses shared by several experiments."""
