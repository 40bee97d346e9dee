"""Convex penalties that act on every coordinate by itself; shared arguments as in `proxlm.penalties`."""

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, _trees, base

__all__ = ["elastic_net", "l1", "non_negative_l1", "squared_l2", "zero"]


def zero() -> base.Penalty:
    """No penalty: g(x) = 0, whose prox is the identity.

    Leaves of any dtype pass, so that `masked` leaves out integers, booleans and complex numbers too.

    Convex: yes. Separable: yes. Metric: any diagonal. Cost: none.

    Source: Parikh & Boyd 2014, section 2.1.

    >>> zero().prox(jnp.array([1.0, -2.0]), 0.1).tolist()
    [1.0, -2.0]
    """

    def value(x):
        # NaN is passed on, as by any penalty.
        leaves = map(jnp.asarray, jax.tree.leaves(x))
        real = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        missing = [jnp.sum(jnp.where(jnp.isnan(leaf), leaf, 0.0)) for leaf in real]
        return sum(missing, start=jnp.zeros(()))

    def prox(x, step_size):
        _trees.require_beside(x, "zero", step_size=step_size)
        return x

    return base.Penalty(value, prox, lambda x, v: v).described("zero")


def l1(strength: base.Strength = 1.0) -> base.Penalty:
    """Sum of absolute values: g(x) = Σ_i λ_i |x_i|, the lasso.

    prox_tg(x)_i = sign(x_i) max(|x_i| - t λ_i, 0), computed as x - clip(x, -tλ, tλ), so that a
    coordinate within the threshold becomes exactly +0.

    Raises:
      ValueError: if an argument is invalid.

    Convex: yes. Separable: yes. Metric: any diagonal. Cost: one pass.

    Source: Tibshirani 1996; the threshold is Donoho 1995.

    >>> l1(0.5).prox(jnp.array([-3.0, 0.25, 1.0]), 1.0).tolist()
    [-2.5, 0.0, 0.5]
    >>> float(l1(0.5).value({"kernel": jnp.array([[-3.0, 1.0]]), "bias": jnp.array([2.0])}))
    3.0
    """

    def value(x, strength):
        return jnp.sum(base.times(strength, jnp.abs(x)))

    def prox(x, step_size, strength):
        return _soft(x, base.pull(step_size, strength))

    def residual(x, v, strength):
        return jnp.where(x == 0, _soft(v, strength), v - base.times(strength, jnp.sign(x)))

    return _coordinatewise("l1", value, prox, residual, strength=strength)


def non_negative_l1(strength: base.Strength = 1.0) -> base.Penalty:
    """The lasso on x ≥ 0: g(x) = Σ_i λ_i x_i, and +∞ where a coordinate is negative.

    prox_tg(x)_i = max(x_i - t λ_i, 0).

    Raises:
      ValueError: if an argument is invalid.

    Convex: yes. Separable: yes. Metric: any diagonal. Cost: one pass.

    Source: Parikh & Boyd 2014, section 6.5.2 with the orthant of section 6.2.

    >>> non_negative_l1(0.5).prox(jnp.array([-3.0, 0.25, 1.0]), 1.0).tolist()
    [0.0, 0.0, 0.5]
    >>> float(non_negative_l1(0.5).value(jnp.array([2.0, -1e-3])))
    inf
    """

    def value(x, strength):
        return jnp.sum(base.times(strength, jnp.where(x < 0, 0.0, x))) + _indicator.indicator(
            jnp.max(-x, initial=0.0), 0.0
        )

    def prox(x, step_size, strength):
        threshold = base.pull(step_size, strength)
        return jnp.where(x <= threshold, 0.0, x - threshold)

    def residual(x, v, strength):
        gap = v - strength
        return jnp.where(x == 0, jnp.maximum(gap, 0.0), gap)

    return _coordinatewise("non_negative_l1", value, prox, residual, strength=strength)


def squared_l2(strength: base.Strength = 1.0) -> base.Penalty:
    """Half the squared Euclidean norm: g(x) = ½ Σ_i λ_i x_i². Mind the half.

    prox_tg(x)_i = x_i / (1 + t λ_i): weight decay as an implicit step, which shrinks towards zero
    and never across it, however large t λ is.

    Raises:
      ValueError: if an argument is invalid.

    Convex: yes. Separable: yes. Metric: any diagonal. Cost: one pass.

    Source: Hoerl & Kennard 1970 (ridge); Parikh & Boyd 2014, section 6.1.1.

    >>> squared_l2(3.0).prox(jnp.array([-4.0, 2.0]), 1.0).tolist()
    [-1.0, 0.5]
    >>> float(squared_l2(3.0).value(jnp.array([-4.0, 2.0])))
    30.0
    """

    def value(x, strength):
        return 0.5 * jnp.sum(base.times(strength, jnp.square(x)))

    def prox(x, step_size, strength):
        return x / (1.0 + base.pull(step_size, strength))

    def residual(x, v, strength):
        return v - base.times(strength, x)

    return _coordinatewise("squared_l2", value, prox, residual, strength=strength)


def elastic_net(l1_strength: base.Strength = 1.0, l2_strength: base.Strength = 1.0) -> base.Penalty:
    """Lasso plus ridge: g(x) = Σ_i λ_i |x_i| + ½ Σ_i μ_i x_i².

    prox_tg(x)_i = sign(x_i) max(|x_i| - t λ_i, 0) / (1 + t μ_i).

    Args:
      l1_strength: λ ≥ 0.
      l2_strength: μ ≥ 0.

    Raises:
      ValueError: if an argument is invalid.

    Convex: yes. Separable: yes. Metric: any diagonal. Cost: one pass.

    Source: Zou & Hastie 2005.

    >>> elastic_net(0.5, 1.0).prox(jnp.array([-3.0, 0.25, 1.0]), 1.0).tolist()
    [-1.25, 0.0, 0.25]
    >>> float(elastic_net(0.5, 1.0).value(jnp.array([-3.0, 1.0])))
    7.0
    """

    def value(x, l1_strength, l2_strength):
        return jnp.sum(base.times(l1_strength, jnp.abs(x)) + 0.5 * base.times(l2_strength, jnp.square(x)))

    def prox(x, step_size, l1_strength, l2_strength):
        return _soft(x, base.pull(step_size, l1_strength)) / (1.0 + base.pull(step_size, l2_strength))

    def residual(x, v, l1_strength, l2_strength):
        smooth = v - base.times(l2_strength, x)
        return jnp.where(x == 0, _soft(smooth, l1_strength), smooth - base.times(l1_strength, jnp.sign(x)))

    strengths = {"l1_strength": l1_strength, "l2_strength": l2_strength}
    return _coordinatewise("elastic_net", value, prox, residual, **strengths)


def _soft(x, threshold):
    # Faster than x - clip(x, -t, t): a minimum that lets NaN through is five instructions.
    outside = jnp.where(x > 0, x - threshold, x + threshold)
    return jnp.where(jnp.abs(x) <= threshold, 0.0, outside)


def _coordinatewise(name, value, prox, residual, **strengths):
    for argument, strength in strengths.items():
        _validation.tree_at_least(0, name, **{argument: strength})
    parameters = {key: (strength, _slots.coordinates) for key, strength in strengths.items()}
    return base.leafwise(name, value, prox, parameters, _slots.coordinates, residual)
