"""Simplices: non-negative numbers of a given sum, over whole leaves or along axes.

Shared arguments as in `proxlm.penalties`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, _trees, base
from proxlm.penalties.sets import _capped, _rows, _threshold

__all__ = ["capped_simplex", "simplex", "sparse_simplex"]


def simplex(
    radius: base.Strength = 1.0, axis: int | tuple[int, ...] | None = None, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of the simplex: g(x) = 0 if every group has x ≥ 0 and Σ_i x_i = s, else +inf.

    prox(x)_i = max(x_i - τ, 0), with the τ at which this sums to s; in a diagonal metric
    max(x_i - t_i τ, 0). τ is found by Newton's method, without a sort.

    Convex: yes. Separable: by groups. Metric: yes; coordinates of t_i = 0 stay. Cost: about ten
    passes over x.

    Args:
      radius: s > 0, one number or one for each group.
      tolerance: how far min x and Σ x may be off, relative to s.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Held, Wolfe & Crowder 1974; Michelot 1986; Duchi et al. 2008.

    >>> simplex().prox(jnp.array([0.5, 1.0, -3.0]), 1.0).tolist()
    [0.25, 0.75, 0.0]
    >>> float(simplex(2.0, axis=-1).value(jnp.array([[0.5, 1.5], [2.0, 0.0]])))
    0.0
    """
    _validation.tree_positive("simplex", radius=radius)
    _validation.tree_finite("simplex", radius=radius)
    axes = _slots.axes_of("simplex", axis)

    def project(x, step_size, radius):
        return _threshold.project(x, radius, step_size, _threshold.Kind(_slots.inside("simplex", axes, x)))

    def violation(x, radius):
        return _off(x, radius, _slots.inside("simplex", axes, x))

    parameters = {"radius": (radius, _slots.per_group("simplex", axes))}
    slot = _slots.coordinates
    made = _indicator.constraint("simplex", violation, project, parameters, tolerance, slot)
    return made.described("simplex", radius=radius, axis=axis, tolerance=tolerance)


def capped_simplex(
    cap: base.Strength,
    radius: base.Strength = 1.0,
    axis: int | tuple[int, ...] | None = None,
    tolerance: float | None = None,
) -> base.Penalty:
    """Indicator of the capped simplex: 0 if every group has 0 ≤ x ≤ c and Σ_i x_i = s, else +inf.

    prox(x)_i = min(max(x_i - τ, 0), c_i), with the τ at which this sums to s: Newton's method on
    the piecewise linear sum, kept inside a shrinking bracket. With c = 1 and an integer s these are
    the averages of choices of s coordinates: a soft top-k.

    Convex: yes. Separable: by groups. Metric: no. Cost: some tens of passes over x.

    Args:
      cap: c > 0, one number or one for each coordinate.
      radius: s > 0, as for `simplex`, and at most Σ_i c_i.
      tolerance: how far the bounds and Σ x may be missed, relative to s.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes, or if caps given
        as one number cannot sum to the radius.

    Source: Wang & Lu, Projection onto the capped simplex, 2015.

    >>> capped_simplex(cap=1.0, radius=2.0).prox(jnp.array([3.0, 0.5, 0.0]), 1.0).tolist()
    [1.0, 0.75, 0.25]
    """
    _validation.tree_positive("capped_simplex", cap=cap)
    _validation.tree_positive("capped_simplex", radius=radius)
    _validation.tree_finite("capped_simplex", radius=radius)
    axes = _slots.axes_of("capped_simplex", axis)

    def radius_slot(path, leaf):
        size = math.prod(leaf.shape[i] for i in _slots.inside("capped_simplex", axes, leaf, path))
        _require_feasible(cap, radius, size, path)
        return _slots.per_group("capped_simplex", axes)(path, leaf)

    def project(x, step_size, cap, radius):
        # A coordinate never exceeds the sum, so that an infinite cap is none.
        return _capped.project(x, radius, jnp.minimum(cap, radius), _slots.inside("capped_simplex", axes, x))

    def violation(x, cap, radius):
        off = _off(x, radius, _slots.inside("capped_simplex", axes, x))
        return jnp.maximum(off, jnp.max((x - cap) / radius))

    parameters = {"cap": (cap, _slots.coordinates), "radius": (radius, radius_slot)}
    made = _indicator.constraint("capped_simplex", violation, project, parameters, tolerance)
    return made.described("capped_simplex", cap=cap, radius=radius, axis=axis, tolerance=tolerance)


