"""PPOConfig, the settings it is made of, and flat names for them."""
