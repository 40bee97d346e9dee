"""Balls and spheres of the l1 and l2 norms, over whole leaves or along axes.

Shared arguments as in `proxlm.penalties`.
"""

import math

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, base
from proxlm.penalties.sets import _threshold

__all__ = ["l1_ball", "l1_sphere", "l2_ball", "l2_sphere"]


def l1_ball(
    radius: base.Strength = 1.0, axis: int | tuple[int, ...] | None = None, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of the l1 ball: g(x) = 0 if every group has Σ_i |x_i| ≤ r, else +inf.

    prox(x)_i = sign(x_i) max(|x_i| - τ, 0), with the τ ≥ 0 at which the magnitudes sum to r, and
    τ = 0 inside; in a diagonal metric with t_i τ for τ. τ is found without a sort.

    Convex: yes. Separable: by groups. Metric: yes; coordinates of t_i = 0 stay. Cost: about ten
    passes over x, one if it is inside.

    Args:
      tolerance: how far the norm may exceed r, relative to r.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Duchi, Shalev-Shwartz, Singer & Chandra 2008; Condat 2016.

    >>> l1_ball(2.0).prox(jnp.array([-2.0, 1.0, 0.25]), 1.0).tolist()
    [-1.5, 0.5, 0.0]
    """
    return _l1_set("l1_ball", radius, axis, tolerance, is_ball=True)


def l1_sphere(
    radius: base.Strength = 1.0, axis: int | tuple[int, ...] | None = None, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of the l1 sphere: g(x) = 0 if every group has Σ_i |x_i| = r, else +inf.

    prox(x)_i = sign(x_i) max(|x_i| - τ, 0), with the τ of any sign at which the magnitudes sum to
    r; where x_i is 0 its sign is taken as +, so that 0 goes to r/n in all coordinates.

    Convex: no. Separable: by groups. Metric: yes; coordinates of t_i = 0 stay. Cost: about ten
    passes over x.

    Args:
      tolerance: how far the norm may be from r, relative to r.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Duchi et al. 2008, for magnitudes.

    >>> l1_sphere(2.0).prox(jnp.array([-0.5, 0.25, 0.0, 0.25]), 1.0).tolist()
    [-0.75, 0.5, 0.25, 0.5]
    """
    return _l1_set("l1_sphere", radius, axis, tolerance, is_ball=False)


def l2_ball(
    radius: base.Strength = 1.0, axis: int | tuple[int, ...] | None = None, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of the l2 ball: g(x) = 0 if every group has |x|₂ ≤ r, else +inf.

    prox(x) = x min(1, r / |x|₂). With axis=-1 on an embedding this bounds the norm of each row.

    Convex: yes. Separable: by groups. Metric: no. Cost: three passes over x.

    Args:
      tolerance: how far the norm may exceed r, relative to r.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Parikh & Boyd 2014, section 6.5.1.

    >>> l2_ball(2.5, axis=-1).prox(jnp.array([[3.0, 4.0], [0.5, 0.0]]), 1.0).tolist()
    [[1.5, 2.0], [0.5, 0.0]]
    """
    return _l2_set("l2_ball", radius, axis, tolerance, is_ball=True)


def l2_sphere(
    radius: base.Strength = 1.0, axis: int | tuple[int, ...] | None = None, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of the l2 sphere: g(x) = 0 if every group has |x|₂ = r, else +inf.

    prox(x) = r x / |x|₂. From 0, to which all points are equally near, it goes to r/√n in all coordinates,
    with a derivative of 0. With axis=-1 every row of an embedding has the norm r.

    Convex: no. Separable: by groups. Metric: no. Cost: three passes over x.

    Args:
      tolerance: how far the norm may be from r, relative to r.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Source: Absil & Malick, Projection-like retractions on matrix manifolds, 2012, section 4.

    >>> l2_sphere(2.0, axis=-1).prox(jnp.array([[0.0, 0.5, 0.0, 0.0], [0.0] * 4]), 1.0).tolist()
    [[0.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    """
    return _l2_set("l2_sphere", radius, axis, tolerance, is_ball=False)


def _l1_set(name, radius, axis, tolerance, is_ball):
    def project(axes, x, step_size, radius):
        moved = _threshold.project(
            x, radius, step_size, _threshold.Kind(axes, absolute=True, floored=is_ball)
        )
        return jnp.where(x < 0, 0.0 - moved, moved)

    norm = lambda axes, x: jnp.sum(jnp.abs(x), axis=axes, keepdims=True)
    return _set_of_norm(name, radius, axis, tolerance, is_ball, norm, project, _slots.coordinates)


def _l2_set(name, radius, axis, tolerance, is_ball):
    def norm(axes, x):
        largest, _, length = _in_lengths(axes, x)
        return largest * length

    def project(axes, x, step_size, radius):
        largest, direction, length = _in_lengths(axes, x)
        radius = jnp.minimum(radius, jnp.finfo(x.dtype).max)
        moved = radius * (direction / length)
        rounding = 4 * jnp.finfo(x.dtype).eps * radius
        over = largest * length - radius
        if is_ball:
            return jnp.where(over <= rounding, x, moved)
        size = math.prod(x.shape[i] for i in axes)
        diagonal = jnp.broadcast_to(radius / math.sqrt(size), x.shape)
        moved = jnp.where(largest == 0, diagonal, moved)
        return base.keep_bits(jnp.abs(over) <= rounding, x, moved)

    return _set_of_norm(name, radius, axis, tolerance, is_ball, norm, project, _slots.one_number)


def _set_of_norm(name, radius, axis, tolerance, is_ball, norm, project, step_slot):
    _validation.tree_positive(name, radius=radius)
    if not is_ball:
        _validation.tree_finite(name, radius=radius)
    axes = _slots.axes_of(name, axis)

    def violation(x, radius):
        excess = norm(_slots.inside(name, axes, x), x) / radius - 1.0
        return jnp.max(excess if is_ball else jnp.abs(excess))

    def move(x, step_size, radius):
        return project(_slots.inside(name, axes, x), x, step_size, radius)

    parameters = {"radius": (radius, _slots.per_group(name, axes))}
    made = _indicator.constraint(name, violation, move, parameters, tolerance, step_slot)
    return made.described(name, radius=radius, axis=axis, tolerance=tolerance)


def _in_lengths(axes, x):
    """The largest magnitude m, x/m and |x/m|₂, whose squares neither overflow nor vanish."""
    over_group = {"axis": axes, "keepdims": True}
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0.0, **over_group))
    finite = x / jnp.where(largest == 0, 1.0, largest)
    among_infinite = jnp.where(jnp.isinf(x), jnp.sign(x), 0.0)
    direction = jnp.where(jnp.isinf(largest), among_infinite, finite)
    squared = jnp.sum(jnp.square(direction), **over_group)
    return largest, direction, jnp.sqrt(jnp.where(squared == 0, 1.0, squared))