def sparse_simplex(
    k: int,
    radius: base.Strength = 1.0,
    axis: int | tuple[int, ...] | None = None,
    tolerance: float | None = None,
) -> base.Penalty:
    """Indicator of the points of the simplex with at most k entries that are not 0, by groups.

    prox: the k largest entries are projected on the simplex, the others become 0. Of equal entries
    the first are taken.

    Convex: no. Separable: by groups. Metric: no. Cost: a partial sort.

    Args:
      k: a static integer ≥ 1.
      radius: s > 0, as for `simplex`.
      tolerance: how far min x and Σ x may be off, relative to s.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes, or has fewer
        than k coordinates in a group.

    Source: Kyrillidis, Becker, Cevher & Koch, Sparse projections onto the simplex, 2013.

    >>> sparse_simplex(k=2).prox(jnp.array([0.5, 0.25, 0.375]), 1.0).tolist()
    [0.5625, 0.0, 0.4375]
    """
    k = _validation.to_int(1, "sparse_simplex", k=k)
    _validation.tree_positive("sparse_simplex", radius=radius)
    _validation.tree_finite("sparse_simplex", radius=radius)
    axes = _slots.axes_of("sparse_simplex", axis)

    def radius_slot(path, leaf):
        size = math.prod(leaf.shape[i] for i in _slots.inside("sparse_simplex", axes, leaf, path))
        if 0 < size < k:
            expected = f"at most {size}, the size of a group at {_trees.place(path)}"
            raise _validation.invalid("k", k, expected, f"Lower it, or {_slots.LEAVE_OUT}", "sparse_simplex")
        return _slots.per_group("sparse_simplex", axes)(path, leaf)

    def project(x, step_size, radius):
        inside = _slots.inside("sparse_simplex", axes, x)
        return _on_largest(x, radius, k, inside)

    def violation(x, radius):
        inside = _slots.inside("sparse_simplex", axes, x)
        too_many = jnp.max(jnp.sum(x != 0, axis=inside)) > k
        return _off(x, radius, inside) + jnp.where(too_many, jnp.inf, 0.0)

    parameters = {"radius": (radius, radius_slot)}
    made = _indicator.constraint("sparse_simplex", violation, project, parameters, tolerance)
    return made.described("sparse_simplex", k=k, radius=radius, axis=axis, tolerance=tolerance)


def _off(x, radius, inside):
    """The violation by the sums and the smallest entry, relative to the radius."""
    sums = jnp.sum(x, axis=inside, keepdims=True)
    return jnp.max(jnp.maximum(jnp.abs(sums - radius), jnp.max(-x)) / radius)


def _require_feasible(cap, radius, size, path):
    caps, radii = (_validation.known("capped_simplex", "", given) for given in (cap, radius))
    one_each = [len(jax.tree.leaves(given)) == 1 for given in (cap, radius)]
    if not (all(one_each) and caps and radii and caps[0].ndim == 0) or size == 0:
        return
    if np.max(radii[0]) > float(caps[0]) * size * (1 + 1e-6):
        place = _trees.place(path)
        expected = f"at most the sum of {size} coordinates of at most {caps[0]} at {place}"
        remedy = "Raise the cap or lower the radius."
        raise _validation.invalid("radius", float(np.max(radii[0])), expected, remedy, "capped_simplex")


def _on_largest(x, radius, k, inside):
    radii = jnp.broadcast_to(radius, [1 if i in inside else s for i, s in enumerate(x.shape)])
    groups = _rows.of(x, inside)
    values, places = jax.lax.top_k(groups, k)
    values = _threshold.project(values, _rows.of(radii, inside), 1.0, _threshold.Kind(axes=(1,)))
    zeros = jnp.zeros_like(groups)
    moved = jnp.put_along_axis(zeros, places, values, axis=1, inplace=False)
    return _rows.back(moved, x, inside)
