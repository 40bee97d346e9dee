"""Groups in a diagonal metric: their new length is the root of a secular equation."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from proxlm.penalties import cuts

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

    strength: chex.ArrayTree
    curvature: chex.ArrayTree | None = None


def shorten(
    groups: cuts.Groups, x: chex.ArrayTree, step_size: chex.ArrayTree, slope: Slope
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
      groups: of x.
      x: widened tree of arrays.
      step_size: t ≥ 0, a tree with the shapes of x.
      slope: of φ_G, each member a tree of groups.

    Returns:
      y, like x. Leaves in no group are returned as they are.

    Source: Deleu & Bengio 2021 (ProxSSI); Moré & Sorensen 1983 for the concave form.

    >>> from proxlm.penalties import grouping
    >>> x, t = jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])
    >>> shorten(grouping.axes(None).divide("doc", x), x, t, Slope(jnp.ones(1))).tolist()[1]
    4.0
    """
    curved = slope.curvature is not None
    if not curved:
        slope = Slope(slope.strength, jax.tree.map(jnp.zeros_like, slope.strength))
    # Beyond this a step size is as good as infinite, and no product with it should be.
    step_size = jax.tree.map(lambda t: jnp.minimum(t, jnp.finfo(t.dtype).max ** 0.5), step_size)
    fixed = jax.lax.stop_gradient((x, step_size, slope))
    never = jax.tree.map(lambda strength: jnp.full_like(strength, jnp.inf), slope.strength)
    edges = _dead(groups, *fixed), _ceiling(groups, *fixed[1:]) if curved else never
    climb = lambda _, length: _newton(groups, length, edges, *fixed)
    length = jax.lax.fori_loop(0, STEPS - 1, climb, _lower_bound(groups, *fixed))
    length = _newton(groups, jax.lax.stop_gradient(length), edges, x, step_size, slope)
    y = groups.apply(_along, (x, step_size), (length, edges[0], *slope))
    return _best(groups, x, y, step_size, slope, edges[1]) if curved else y


def _dead(groups, x, step_size, slope):
    """Says where |x/tλ| ≤ 1, which no overflow and no underflow can turn round."""
    ratio = lambda x, t, strength: jnp.square(x / (t * strength + _tiny(x)))
    squared = groups.reduce(cuts.SUM, groups.apply(ratio, (x, step_size), (slope.strength,)))
    return jax.tree.map(lambda squared: squared <= 1, squared)


def _ceiling(groups, step_size, slope):
    """Where φ stops rising if the problem is not convex, else infinity."""
    bends = groups.apply(jnp.multiply, (step_size,), (slope.curvature,))
    bend = groups.reduce(cuts.LARGEST, bends)
    flat = lambda bend, strength, curvature: jnp.where(
        bend >= 1, strength / jnp.where(bend >= 1, curvature, 1.0), jnp.inf
    )
    return jax.tree.map(flat, bend, *slope)


def _lower_bound(groups, x, step_size, slope):
    """max_i (|x_i| - t_i λ)/(1 - t_i κ): from here on no term of the equation exceeds 1."""

    def bound(x, t, strength, curvature):
        rise = 1.0 - t * curvature
        return (jnp.abs(x) - t * strength) / jnp.where(rise > 0, rise, jnp.inf)

    return groups.reduce(cuts.LARGEST, groups.apply(bound, (x, step_size), slope))


def _newton(groups, length, edges, x, step_size, slope):
    """One step on f(s) = (Σ r²)^(-1/2) = 1, r_i = x_i/(s (1 - t_i κ) + t_i λ)."""

    def term(x, t, s, strength, curvature):
        return jnp.square(x / (s * (1.0 - t * curvature) + t * strength + _tiny(x)))

    def fall(x, t, s, strength, curvature):
        rise = 1.0 - t * curvature
        divisor = s * rise + t * strength + _tiny(x)
        return jnp.square(x / divisor) * (rise / divisor)

    def step(s, dead, ceiling, total, fall):
        total = jnp.where(dead, 1.0, total)
        usable = ~dead & (fall > 0)
        pace = jnp.where(usable, total / jnp.where(usable, fall, 1.0), 0.0)
        climbed = s + (jnp.sqrt(total) - 1.0) * jax.lax.stop_gradient(pace)
        return jnp.where(dead, 1.0, jnp.clip(climbed, 0.0, ceiling))

    given, beside = (x, step_size), (length, *slope)
    total = groups.reduce(cuts.SUM, groups.apply(term, given, beside))
    falls = groups.apply(fall, *jax.lax.stop_gradient((given, beside)))
    return jax.tree.map(step, length, *edges, total, groups.reduce(cuts.SUM, falls))


def _along(x, t, s, dead, strength, curvature):
    """Shortens x to the group's new length; dead coordinates are +0, unless they may not move."""
    pull = jnp.maximum(strength - curvature * s, 0.0)
    scale = s / (s + t * pull + _tiny(x))
    return jnp.where(dead, jnp.where(t * strength > 0, 0.0, x), x * scale)


def _best(groups, x, y, step_size, slope, ceiling):
    """Takes the best of y, x and 0 in groups where the problem is not convex, elsewhere y."""

    def travel(x, z, t):
        squared = jnp.square(z - x)
        fixed = jnp.where(squared == 0, 0.0, jnp.inf)
        return jnp.where(t > 0, squared / jnp.where(t > 0, 2.0 * t, 1.0), fixed)

    def penalty(moved, squared, ceiling, strength, curvature):
        norm = jnp.minimum(jnp.sqrt(squared), ceiling)
        return moved + norm * (strength - 0.5 * curvature * norm)

    def cost(z):
        squared = groups.reduce(cuts.SUM, jax.tree.map(jnp.square, z))
        moved = groups.reduce(cuts.SUM, groups.apply(travel, (x, z, step_size), ()))
        return jax.tree.map(penalty, moved, squared, ceiling, *slope)

    def choose(y, x, ceiling, root, stay, zero):
        best = jnp.where(stay <= jnp.minimum(root, zero), x, jnp.where(zero <= root, 0.0, y))
        return jnp.where(ceiling < jnp.inf, best, y)

    candidates = jax.lax.stop_gradient((y, x, jax.tree.map(jnp.zeros_like, x)))
    return groups.apply(choose, (y, x), (ceiling, *map(cost, candidates)))


def _tiny(x):
    """Added to a divisor it changes no bit, and lets 0 / 0 be 0."""
    return jnp.finfo(x.dtype).tiny
