"""Arrays for tests."""

import jax
import jax.numpy as jnp


def normal(seed, shape=()):
    """Draws standard normal float32 numbers that depend on the seed and the shape alone."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)
