"""Groups in a diagonal metric: their new length is the root of a secular equation."""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from proxlm.penalties import base
from proxlm.penalties.groups import _partition

# Four reach 1e-6 where step sizes in one group lie between 1e-4 and 1e4; each more squares it.
STEPS = 5


class Slope(NamedTuple):
    """The derivative of a scalar penalty φ on s > 0: φ'(s) = max(λ - κ s, 0).

    Attributes:
      strength: λ ≥ 0, the slope at 0; a number, or numbers for a tree of groups.
      curvature: κ ≥ 0, likewise; None where the slope is the same everywhere, as for `l1`. The
        minimax concave penalty of strength λ and parameter γ has κ = 1/γ.

    >>> Slope(0.5)
    Slope(strength=0.5, curvature=None)
    """

    strength: Any
    curvature: Any = None


def shorten(
    groups: _partition.Groups, x: chex.ArrayTree, step_size: chex.ArrayTree, slope: Slope
) -> chex.ArrayTree:
    """argmin_y Σ_G φ_G(|y_G|₂) + Σ_i (y_i - x_i)²/2t_i, the prox of groups in a diagonal metric.

    A group is zero iff |x/t|₂ ≤ λ. Else y_i = x_i s / (s + t_i φ'(s)), where s = |y| solves
    Σ_i x_i²/(s + t_i φ'(s))² = 1. Newton's method on f(s) = (Σ ...)^(-1/2) = 1 climbs to the root
    from below, since f is concave there, and is exact after one step where t is constant. The last
    step alone is differentiated, which gives the derivatives of the implicit function theorem.

    A coordinate with t_i = 0 does not move; a group with such an x_i ≠ 0 cannot become zero.

    With a curvature κ the problem is strictly convex in each group where all t_i κ < 1. Elsewhere
    the best of x, 0 and the point reached by Newton's method is taken: this is the minimiser if t
    is constant, and in no case worse than x or 0.

    Args:
      slope: of φ_G, each member a tree of groups.

    Source: Deleu & Bengio 2021 (ProxSSI); Moré & Sorensen 1983 for the concave form.

    >>> from proxlm.penalties import grouping
    >>> x, t = jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])
    >>> shorten(grouping.axes(None).split("doc", x), x, t, Slope(jnp.ones(1))).tolist()[1]
    4.0
    """
    curved = slope.curvature is not None
    # Beyond this a step size is as good as infinite, and no product with it should be.
    t = jax.tree.map(lambda t: jnp.minimum(t, jnp.finfo(t.dtype).max ** 0.5), step_size)
    never = jax.tree.map(lambda strength: jnp.full_like(strength, jnp.inf), slope.strength)
    edge = _edge(groups, t, slope) if curved else never
    lines = [groups.apply(lambda t, strength: base.pull(t, strength) + _tiny(t), (t,), (slope.strength,))]
    if curved:
        lines.append(groups.apply(lambda t, curvature: 1.0 - t * curvature, (t,), (slope.curvature,)))
    fixed = jax.lax.stop_gradient((x, *lines))
    limits = _dead(groups, *fixed[:2]), edge
    climb = lambda _, length: _newton(groups, length, limits, fixed)
    length = jax.lax.fori_loop(0, STEPS - 1, climb, _lower_bound(groups, fixed))
    length = _newton(groups, jax.lax.stop_gradient(length), limits, (x, *lines))
    flat = lambda s, strength, curvature: curvature * s >= strength
    kept = jax.tree.map(flat, length, *slope) if curved else jax.tree.map(jnp.zeros_like, limits[0])
    y = groups.apply(_along, (x, *lines), (length, limits[0], kept))
    return _best(groups, x, y, t, slope, edge) if curved else y


def _edge(groups, t, slope):
    """The length where φ stops rising if the problem is not convex, else infinity."""
    bends = groups.apply(jnp.multiply, (t,), (slope.curvature,))
    bend = jax.lax.stop_gradient(groups.reduce(_partition.LARGEST, bends))
    flat = lambda bend, strength, curvature: jnp.where(
        bend >= 1, strength / jnp.where(bend >= 1, curvature, 1.0), jnp.inf
    )
    return jax.tree.map(flat, bend, *jax.lax.stop_gradient(slope))


