"""A penalty on numbers, carried over to the norms of groups."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _slots, _trees, base
from proxlm.penalties.groups import _norm_prox_in_metric, _partition

WEIGHTS = {"sqrt_size": lambda size: np.sqrt(np.maximum(size, 1.0)), "none": np.ones_like}


def lift_to_groups(
    name: str,
    penalty: base.Penalty,
    over: _partition.Grouping,
    weight: str,
    slope: _norm_prox_in_metric.Slope | None = None,
) -> base.Penalty:
    """Gives g(x) = Σ_G w_G² φ(|x_G| / w_G); see `group`.

    >>> from proxlm.penalties import grouping
    >>> from proxlm.penalties.coordinatewise import convex
    >>> lasso = lift_to_groups("doc", convex.l1(1.0), grouping.axes(0), "none")
    >>> lasso.prox(jnp.array([3.0, 4.0]), 2.5).tolist()
    [1.5, 2.0]
    """
    _validation.one_of(WEIGHTS, name, weight=weight)

    def split(x):
        wide = _trees.widen(name, x, with_complex=True)
        groups = over.split(name, wide)
        if slope is not None:  # A wrong shape should name this penalty, not the one on norms.
            beside(name, "strength", slope.strength, groups, wide)
        return wide, groups, jax.tree.map(lambda size: WEIGHTS[weight](np.asarray(size, float)), groups.sizes)

    def value(x):
        wide, groups, widths = split(x)
        units = _units(groups, wide, widths)
        # φ sums over what it is given, so that it is given the groups of one weight at a time.
        alike = lambda width: jax.tree.map(lambda u, w: _alike(u, w, width), units, widths)
        every = {float(w) for own in jax.tree.leaves(widths) for w in np.ravel(own)}
        return sum((w**2 * penalty.value(alike(w)) for w in sorted(every)), start=jnp.zeros(()))

    def prox(x, step_size):
        _trees.require_beside(x, name, step_size=step_size)
        wide, groups, widths = split(x)
        if _trees.is_number(step_size):
            units = jax.tree.map(_floor, _units(groups, wide, widths))
            scales = jax.tree.map(_quotient, penalty.prox(units, step_size), units)
            moved = groups.apply(_scale, (wide,), (scales,))
        else:
            moved = _in_metric(name, groups, wide, step_size, _steepen(name, slope, groups, wide, widths))
        return _trees.narrow(moved, x)

    def residual(x, v):
        wide, groups, widths = split(x)
        v = _trees.widen(name, v, with_complex=True)
        lengths = [_units(groups, z, widths) for z in (wide, v)]
        inner = lambda u, length: jnp.where(u == 0, length, 0.0)
        left = base.residual_of(penalty)(lengths[0], jax.tree.map(inner, *lengths))
        return _trees.narrow(groups.apply(_subtract, (v, wide), (*lengths, left)), x)

    return base.Penalty(value, prox, penalty.residual and residual)


def beside(
    name: str, argument: str, given: base.Strength, groups: _partition.Groups, x: chex.ArrayTree
) -> chex.ArrayTree:
    """Lays numbers beside the groups of x: a tree of groups; ValueError where they do not fit.

    >>> from proxlm.penalties import grouping
    >>> x = {"w": jnp.ones((2, 3))}
    >>> beside("doc", "strength", 2.0, grouping.axes(0).split("doc", x), x)
    {'w': Array([[2., 2., 2.]], dtype=float32)}
    """
    like = jax.eval_shape(lambda: groups.reduce(_partition.SUM, jax.tree.map(_square, x)))
    return _spread(name, argument, given, like)


def steps(name: str, step_size: base.Strength, x: chex.ArrayTree) -> chex.ArrayTree:
    """Gives a step size as a tree of arrays with the shapes of x; ValueError where it does not fit.

    >>> steps("doc", 2.0, {"w": jnp.ones(3)})["w"].tolist()
    [2.0, 2.0, 2.0]
    """
    _trees.require_beside(x, name, step_size=step_size)
    return _spread(name, "step_size", step_size, x)


def _spread(name, argument, given, like):
    leaves, structure = jax.tree.flatten(like)
    given = _trees.spread(name, argument, given, _slots.coordinates, like)
    whole = [jnp.broadcast_to(n, leaf.shape) for n, leaf in zip(given, leaves, strict=True)]
    return jax.tree.unflatten(structure, whole)


def _units(groups, x, widths):
    """|x_G| / w_G."""
    squared = groups.reduce(_partition.SUM, jax.tree.map(_square, x))
    return jax.tree.map(lambda squared, w: _root(squared) / jnp.asarray(w, squared.dtype), squared, widths)


def _square(x):
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def magnitude(x: jax.Array) -> jax.Array:
    """|x| of complex numbers, on which alone their prox depends; others are given as they are.

    >>> magnitude(jnp.array([3.0 - 4.0j])).tolist()
    [5.0]
    """
    return _root(_square(x)) if jnp.iscomplexobj(x) else x


def in_direction(x: jax.Array, moved: jax.Array) -> jax.Array:
    """The result for magnitudes, in the direction of the complex numbers x; else the result itself.

    >>> in_direction(jnp.array([3.0 - 4.0j]), jnp.array([10.0])).tolist()
    [(6-8j)]
    """
    if not jnp.iscomplexobj(x):
        return moved
    size = magnitude(x)
    return x * (moved / jnp.where(size == 0, 1.0, size))


def _alike(units, widths, width):
    """The groups of one weight: all of an array or none, or zeros in the place of the others."""
    if widths.ndim:
        return jnp.where(widths == width, units, 0.0)
    return units if widths == width else None


def _root(squared):
    # √ has no derivative at 0, and a masked 0 times its infinity would still be NaN. What lies
    # below the smallest normal number counts as 0.
    zero = squared < jnp.finfo(squared.dtype).tiny
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


def _floor(unit):
    # At 0 it would stay open whether φ sets the group to 0 or keeps it; and 1/unit² must be finite.
    return jnp.maximum(unit, jnp.finfo(unit.dtype).tiny ** 0.5)


@jax.custom_jvp
def _quotient(moved, unit):
    # 1 also where the norm overflowed: inf / inf. The division comes last, since XLA on CPU keeps
    # what a division gives and would compute what follows again beside each coordinate.
    same = moved == unit
    return jnp.where(same, 1.0, moved) / jnp.where(same, 1.0, unit)


@_quotient.defjvp
def _quotient_jvp(primals, tangents):
    return _quotient(*primals), jax.jvp(jnp.divide, primals, tangents)[1]


def _scale(x, scale):
    # The select also keeps XLA on CPU from a fused kernel that cannot write in place.
    return jnp.where(scale == 0, 0.0, x * scale)


def _subtract(v, x, unit, length, left):
    """Gives v less the nearest subgradient; `left` is -φ' at u > 0, what is left of |v| at 0."""
    nonzero = lambda number: jnp.where(number == 0, 1.0, number)
    return jnp.where(unit == 0, v * (left / nonzero(length)), v + x * (left / nonzero(unit)))


def _in_metric(name, groups, x, step_size, steep):
    """The prox for step sizes that differ within groups."""
    sizes = jax.tree.map(magnitude, x)
    moved = _norm_prox_in_metric.shorten(groups, sizes, steps(name, step_size, sizes), steep)
    return jax.tree.map(in_direction, x, moved)


def _steepen(name, slope, groups, x, widths):
    """φ' seen from the norms: (w² φ(s/w))' = w λ - κ s."""
    if slope is None:
        given = _validation.Verbatim("one for each coordinate")
        raise _validation.invalid("step_size", given, "one number", _trees.METRIC_REMEDY, name)
    strength = beside(name, "strength", slope.strength, groups, x)
    curvature = slope.curvature
    if curvature is not None:
        curvature = beside(name, "curvature", curvature, groups, x)
    steeper = jax.tree.map(lambda s, w: s * jnp.asarray(w, s.dtype), strength, widths)
    return _norm_prox_in_metric.Slope(steeper, curvature)
