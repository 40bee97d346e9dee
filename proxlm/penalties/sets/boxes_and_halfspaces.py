"""Boxes, halfspaces and hyperplanes; shared arguments as in `proxlm.penalties`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, base

__all__ = ["box", "halfspace", "hyperplane", "linf_ball", "non_negative"]


def box(
    lower: base.Strength = -jnp.inf, upper: base.Strength = jnp.inf, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of a box: g(x) = 0 if l_i ≤ x_i ≤ u_i everywhere, else +inf.

    prox(x) = min(max(x, l), u), the same in every diagonal metric.

    Convex: yes. Separable: yes. Metric: yes; coordinates of t_i = 0 stay. Cost: one pass over x.

    Args:
      lower: l, one number or one for each coordinate. May be -inf.
      upper: u, likewise; may be +inf.
      tolerance: how far a bound may be missed, relative to the larger of the bound and 1.

    Raises:
      ValueError: if a bound is NaN or not numeric, or a lower one above its upper one.

    Source: Parikh & Boyd 2014, section 6.2.4.

    >>> box(-1.0, jnp.array([1.0, jnp.inf])).prox(jnp.array([3.0, 3.0]), 1.0).tolist()
    [1.0, 3.0]
    >>> float(box(0.0, 1.0).value(jnp.array([0.5, 1.5])))
    inf
    """
    _require_bounds(lower, upper)
    return _box("box", lower, upper, tolerance)


def non_negative(tolerance: float | None = None) -> base.Penalty:
    """Indicator of the non-negative numbers: g(x) = 0 if x ≥ 0 everywhere, else +inf.

    prox(x) = max(x, 0), the same in every diagonal metric.

    Convex: yes. Separable: yes. Metric: yes; coordinates of t_i = 0 stay. Cost: one pass over x.

    Args:
      tolerance: how far x may be below 0.

    Raises:
      ValueError: if the tolerance is negative or NaN.

    Source: Parikh & Boyd 2014, section 6.3.

    >>> non_negative().prox(jnp.array([-1.0, 2.0]), 1.0).tolist()
    [0.0, 2.0]
    """
    box = _box("non_negative", 0.0, jnp.inf, tolerance)
    return box.described("non_negative", tolerance=tolerance)


def linf_ball(radius: base.Strength = 1.0, tolerance: float | None = None) -> base.Penalty:
    """Indicator of the l∞ ball: g(x) = 0 if |x_i| ≤ r_i everywhere, else +inf.

    prox(x) = min(max(x, -r), r), the same in every diagonal metric.

    Convex: yes. Separable: yes. Metric: yes; coordinates of t_i = 0 stay. Cost: one pass over x.

    Args:
      tolerance: how far a bound may be missed, relative to the larger of r and 1.

    Raises:
      ValueError: if an argument is invalid.

    Source: Parikh & Boyd 2014, section 6.2.4.

    >>> linf_ball(2.0).prox(jnp.array([-3.0, 1.0]), 1.0).tolist()
    [-2.0, 1.0]
    """
    _validation.tree_positive("linf_ball", radius=radius)
    box = _box("linf_ball", jax.tree.map(lambda r: -r, radius), radius, tolerance)
    return box.described("linf_ball", radius=radius, tolerance=tolerance)


def halfspace(normal: base.Strength, offset: base.Strength, tolerance: float | None = None) -> base.Penalty:
    """Indicator of a halfspace: g(x) = 0 if Σ_i a_i x_i ≤ b in every leaf, else +inf.

    prox(x) = x - t a max(Σ_i a_i x_i - b, 0) / Σ_i t_i a_i², where a number t stands for 1.

    Convex: yes. Separable: by leaves. Metric: yes; coordinates of t_i = 0 stay. Cost: two passes
    over x and a.

    Args:
      normal: a, an array that broadcasts to x, or a tree of these in the structure of x. May be traced.
      offset: b, a number or a tree of numbers. May be traced.
      tolerance: how far the sum may exceed b, relative to Σ |a_i x_i| + |b|.

    Raises:
      ValueError: if normal or offset is not numeric, not finite, or a normal is 0 throughout.

    Source: Parikh & Boyd 2014, section 6.2.3.

    >>> at_most_one = halfspace(jnp.ones(2), 1.0)
    >>> at_most_one.prox(jnp.array([4.0, 3.0]), 1.0).tolist()
    [1.0, 0.0]
    >>> at_most_one.prox(jnp.array([-4.0, 3.0]), 1.0).tolist()
    [-4.0, 3.0]
    """
    return _side("halfspace", normal, offset, tolerance, lambda over: jnp.maximum(over, 0.0))