# Below, b_i = t_i λ and a_i = 1 - t_i κ, so that s + t_i φ'(s) = a_i s + b_i; a is 1 if not given.
# To b the smallest normal number is added: it changes no bit, and lets 0 / 0 be 0.


def _tiny(x):
    return jnp.finfo(x.dtype).tiny


def _divisor(s, b, a=None):
    return s + b if a is None else s * a + b


def _dead(groups, x, b):
    """Says where |x/tλ| ≤ 1, which no overflow and no underflow can turn round."""
    ratios = groups.apply(lambda x, b: jnp.square(x / b), (x, b), ())
    return jax.tree.map(lambda squared: squared <= 1, groups.reduce(_partition.SUM, ratios))


def _lower_bound(groups, lines):
    """max_i (|x_i| - b_i)/a_i: from here on no term of the equation exceeds 1."""

    def bound(x, b, a=None):
        rise = jnp.abs(x) - b
        return rise if a is None else rise / jnp.where(a > 0, a, jnp.inf)

    return groups.reduce(_partition.LARGEST, groups.apply(bound, lines, ()))


def _newton(groups, length, limits, lines):
    """One step on f(s) = (Σ r²)^(-1/2) = 1, r_i = x_i/(a_i s + b_i)."""

    def term(x, b, *rest):
        *a, s = rest
        return jnp.square(x / _divisor(s, b, *a))

    def fall(x, b, *rest):
        *a, s = rest
        share = 1.0 / _divisor(s, b, *a)
        return jnp.square(x * share) * math.prod([share, *a])

    def step(s, dead, edge, total, fall):
        stays = dead | jnp.isinf(total)
        total = jnp.where(stays, 1.0, total)
        usable = ~stays & (fall > 0)
        pace = jnp.where(usable, total / jnp.where(usable, fall, 1.0), 0.0)
        climbed = s + (jnp.sqrt(total) - 1.0) * jax.lax.stop_gradient(pace)
        return jnp.where(dead, 1.0, jnp.clip(climbed, 0.0, edge))

    total = groups.reduce(_partition.SUM, groups.apply(term, lines, (length,)))
    falls = groups.apply(fall, *jax.lax.stop_gradient((lines, (length,))))
    return jax.tree.map(step, length, *limits, total, groups.reduce(_partition.SUM, falls))


def _along(x, b, *rest):
    """Shortens x to the group's new length; dead coordinates are +0, unless they may not move."""
    *a, s, dead, kept = rest
    moved = jnp.where(kept, x, x * (s / _divisor(s, b, *a)))
    return jnp.where(dead, jnp.where(b > _tiny(b), 0.0, x), moved)


def _best(groups, x, y, step_size, slope, ceiling):
    """Takes the best of y, x and 0 in groups where the problem is not convex, elsewhere y."""

    def travel(x, z, t):
        squared = jnp.square(z - x)
        fixed = jnp.where(squared == 0, 0.0, jnp.inf)
        return jnp.where(t > 0, squared / jnp.where(t > 0, 2.0 * t, 1.0), fixed)

    def penalty(moved, squared, ceiling, strength, curvature):
        norm = jnp.minimum(jnp.sqrt(squared), ceiling)
        return moved + base.times(strength - 0.5 * curvature * norm, norm)

    def cost(z):
        squared = groups.reduce(_partition.SUM, jax.tree.map(jnp.square, z))
        moved = groups.reduce(_partition.SUM, groups.apply(travel, (x, z, step_size), ()))
        return jax.tree.map(penalty, moved, squared, ceiling, *slope)

    def choose(y, x, ceiling, root, stay, zero):
        best = jnp.where(stay <= jnp.minimum(root, zero), x, jnp.where(zero <= root, 0.0, y))
        return jnp.where(ceiling < jnp.inf, best, y)

    candidates = jax.lax.stop_gradient((y, x, jax.tree.map(jnp.zeros_like, x)))
    return groups.apply(choose, (y, x), (ceiling, *map(cost, candidates)))
