"""Penalties that act on every coordinate by itself."""

import chex
import jax.numpy as jnp

from proxlm.penalties import base, numbers, trees


def l1(strength: chex.ArrayTree = 1.0) -> base.Penalty:
    """Sum of absolute values: g(x) = Σ_i λ_i |x_i|, the lasso.

    prox_tg(x)_i = sign(x_i) max(|x_i| - t λ_i, 0), computed as x - clip(x, -tλ, tλ), so that a
    coordinate within the threshold becomes exactly +0.

    Args:
      strength: λ ≥ 0, a number; or, one for each coordinate, an array that broadcasts to x; or a
        tree of these in the structure of x. May be traced.

    Returns:
      The penalty. Its step size may be an array shaped like x, or a tree of such.

    Raises:
      ValueError: if the strength is negative, NaN or not numeric.

    Source: Tibshirani 1996; the threshold is Donoho 1995.

    >>> l1(0.5).prox(jnp.array([-3.0, 0.25, 1.0]), 1.0).tolist()
    [-2.5, 0.0, 0.5]
    >>> float(l1(0.5).value({"kernel": jnp.array([[-3.0, 1.0]]), "bias": jnp.array([2.0])}))
    3.0
    """

    def value(x, strength):
        return jnp.sum(strength * jnp.abs(x))

    def prox(x, step_size, strength):
        threshold = step_size * strength
        return x - jnp.clip(x, -threshold, threshold)

    def residual(x, v, strength):
        at_zero = v - jnp.clip(v, -strength, strength)
        return jnp.where(x == 0, at_zero, v - strength * jnp.sign(x))

    numbers.require_nonnegative("l1", "strength", strength)
    parameters = {"strength": (strength, trees.coordinates)}
    return base.leafwise("l1", value, prox, parameters, trees.coordinates, residual)


def squared_l2(strength: chex.ArrayTree = 1.0) -> base.Penalty:
    """Half the squared Euclidean norm: g(x) = ½ Σ_i λ_i x_i². Mind the half.

    prox_tg(x)_i = x_i / (1 + t λ_i): weight decay as an implicit step, which shrinks towards zero
    and never across it, however large t λ is.

    Args:
      strength: λ ≥ 0, a number; or, one for each coordinate, an array that broadcasts to x; or a
        tree of these in the structure of x. May be traced.

    Returns:
      The penalty. Its step size may be an array shaped like x, or a tree of such.

    Raises:
      ValueError: if the strength is negative, NaN or not numeric.

    Source: Hoerl & Kennard 1970 (ridge); Parikh & Boyd 2014, section 6.1.1.

    >>> squared_l2(3.0).prox(jnp.array([-4.0, 2.0]), 1.0).tolist()
    [-1.0, 0.5]
    >>> float(squared_l2(3.0).value(jnp.array([-4.0, 2.0])))
    30.0
    """

    def value(x, strength):
        return 0.5 * jnp.sum(strength * jnp.square(x))

    def prox(x, step_size, strength):
        return x / (1.0 + step_size * strength)

    def residual(x, v, strength):
        return v - strength * x

    numbers.require_nonnegative("squared_l2", "strength", strength)
    parameters = {"strength": (strength, trees.coordinates)}
    return base.leafwise("squared_l2", value, prox, parameters, trees.coordinates, residual)
