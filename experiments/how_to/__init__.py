"""Scripts of a page each: somebody else's model, taught by `ppo.make_step`."""
