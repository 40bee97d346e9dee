"""Arrays for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import lm


def normal(seed, shape=()):
    """Draws standard normal float32 numbers that depend on the seed and the shape alone."""
    return jnp.array(numpy_normal(seed, shape))


def numpy_normal(seed, shape=()):
    """The same in NumPy, so that arithmetic on them compiles nothing."""
    return np.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), np.float32)


def rough(config, scale, seed=0):
    """Parameters of a transformer in which no scale is 1 and no bias 0, so that each matters."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: lm.init(jax.random.key(0), config))

    def draw(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.array((start + rng.normal(scale=scale, size=leaf.shape)).astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, shapes)
