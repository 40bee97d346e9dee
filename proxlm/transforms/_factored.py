"""The diagonal of Adafactor, out of the factors that its state holds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from proxlm.penalties import _trees
from proxlm.transforms.preconditioners import Metric


def adafactor_metric(
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: chex.Numeric | None = 1.0,
    eps: chex.Numeric = 1e-30,
) -> Metric:
    """D = √(r cᵀ / mean(r)) · max(1, rms(g/D)/d) / max(rms(x), 10⁻³), of `optax.adafactor`.

    r and c are the factors of the second moment, and the root of v itself where a leaf is not
    factored. What `optax.adafactor` does next to each whole leaf, clipping at d and scaling by the
    weights, belongs to the divisor. Nothing may change the gradients before it.

    Args:
      multiply_by_parameter_scale: as given to `optax.adafactor`.
      clipping_threshold: as given to `optax.adafactor`; None for none.
      eps: as given to `optax.adafactor`.

    Source: Shazeer & Stern 2018.

    >>> adafactor_metric().types[0].__name__
    'FactoredState'
    """

    def leaf(v_row, v_col, v, x, g):
        divisor, seen = _factored(v_row, v_col, v, x, 10 * eps)
        size = jnp.ones([], divisor.dtype)
        if clipping_threshold is not None:
            size = jnp.maximum(1.0, _rms(g / divisor) / clipping_threshold)
        if multiply_by_parameter_scale:
            size = size / jnp.maximum(_rms(x), 1e-3)
        return jnp.where(seen, divisor * size, -1.0)

    def diagonal(before, after, params, gradients):
        del before
        beside = lambda tree: _trees.pair("adafactor_metric", "params", tree, after.v)
        moments = [jax.tree.leaves(moment) for moment in (after.v_row, after.v_col, after.v)]
        leaves = map(leaf, *moments, beside(params), beside(gradients))
        return jax.tree.unflatten(jax.tree.structure(after.v), list(leaves))

    return Metric("adafactor_metric", (optax.FactoredState,), diagonal)


def _factored(v_row, v_col, v, x, unseen):
    """The root of Adafactor's second moment, and where there is more in it than ε."""
    if v.shape == x.shape:
        return jnp.sqrt(v), v > unseen
    small, large = (int(axis) for axis in np.argsort(x.shape)[-2:])
    expand = functools.partial(jnp.expand_dims, axis=large)
    mean = jnp.mean(v_row, axis=small - 1 if small > large else small, keepdims=True)
    columns = jnp.expand_dims(v_col, axis=small)
    seen = jnp.logical_and(expand(v_row) > unseen, columns > unseen)
    return jnp.sqrt(expand(v_row / mean)) * jnp.sqrt(columns), seen


def _rms(x):
    return jnp.sqrt(jnp.mean(jnp.square(x)))
