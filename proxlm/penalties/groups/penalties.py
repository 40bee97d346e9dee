"""Penalties that act on groups of coordinates and set whole groups to zero.

Shared arguments as in `proxlm.penalties`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _slots, _trees, base
from proxlm.penalties.coordinatewise import convex
from proxlm.penalties.groups import _norm_prox, _norm_prox_in_metric, _partition, grouping

__all__ = ["group", "group_lasso", "sparse_group_lasso"]

Axis = int | Sequence[int] | _partition.Grouping | None


def group_lasso(strength: base.Strength = 1.0, axis: Axis = 0, weight: str = "sqrt_size") -> base.Penalty:
    """Sum of the norms of groups: g(x) = λ Σ_G w_G |x_G|₂.

    prox_tg(x)_G = x_G max(1 - t λ w_G / |x_G|₂, 0): a group within its threshold becomes zero as a
    whole, any other one is shortened. For a kernel [inputs, units], axis=0 makes a group of each
    unit's incoming weights and axis=1 one of each input's outgoing weights; `grouping` has heads,
    blocks, experts, and neurons across leaves. A leaf of rank 0 is a group of one.

    Convex: yes. Separable: by group. Metric: yes, by a secular equation, at about a dozen passes
    over x. Cost: two passes over x, no copy of it. Norms from 1e-19 to 1e19 are right in float32;
    shorter groups count as that short, and longer ones are not moved.

    Args:
      axis: the axes inside a group; or a grouping, as in group_lasso(0.1, grouping.heads(8)). Complex
        numbers are groups of two themselves: axis=() thresholds their magnitudes.
      weight: "sqrt_size" sets w_G = √(number of coordinates of G), which makes groups of any size
        equally hard to keep; "none" sets w_G = 1.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Yuan & Lin 2006, for the norm as for the weights.

    >>> kernel = jnp.array([[3.0, 0.1], [4.0, 0.1]])
    >>> group_lasso(1.0, axis=0, weight="none").prox(kernel, 2.5)
    Array([[1.5, 0. ],
           [2. , 0. ]], dtype=float32)
    >>> float(group_lasso(2.0, axis=-1, weight="none").value(kernel[:, :1]))
    14.0
    """
    _validation.tree_at_least(0, "group_lasso", strength=strength)
    over = _over("group_lasso", axis)
    slope = _norm_prox_in_metric.Slope(strength)
    made = _norm_prox.lift_to_groups("group_lasso", convex.l1(strength), over, weight, slope)
    return made.described("group_lasso", strength=strength, axis=axis, weight=weight)


def sparse_group_lasso(
    strength: base.Strength = 1.0,
    mix: base.Strength = 0.5,
    axis: Axis = 0,
    weight: str = "sqrt_size",
    coordinate_weight: base.Strength = 1.0,
) -> base.Penalty:
    """Sparse groups, sparse inside: g(x) = λ (α Σ_i v_i |x_i| + (1 - α) Σ_G w_G |x_G|₂).

    prox_tg is the soft threshold t λ α v_i followed by the prox of the group lasso, in this order; the
    other order is no proximal operator. Complex numbers are thresholded by their size |x_i|.

    Convex: yes. Separable: by group. Metric: yes, in the same order. Cost: as `group_lasso`.

    Args:
      mix: α in [0, 1], in the forms of the strength; 1 is the lasso, 0 the group lasso.
      axis: as in `group_lasso`. Coordinates in no group are not penalised at all.
      coordinate_weight: v ≥ 0, one number or one for each coordinate. May be traced.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Simon, Friedman, Hastie & Tibshirani 2013.

    >>> penalty = sparse_group_lasso(5.0, 0.5, axis=None, weight="none")
    >>> penalty.prox(jnp.array([5.5, 6.5, 0.5]), 1.0).tolist()
    [1.5, 2.0, 0.0]
    >>> float(penalty.value(jnp.array([3.0, 4.0])))
    30.0
    """
    name = "sparse_group_lasso"
    _validation.tree_at_least(0, name, strength=strength, mix=mix, coordinate_weight=coordinate_weight)
    if any(np.any(known > 1) for known in _validation.known(name, "mix", mix)):
        raise _validation.invalid("mix", mix, "a number in [0, 1]", "", name)
    over = _over(name, axis)

    split = functools.partial(_sparse_parts, name, over, weight, strength, mix, coordinate_weight)

    def value(x):
        wide, sizes, groups, weights, single, whole = split(x)
        weighted = jax.tree.map(lambda size, v: base.times(v, jnp.abs(size)), sizes, weights)
        lengths = groups.reduce(_partition.SUM, weighted)
        parts = jax.tree.map(lambda s, length: jnp.sum(base.times(s, length)), single, lengths)
        return sum(jax.tree.leaves(parts), start=whole.value(wide))

    def prox(x, step_size):
        wide, sizes, groups, weights, single, whole = split(x)
        steps = _norm_prox.steps(name, step_size, sizes)
        sparse = groups.apply(_soft, (wide, steps, weights), (single,))
        return _trees.narrow(whole.prox(sparse, step_size), x)

    def residual(x, v):
        wide, _, groups, weights, single, whole = split(x)
        v = _trees.widen(name, v, with_complex=True)
        sparse = groups.apply(_subtract_slope, (v, wide, weights), (single,))
        return _trees.narrow(base.residual_of(whole)(wide, sparse), x)

    given = {"strength": strength, "mix": mix, "axis": axis, "weight": weight}
    return base.Penalty(value, prox, residual).described(name, **given, coordinate_weight=coordinate_weight)


def _sparse_parts(name, over, weight, strength, mix, coordinate_weight, x):
    """The widened x, its sizes, groups and weights, the strengths of the lasso, and the group lasso."""
    wide = _trees.widen(name, x, with_complex=True)
    groups = over.split(name, wide)
    given = {"strength": strength, "mix": mix}
    strengths, mixes = (_norm_prox.beside(name, key, own, groups, wide) for key, own in given.items())
    single = jax.tree.map(base.times, mixes, strengths)
    between = jax.tree.map(lambda m, s: base.times(1.0 - m, s), mixes, strengths)
    # A tree without leaves has no strengths.
    whole = group_lasso(between if jax.tree.leaves(between) else 0.0, over, weight)
    sizes = jax.tree.map(_norm_prox.magnitude, wide)
    weights = _trees.spread_tree(name, "coordinate_weight", coordinate_weight, sizes)
    return wide, sizes, groups, weights, single, whole


def group(
    penalty: base.Penalty,
    axis: Axis = 0,
    weight: str = "sqrt_size",
    slope: _norm_prox_in_metric.Slope | None = None,
) -> base.Penalty:
    """Any penalty on numbers, as one on groups: g(x) = Σ_G w_G² φ(|x_G|₂ / w_G).

    With w_G = √|G| each group pays |G| φ(root mean square of its coordinates): it counts as its
    coordinates would if all were equal, whatever its size, and t is as large for φ as for g. For
    φ = λ|·| this is the group lasso, weights and all; for the minimax concave penalty it is its
    group form with λ √|G| and the same γ. With w_G = 1, g(x) = Σ_G φ(|x_G|).

    prox_tg(x)_G = x_G prox_tφ(u) / u, u = |x_G| / w_G.

    Convex: if φ is and grows on s > 0. Separable: by group. Metric: with `slope`. Cost: two passes
    over x and φ on one number a group.

    Args:
      penalty: φ, separable and even, on a tree of groups.
      slope: (λ, κ) where φ'(s) = max(λ - κ s, 0) for s > 0, which allows a diagonal metric; None
        for any other φ.

    Raises:
      ValueError: if an argument is invalid; and as φ does.

    Source: Huang, Breheny & Ma 2012, section 2 (concave penalties of group norms).

    >>> ridge = group(convex.squared_l2(1.0), axis=0)
    >>> ridge.prox(jnp.array([[3.0, 0.0], [4.0, 2.0]]), 1.0).tolist()
    [[1.5, 0.0], [2.0, 1.0]]
    """
    base.require_penalty("group", penalty=penalty)
    made = _norm_prox.lift_to_groups("group", penalty, _over("group", axis), weight, slope)
    return made.described("group", penalty, axis=axis, weight=weight, slope=slope)


def _soft(x, step_size, weight, strength):
    return _shortened(x, base.pull(base.pull(step_size, weight), strength))


def _shortened(x, threshold):
    size = _norm_prox.magnitude(x)
    return _norm_prox.in_direction(x, size - jnp.clip(size, -threshold, threshold))


def _subtract_slope(v, x, weight, strength):
    bound = base.times(strength, weight)
    direction = _norm_prox.in_direction(x, jnp.sign(_norm_prox.magnitude(x)))
    return jnp.where(x == 0, _shortened(v, bound), v - bound * direction)


def _over(name, axis):
    """Gives the grouping that an axis argument means."""
    if isinstance(axis, _partition.Grouping):
        return axis
    return grouping.axes(_slots.axes_of(name, axis))
