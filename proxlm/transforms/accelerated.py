"""Nesterov's acceleration of the proximal gradient method, in a chain."""

import operator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import _trees, base
from proxlm.transforms import _arguments, _leaves, _states, _updates
from proxlm.transforms._updates import beside

__all__ = ["AcceleratedState", "accelerated_params", "accelerated_proximal_gradient"]


class AcceleratedState(NamedTuple):
    """State of `accelerated_proximal_gradient`.

    Attributes:
      count: the updates seen, int32.
      weight: θ, which gives the momentum (θ - 1)/θ⁺.
      point: x, the result of the last prox.
    """

    count: jax.Array
    weight: jax.Array
    point: Any


def accelerated_proximal_gradient(
    learning_rate: optax.ScalarOrSchedule, penalty: base.Penalty, *, restart: bool = True
) -> optax.GradientTransformationExtraArgs:
    """FISTA: x⁺ = prox_tg(y - t ∇f(y)), y⁺ = x⁺ + (θ - 1)/θ⁺ (x⁺ - x), θ⁺ = (1 + √(1 + 4θ²))/2.

    The params are y, the point at which gradients are taken. x has the exact zeros and the theory's rate of
    1/k²; it is in the state, and `accelerated_params` reads it. y is exactly 0 where x was 0 twice in a
    row, and at the solution the two are equal.

    Args:
      learning_rate: t ≤ 1/L, L the Lipschitz constant of ∇f.
      penalty: g, convex for the theory.
      restart: reset the momentum whenever it points uphill, ⟨y - x⁺, x⁺ - x⟩ > 0, which makes the method fast
        near the solution. Noisy gradients would restart it at random: set False for minibatches.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Beck & Teboulle 2009 (FISTA); O'Donoghue & Candès 2015 (gradient restart).

    >>> from proxlm import penalties
    >>> tx = accelerated_proximal_gradient(0.5, penalties.l1(1.0))
    >>> y = jnp.array([4.0, 0.25])
    >>> state = tx.init(y)
    >>> for _ in range(30):
    ...     updates, state = tx.update(y - jnp.array([3.0, 0.5]), state, y)
    ...     y = optax.apply_updates(y, updates)
    >>> accelerated_params(state).round(4).tolist()
    [2.0, 0.0]
    """
    _arguments.require_step("accelerated_proximal_gradient", penalty, learning_rate)

    def init(params):
        # A copy, so that the params may be donated.
        point = jax.tree.map(jnp.array, params)
        zero = _updates.zero(_trees.promote(params))
        return AcceleratedState(jnp.zeros([], jnp.int32), zero + 1, point)

    def step(updates, state, params, extra_args):
        del extra_args
        rate = _updates.rate_at(learning_rate, state.count, state.weight)
        wide, old = _trees.promote(params), _trees.promote(state.point)
        target = jax.tree.map(lambda x, g: x - beside(rate, x) * g, wide, _trees.promote(updates))
        rounded = _trees.narrow(penalty.prox(target, rate), params)
        new = _trees.promote(rounded)
        weight = (1.0 + jnp.sqrt(1.0 + 4.0 * jnp.square(state.weight))) / 2.0
        momentum = (state.weight - 1.0) / weight
        if restart:
            # ⟨y - x⁺, x⁺ - x⟩
            product = lambda y, a, b: jnp.sum(jnp.real(jnp.conj(y - a) * (a - b)))
            products = jax.tree.map(product, wide, new, old)
            uphill = jax.tree.reduce(operator.add, products, jnp.float32(0.0)) > 0
            weight, momentum = (jnp.where(uphill, x, y) for x, y in ((1.0, weight), (0.0, momentum)))
        ahead = lambda a, b: a + beside(momentum, a) * (a - b)
        moved = jax.tree.map(ahead, new, old)
        return moved, AcceleratedState(_updates.increment(state.count), weight, rounded)

    return _leaves.optimizer("accelerated_proximal_gradient", penalty, init, step, widens=False)


def accelerated_params(state: optax.OptState) -> chex.ArrayTree:
    """Reads x, the point with the exact zeros, from the state of `accelerated_proximal_gradient`.

    Raises:
      ValueError: if the state does not hold exactly one `AcceleratedState`.

    >>> from proxlm import penalties
    >>> accelerated_params(accelerated_proximal_gradient(0.5, penalties.l1()).init(jnp.ones(2)))
    Array([1., 1.], dtype=float32)
    """
    found = _states.find(state, AcceleratedState)
    if len(found) != 1:
        raise ValueError(
            f"accelerated_params: expected the state of one accelerated_proximal_gradient, got "
            f"{len(found)} of them in {', '.join(_states.names(state)) or 'it'}."
        )
    return found[0].point
