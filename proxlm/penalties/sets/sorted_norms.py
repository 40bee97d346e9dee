"""Norms that weigh coordinates by rank: the largest magnitude, and sorted magnitudes.

Shared arguments as in `proxlm.penalties`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _slots, base
from proxlm.penalties.sets import _isotonic, _rows, _threshold

__all__ = ["linf", "slope"]


def linf(strength: base.Strength = 1.0, axis: int | tuple[int, ...] | None = None) -> base.Penalty:
    """Sum of the largest magnitudes of groups: g(x) = Σ_G λ_G max_{i ∈ G} |x_i|.

    prox_tg(x)_i = min(max(x_i, -τ), τ), where the magnitudes above τ ≥ 0 exceed it by tλ in sum;
    a group with Σ_i |x_i| ≤ tλ becomes 0. It draws the largest entries of a group to one value.

    Convex: yes. Separable: by groups. Metric: no. Cost: about ten passes over x.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Parikh & Boyd 2014, section 6.5.2: x less its projection on the l1 ball of radius tλ.

    >>> linf(2.0).prox(jnp.array([-3.0, 2.0, 0.5]), 1.0).tolist()
    [-1.5, 1.5, 0.5]
    >>> float(linf(2.0, axis=0).value(jnp.array([[-3.0, 1.0], [0.0, 1.5]])))
    9.0
    """
    _validation.tree_at_least(0, "linf", strength=strength)
    axes = _slots.axes_of("linf", axis)

    def value(x, strength):
        over_group = {"axis": _slots.inside("linf", axes, x), "keepdims": True}
        return jnp.sum(base.times(strength, jnp.max(jnp.abs(x), initial=0.0, **over_group)))

    def prox(x, step_size, strength):
        kind = _threshold.Kind(_slots.inside("linf", axes, x), absolute=True, floored=True)
        tau = _threshold.threshold(x, base.pull(step_size, strength), 1.0, kind)
        bound = tau.centre + tau.offset
        at_bound = jnp.where(x < 0, 0.0 - bound, bound)
        return jnp.where(_threshold.margin(x, tau, 1.0, kind) < 0, x, at_bound)

    parameters = {"strength": (strength, _slots.per_group("linf", axes))}
    made = base.leafwise("linf", value, prox, parameters)
    return made.described("linf", strength=strength, axis=axis)


def slope(strengths: base.Strength, axis: int | tuple[int, ...] | None = None) -> base.Penalty:
    """The sorted l1 norm: g(x) = Σ_i λ_i |x|_(i) by groups, |x|_(1) ≥ |x|_(2) ≥ ... sorted.

    prox_tg: the sorted magnitudes less tλ are made non-increasing by isotonic regression, cut at
    0, and put back with their signs. Equal λ give l1; λ = (1, 0, ..., 0) gives linf.

    Convex: yes. Separable: by groups. Metric: no. Cost: a sort, and some tens of passes over x.

    Args:
      strengths: λ_1 ≥ λ_2 ≥ ... ≥ 0, an array of one axis with one entry for each coordinate of a
        group, or a number for all; or a tree of these in the structure of x. May be traced.

    Raises:
      ValueError: if the strengths rise or an argument is invalid; and, on use, if their number is not that of
        the coordinates of a group.

    Source: Bogdan, van den Berg, Sabatti, Su & Candès, SLOPE, 2015; Zeng & Figueiredo 2014 (OWL).

    >>> jax.jit(slope(jnp.array([2.0, 1.0, 0.0])).prox)(jnp.array([1.0, -5.0, 4.5]), 1.0).tolist()
    [1.0, -3.25, 3.25]
    >>> float(slope(jnp.array([2.0, 1.0])).value(jnp.array([-1.0, 5.0])))
    11.0
    """
    _validation.tree_at_least(0, "slope", strengths=strengths)
    for leaf in _validation.known("slope", "strengths", strengths):
        if np.any(np.diff(leaf, axis=-1) > 0 if leaf.ndim else False):
            expected, remedy = "in descending order", "Sort them, largest first."
            raise _validation.invalid("strengths", leaf, expected, remedy, "slope")
    axes = _slots.axes_of("slope", axis)

    def strengths_slot(path, leaf):
        return (math.prod(leaf.shape[i] for i in _slots.inside("slope", axes, leaf, path)),)

    def value(x, strengths):
        magnitudes = jnp.abs(_rows.of(x, _slots.inside("slope", axes, x)))
        ordered = jnp.sort(magnitudes, axis=1, descending=True)
        return jnp.sum(base.times(jnp.broadcast_to(strengths, ordered.shape[1:])[None], ordered))

    def prox(x, step_size, strengths):
        inside = _slots.inside("slope", axes, x)
        thresholds = base.pull(step_size, strengths)
        moved = jax.vmap(_prox_sorted, in_axes=(0, None))(_rows.of(x, inside), thresholds)
        # They do not rise: if the first is 0, all are.
        unmoved = jnp.all(jnp.ravel(thresholds)[:1] == 0)
        return base.keep_bits(unmoved, x, _rows.back(moved, x, inside))

    parameters = {"strengths": (strengths, strengths_slot)}
    made = base.leafwise("slope", value, prox, parameters)
    return made.described("slope", strengths=strengths, axis=axis)


def _prox_sorted(x, thresholds):
    """One group: sorts, lowers, makes non-increasing, cuts at 0, and puts back."""
    magnitudes = jnp.abs(x)
    order = jnp.argsort(jax.lax.stop_gradient(magnitudes), descending=True)
    ordered, infinite = magnitudes[order], jnp.isinf(magnitudes[order])
    # A first threshold beyond the sum of the magnitudes sets all to 0, and may be too large to add up.
    dead = jnp.max(thresholds, initial=0.0) > jnp.sum(jnp.where(infinite, 0.0, ordered))
    lowered = jnp.where(dead, 0.0, ordered - jnp.where(dead, 0.0, thresholds))
    # Infinities come first and stay; any numbers that are no less than the others stand for them.
    highest = jnp.max(jnp.where(infinite, -jnp.inf, lowered), initial=0.0)
    fitted = _isotonic.nonincreasing(jnp.where(infinite, highest, lowered))
    cut = jnp.where(infinite, jnp.inf, jnp.where(fitted <= 0, 0.0, fitted))
    moved = jnp.zeros_like(x).at[order].set(cut, unique_indices=True)
    return jnp.where(x < 0, 0.0 - moved, moved)