def hyperplane(normal: base.Strength, offset: base.Strength, tolerance: float | None = None) -> base.Penalty:
    """Indicator of a hyperplane: g(x) = 0 if Σ_i a_i x_i = b in every leaf, else +inf.

    prox(x) = x - t a (Σ_i a_i x_i - b) / Σ_i t_i a_i², where a number t stands for 1.

    Convex: yes. Separable: by leaves. Metric: yes; coordinates of t_i = 0 stay. Cost: two passes
    over x and a.

    Args:
      tolerance: how far the sum may be from b, relative to Σ |a_i x_i| + |b|.

    Raises:
      ValueError: as for `halfspace`.

    Source: Parikh & Boyd 2014, section 6.2.3.

    >>> mean_zero = hyperplane(jnp.ones(3), 0.0)
    >>> mean_zero.prox(jnp.array([1.0, 2.0, 6.0]), 1.0).tolist()
    [-2.0, -1.0, 3.0]
    """
    return _side("hyperplane", normal, offset, tolerance, lambda over: over)


def _box(name, lower, upper, tolerance):
    def project(x, step_size, lower, upper):
        inside = jnp.where(x < lower, lower, jnp.where(x > upper, upper, x))
        return jnp.where(step_size > 0, inside, x) if step_size.ndim else inside

    def violation(x, lower, upper):
        below = jnp.where(x < lower, (lower - x) / _scale(lower), 0.0)
        above = jnp.where(x > upper, (x - upper) / _scale(upper), below)
        return jnp.max(jnp.where(jnp.isnan(x), jnp.nan, above))

    def residual(x, v, lower, upper):
        # The normal cone holds v ≥ 0 at an upper bound and v ≤ 0 at a lower one.
        least, most = jnp.where(x <= lower, -jnp.inf, 0.0), jnp.where(x >= upper, jnp.inf, 0.0)
        return v - jnp.clip(v, least, most)

    slot = _slots.coordinates
    parameters = {"lower": (lower, slot), "upper": (upper, slot)}
    return _indicator.constraint(name, violation, project, parameters, tolerance, slot, residual)


def _scale(bound):
    return jnp.where(jnp.isinf(bound), 1.0, jnp.maximum(jnp.abs(bound), 1.0))


def _side(name, normal, offset, tolerance, part):
    _validation.tree_finite(name, normal=normal, offset=offset)
    if not all(np.any(leaf) for leaf in _validation.known(name, "normal", normal) if leaf.size):
        raise _validation.invalid("normal", normal, "different from 0 somewhere", "", name)

    def project(x, step_size, normal, offset):
        # A side stays the same when normal and offset are divided by a number.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(normal)))
        scale = jnp.where(largest > 0, largest, 1.0)
        normal = jnp.broadcast_to(normal / scale, x.shape)
        metric = step_size / jnp.maximum(jnp.max(step_size), jnp.finfo(x.dtype).tiny)
        way = metric * normal if step_size.ndim else normal
        terms, offset = normal * x, offset / scale
        over, size = part(jnp.sum(terms) - offset), jnp.sum(way * normal)
        # What is there up to the rounding of the sum stays, so that projecting twice is once.
        rounding = 4 * jnp.finfo(x.dtype).eps * (jnp.sum(jnp.abs(terms)) + jnp.abs(offset))
        moved = x - way * (over / jnp.where(size > 0, size, 1.0))
        return base.keep_bits(jnp.abs(over) <= rounding, x, moved)

    def violation(x, normal, offset):
        terms = normal * x
        over = part(jnp.sum(terms) - offset)
        return jnp.abs(over) / jnp.maximum(jnp.sum(jnp.abs(terms)) + jnp.abs(offset), 1e-30)

    slot = _slots.coordinates
    parameters = {"normal": (normal, slot), "offset": (offset, _slots.one_number)}
    return _indicator.constraint(name, violation, project, parameters, tolerance, slot)


def _require_bounds(lower, upper):
    lowers, uppers = _validation.known("box", "lower", lower), _validation.known("box", "upper", upper)
    if any(np.any(np.isnan(bound)) for bound in (*lowers, *uppers)):
        given = _validation.Verbatim(f"{lower} and {upper}")
        raise _validation.invalid("lower and upper", given, "numbers other than NaN", "", "box")
    alike = jax.tree.structure(lower) == jax.tree.structure(upper)
    counts = [len(jax.tree.leaves(bound)) for bound in (lower, upper)]
    if [len(lowers), len(uppers)] != counts or not (alike or 1 in counts):
        return
    pairs = itertools.product(lowers, uppers) if 1 in counts else zip(lowers, uppers, strict=True)
    if any(np.any(low > high) for low, high in pairs):
        given = _validation.Verbatim(f"{lower} and {upper}")
        raise _validation.invalid("lower", given, "≤ upper everywhere", "Exchange them.", "box")
