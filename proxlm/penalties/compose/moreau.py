"""New penalties out of old ones by Moreau's decomposition, of a convex `penalty` g."""

import operator
from typing import Any

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _slots, _trees, base

__all__ = ["conjugate", "envelope"]

LONGEST = 1e18  # a step size as good as infinite, whose products stay finite


def conjugate(penalty: base.Penalty, value: base.Value | None = None) -> base.Penalty:
    """The convex conjugate: g*(y) = sup_x ⟨x, y⟩ - g(x).

    prox_tg*(y) = y - t prox_(g/t)(y/t), Moreau's identity. The prox is computed; the value has no
    formula that serves every g, so it is given. The conjugate of a norm, for one, is the set on
    which the dual norm is at most 1.

    Args:
      value: g*, if it is known.

    Raises:
      ValueError: if `penalty` is not a Penalty; and, from `value`, if none was given.

    Convex: yes. Separable: as g. Metric: as g. Cost: that of g and two passes.

    Source: Moreau 1965.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> conjugate(convex.l1(1.0)).prox(jnp.array([-3.0, 0.5]), 2.0).tolist()
    [-1.0, 0.5]
    """
    base.require_penalty("conjugate", penalty=penalty)

    def unknown(y: Any) -> jax.Array:
        remedy = "It cannot be derived from a prox: conjugate(penalty, value=...)."
        raise _validation.invalid("value", None, "the function g*", remedy, "conjugate")

    def prox(y, step_size):
        wide = _trees.widen("conjugate", y)
        steps = _trees.spread_tree("conjugate", "step_size", step_size, wide)
        # At t = 0 the prox is the identity, and 1/t is not to be seen by derivatives; nor is t = ∞.
        safe = lambda t: jnp.minimum(jnp.where(t == 0, 1.0, t), LONGEST)
        inner = jax.tree.map(lambda leaf, t: leaf / safe(t), wide, steps)
        inner = penalty.prox(inner, jax.tree.map(lambda t: 1.0 / safe(t), step_size))
        moved = jax.tree.map(
            lambda leaf, t, z: jnp.where(t == 0, leaf, leaf - safe(t) * z), wide, steps, inner
        )
        return _trees.narrow(moved, y)

    return base.Penalty(value or unknown, prox).described("conjugate", penalty, value=value)


def envelope(penalty: base.Penalty, smoothing: chex.Numeric) -> base.Penalty:
    """The Moreau envelope: h(x) = min_z g(z) + |z - x|²/2μ, a smooth function below g.

    ∇h(x) = (x - prox_μg(x))/μ, which is what `jax.grad` of its value gives, and
    prox_th(x) = x + t/(t + μ) (prox_(t+μ)g(x) - x). The envelope of `l1` is Huber's function.

    Args:
      smoothing: μ > 0, one number, as the step size is. May be traced.

    Raises:
      ValueError: if an argument is invalid.

    Convex: if g is. Separable: as g. Metric: no. Cost: that of g and one pass.

    Source: Moreau 1965; the prox is Beck 2017, theorem 6.63.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> huber = envelope(convex.l1(1.0), 2.0)
    >>> huber.value(jnp.array([5.0, 1.0])).item(), jax.grad(huber.value)(jnp.array([5.0, 1.0]))
    (4.25, Array([1. , 0.5], dtype=float32))
    >>> huber.prox(jnp.array([5.0, 1.0]), 2.0).tolist()
    [3.0, 0.5]
    """
    base.require_penalty("envelope", penalty=penalty)
    _validation.tree_positive("envelope", smoothing=smoothing)

    def value(x):
        wide = _trees.widen("envelope", x)
        nearest = penalty.prox(wide, smoothing)
        squares = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), wide, nearest)
        return penalty.value(nearest) + jax.tree.reduce(operator.add, squares, 0.0) / (2 * smoothing)

    def prox(x, step_size):
        wide = _trees.widen("envelope", x)
        _trees.spread("envelope", "step_size", step_size, _slots.one_number, wide)
        share = jnp.where(jnp.isinf(step_size), 1.0, step_size / (step_size + smoothing))
        moved = penalty.prox(wide, step_size + smoothing)
        between = lambda leaf, goal: leaf + share * (goal - leaf)
        return _trees.narrow(jax.tree.map(between, wide, moved), x)

    def residual(x, v):
        nearest = penalty.prox(x, smoothing)
        return jax.tree.map(lambda leaf, goal, b: b - (leaf - goal) / smoothing, x, nearest, v)

    return base.Penalty(value, prox, residual).described("envelope", penalty, smoothing)
