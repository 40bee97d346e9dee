"""Indicators of sets: 0 inside, +inf outside, and the projection as prox."""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _slots, base

# Penalties made of others that are no sets, whatever the others are; the conjugate may be one.
NO_SETS, MAYBE_SETS = ("add_linear", "add_quadratic", "envelope"), ("conjugate",)
# How far outside a set counts as inside, by default.
TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2


def keep_inside(
    violation: Callable[..., jax.Array], project: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """Gives a projection that leaves what is inside up to rounding as it is, bit for bit.

    >>> keep_inside(jnp.max, lambda x, t: jnp.minimum(x, 0.0) + 1e-3)(jnp.array([-1.0]), 0.1).tolist()
    [-1.0]
    """

    def kept(x, step_size, **given):
        inside = violation(x, **given) <= 16 * jnp.finfo(x.dtype).eps
        return base.keep_bits(inside, x, project(x, step_size, **given))

    return kept


def constraint(
    name: str,
    violation: Callable[..., jax.Array],
    project: Callable[..., jax.Array],
    parameters: Mapping[str, tuple[base.Strength, _slots.Slot]],
    tolerance: float | None = None,
    step_slot: _slots.Slot = _slots.one_number,
    residual: Callable[..., jax.Array] | None = None,
) -> base.Penalty:
    """Carries the indicator of a set of arrays over a tree: g(x) = 0 if every leaf is inside.

    Leaves without coordinates are inside.

    Args:
      violation: (leaf, **parameters) ↦ how far the leaf is outside, by the measure of the set.
      project: (leaf, step_size, **parameters) ↦ the nearest point; it may depend on the step size only where
        this differs between coordinates.
      tolerance: the largest violation that counts as inside.

    >>> below = lambda x: jnp.max(x, initial=0.0)
    >>> nonpositive = constraint("nonpositive", below, lambda x, t: jnp.minimum(x, 0.0), {})
    >>> float(nonpositive.value(jnp.array([-1.0, 2.0])))
    inf
    >>> nonpositive.prox(jnp.array([-1.0, 2.0]), 0.1).tolist()
    [-1.0, 0.0]
    """
    if tolerance is not None:
        _validation.tree_at_least(0, name, tolerance=tolerance)

    def inside(leaf, tolerance, **given):
        return indicator(violation(leaf, **given) if leaf.size else 0 * tolerance, tolerance)

    def move(leaf, step_size, **given):
        return project(leaf, step_size, **given) if leaf.size else leaf

    def value(x):
        allowed = jax.tree.map(lambda leaf: tolerance_of(leaf, tolerance), x)
        extended = {**parameters, "tolerance": (allowed, _slots.one_number)}
        return base.leafwise(name, inside, move, extended).value(x)

    carried = base.leafwise(name, inside, move, parameters, step_slot, residual)
    given = {key: numbers for key, (numbers, _) in parameters.items()}
    return carried._replace(value=value).described(name, **given, tolerance=tolerance)


def indicator(violation: jax.Array, tolerance: float) -> jax.Array:
    """The value of a set: 0 where the violation is within the tolerance, else +inf; NaN for NaN.

    >>> [indicator(jnp.float32(v), 1e-4).item() for v in (-1.0, 1e-5, 0.1, jnp.nan)]
    [0.0, 0.0, inf, nan]
    """
    violation = jax.lax.stop_gradient(violation)
    outside = jnp.where(jnp.isnan(violation), jnp.nan, jnp.inf)
    return jnp.where(violation <= tolerance, 0.0, outside).astype(violation.dtype)


def tolerance_of(leaf: chex.Array, tolerance: float | None = None) -> float:
    """The tolerance given or, without one, that of the leaf's dtype.

    That is 1e-5, and 1e-2 below 32 bits, since bfloat16 rounds by up to 4e-3.

    >>> tolerance_of(jnp.ones(1)), tolerance_of(jnp.ones(1, jnp.bfloat16)), tolerance_of(1.0, 0.5)
    (1e-05, 0.01, 0.5)
    """
    if tolerance is not None:
        return tolerance
    dtype = jnp.result_type(leaf)
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return HALF_TOLERANCE if half else TOLERANCE


def require_set(function: str, **constraints: base.Penalty) -> None:
    """Raises ValueError for what is no `Penalty`, or one of this package that is not 0 or +inf.

    That is one with a strength, or made of such. Of a penalty from the user's own functions nothing is known.

    >>> require_set("project", constraint=base.Penalty(None, lambda x, t: jnp.maximum(x, 0.0)))
    """
    base.require_penalty(function, **constraints)
    expected = "a set, such as penalties.box(-1.0, 1.0)"
    remedy = (
        "Its prox needs a step size: use apply_prox or proximal_step, or apply_prox_updates outside a chain."
    )
    for argument, constraint in constraints.items():
        if _is_no_set(constraint):
            raise _validation.invalid(argument, constraint, expected, remedy, function)


def _is_no_set(penalty):
    if not isinstance(penalty, base.Penalty) or penalty._call is None or penalty._call[0] in MAYBE_SETS:
        return False
    name, positional, arguments = penalty._call
    parts = positional[0].values() if name == "separable_sum" else positional
    return name in NO_SETS or any("strength" in key for key in arguments) or any(map(_is_no_set, parts))
