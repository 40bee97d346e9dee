"""Penalties restricted to the non-negative weights."""

import jax
import jax.numpy as jnp

from proxlm.penalties import _indicator, _trees, base

__all__ = ["restrict_to_non_negative"]


def restrict_to_non_negative(penalty: base.Penalty) -> base.Penalty:
    """A penalty on x ≥ 0: h(x) = g(x), and +∞ where a coordinate is negative.

    prox_th(x) = prox_tg(max(x, 0)), for every g that depends on the magnitudes |x_i| alone and does not
    fall with any of them, as norms, their powers and all penalties on groups do. A non-negative group
    lasso is restrict_to_non_negative(group_lasso(0.1)).

    Raises:
      ValueError: if `penalty` is not a Penalty; whether it is such a g is not checked.

    Convex: if g is. Separable: as g. Metric: as g. Cost: that of g and one pass.

    Source: Yu, On decomposing the proximal map, 2013.

    >>> from proxlm.penalties.sets import sorted_norms
    >>> restrict_to_non_negative(sorted_norms.linf(1.0)).prox(jnp.array([-5.0, 3.0, 1.5]), 1.0).tolist()
    [0.0, 2.0, 1.5]
    """
    base.require_penalty("restrict_to_non_negative", penalty=penalty)
    widen = lambda x: _trees.widen("restrict_to_non_negative", x)
    # Written so that NaN stays.
    positive = lambda leaf: jnp.where(leaf < 0, 0.0, leaf)

    def value(x):
        lowest = [jnp.max(-leaf, initial=0.0) for leaf in jax.tree.leaves(widen(x))]
        return sum((_indicator.indicator(below, 0.0) for below in lowest), start=penalty.value(x))

    def prox(x, step_size):
        return _trees.narrow(penalty.prox(jax.tree.map(positive, widen(x)), step_size), x)

    def residual(x, v):
        # The normal cone holds v ≤ 0 at a zero.
        bounded = jax.tree.map(lambda leaf, b: jnp.where(leaf == 0, positive(b), b), x, v)
        return base.residual_of(penalty)(x, bounded)

    restricted = base.Penalty(value, prox, penalty.residual and residual)
    return restricted.described("restrict_to_non_negative", penalty)
