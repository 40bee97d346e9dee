"""Penalties that act on groups of coordinates and set whole groups to zero."""

import math

import chex
import jax.numpy as jnp

from proxlm.penalties import base, numbers, trees

WEIGHTS = {"sqrt_size": math.sqrt, "none": lambda size: 1.0}


def group_lasso(
    strength: chex.ArrayTree = 1.0,
    axis: int | tuple[int, ...] | None = 0,
    weight: str = "sqrt_size",
) -> base.Penalty:
    """Sum of the norms of groups: g(x) = λ Σ_G w_G |x_G|₂.

    prox_tg(x)_G = x_G max(1 - t λ w_G / |x_G|₂, 0): a group within its threshold becomes zero as a
    whole, any other one is shortened. A leaf is cut into groups along the axes that are not
    reduced: for a kernel [inputs, units], axis=0 makes a group of each unit's incoming weights
    and axis=1 one of each input's outgoing weights. A leaf of rank 0 is a group of one.

    Args:
      strength: λ ≥ 0, a number; or a tree in the structure of x of numbers and of arrays with one
        entry a group (the shape of the leaf, with 1 for the axes inside a group). May be traced.
      axis: the axes inside a group, counted from the end if negative; None for all of them.
      weight: "sqrt_size" sets w_G = √(number of coordinates of G), which makes groups of any size
        equally hard to keep; "none" sets w_G = 1.

    Returns:
      The penalty. Its step size is one number.

    Raises:
      ValueError: if the strength is negative, NaN or not numeric, the axis not an integer, the
        weight unknown; and, on use, if a leaf does not have these axes.

    Source: Yuan & Lin 2006, for the norm as for the weights.

    >>> kernel = jnp.array([[3.0, 0.1], [4.0, 0.1]])
    >>> group_lasso(1.0, axis=0, weight="none").prox(kernel, 2.5)
    Array([[1.5, 0. ],
           [2. , 0. ]], dtype=float32)
    >>> float(group_lasso(2.0, axis=-1, weight="none").value(kernel[:, :1]))
    14.0
    """
    if weight not in WEIGHTS:
        raise ValueError(f"group_lasso: weight must be one of {list(WEIGHTS)}, got {weight!r}.")
    numbers.require_nonnegative("group_lasso", "strength", strength)
    axes = trees.axes_of("group_lasso", axis)

    def norms(x):
        inside = trees.inside("group_lasso", axes, x)
        size = math.prod(x.shape[i] for i in inside)
        return jnp.sum(jnp.square(x), axis=inside, keepdims=True), WEIGHTS[weight](size)

    def value(x, strength):
        squared, w = norms(x)
        return jnp.sum(strength * w * _root(squared))

    def prox(x, step_size, strength):
        squared, w = norms(x)
        return _shorten(x, _root(squared), step_size * strength * w)

    parameters = {"strength": (strength, trees.per_group("group_lasso", axes))}
    return base.leafwise("group_lasso", value, prox, parameters)


def _root(squared):
    # √ has no derivative at 0, and a masked 0 times its infinity would still be NaN. What lies
    # below the smallest normal number counts as 0, since 1/norm² would overflow there.
    zero = squared < jnp.finfo(squared.dtype).tiny
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


def _shorten(x, norm, threshold):
    """Moves each group towards zero by the threshold, and to zero itself if that is nearer."""
    # Asked this way round, NaN is not dead; and a threshold of 0 spares a group so small that its
    # norm is 0.
    dead = (norm <= threshold) & (threshold > 0)
    safe_norm = jnp.where(dead | (norm == 0), 1.0, norm)
    scale = 1.0 - jnp.where(dead, 0.0, threshold) / safe_norm
    return jnp.where(dead, 0.0, x * scale)
