"""Regularised dual averaging with momentum: RMDA and RAMDA, for training structured networks."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.penalties import base
from proxlm.transforms import _arguments, _leaves, _updates
from proxlm.transforms._updates import beside

__all__ = ["RMDAState", "ramda", "rmda"]


class RMDAState(NamedTuple):
    """State of `rmda` (two arrays per parameter) and of `ramda` (three).

    Attributes:
      count: the updates seen, int32.
      age: the updates since the last restart, int32.
      step_sum: α = Σ s_i, the weight of the penalty.
      gradient_sum: V = Σ s_i g_i.
      square_sum: U = Σ s_i g_i²; None in `rmda`.
      origin: W⁰, the params at `init` or at the last restart.
    """

    count: jax.Array
    age: jax.Array
    step_sum: jax.Array
    gradient_sum: chex.ArrayTree
    square_sum: chex.ArrayTree | None
    origin: chex.ArrayTree


def rmda(
    learning_rate: optax.ScalarOrSchedule,
    penalty: base.Penalty,
    mixing: optax.ScalarOrSchedule = 1.0,
    *,
    restart_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Dual averaging with growing weights s_t = η_t √t, and momentum.

        W̃ = prox_{α/√t g}(W⁰ - V/√t),  V = Σ_i s_i g_i,  α = Σ_i s_i,
        W ← (1 - c) W + c W̃.

    The variance of V/α goes to 0, so W̃ finds the structure of a solution after finitely many
    steps. Mixing with c < 1 is the momentum; a mixture with a weight that was not zero is not zero, so exact
    zeros need c = 1 at the end, which a schedule can give.

    Steps are measured from W⁰: a learning rate that falls should come with a restart, which sets
    W⁰ to the params and all sums to 0.

    Args:
      penalty: g; it need not allow a diagonal metric.
      mixing: c in (0, 1], a number or a schedule.
      restart_every: the number of updates between restarts; None for no restart.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Huang & Lee 2022 (Training structured neural networks through manifold identification
    and variance reduction), algorithm 1.

    >>> from proxlm import penalties
    >>> tx, params = rmda(0.5, penalties.l1(1.0)), jnp.zeros(2)
    >>> updates, state = tx.update(jnp.array([3.0, -0.5]), tx.init(params), params)
    >>> updates.tolist()
    [-1.0, 0.0]
    """
    return _averaged("rmda", learning_rate, penalty, mixing, restart_every, None)


def ramda(
    learning_rate: optax.ScalarOrSchedule,
    penalty: base.Penalty,
    mixing: optax.ScalarOrSchedule = 1.0,
    eps: chex.Numeric = 1e-6,
    *,
    restart_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`rmda` in an adaptive metric: W̃ = prox_{α/P g}(W⁰ - V/P), P = ∛U + ε, U = Σ_i s_i g_i².

    Penalties with a closed form in the metric need no inner loop, unlike those of the paper. A
    weight that has never had a gradient has P = 1: g shrinks it, but not by α/ε.

    Raises:
      ValueError: if an argument is invalid; on update, without params or if the penalty has no prox in a
        diagonal metric.

    Source: Huang & Lee 2024 (Regularized adaptive momentum dual averaging), algorithm 1.

    >>> from proxlm import penalties
    >>> tx, params = ramda(1.0, penalties.l1(1.0), eps=0.0), jnp.zeros(2)
    >>> updates, state = tx.update(jnp.array([8.0, -0.5]), tx.init(params), params)
    >>> updates.round(4).tolist()
    [-1.75, 0.0]
    """
    _validation.tree_at_least(0, "ramda", eps=eps)
    return _averaged("ramda", learning_rate, penalty, mixing, restart_every, eps)


def _averaged(name, learning_rate, penalty, mixing: optax.ScalarOrSchedule, restart_every, eps):
    """RMDA; RAMDA where ε is given."""
    _arguments.require_step(name, penalty, learning_rate)
    _arguments.require_rate(name, "mixing", mixing)
    if not callable(mixing):
        _validation.positive(name, mixing=mixing)
        _validation.within(0, 1, name, mixing=mixing)
    if restart_every is not None:
        _arguments.require_count(name, "restart_every", restart_every, least=1)

    def init(params):
        zeros = lambda of: jax.tree.map(lambda x: jnp.zeros_like(of(x)), params)
        # A copy, so that the params may be donated.
        origin = jax.tree.map(jnp.array, params)
        start = lambda: jnp.zeros([], jnp.int32)
        squares = None if eps is None else zeros(jnp.real)
        return RMDAState(start(), start(), _updates.zero(params), zeros(jnp.asarray), squares, origin)

    def step(gradients, state, params, extra_args):
        del extra_args
        if restart_every is not None:
            state = _restarted(state, params, state.age == restart_every)
        rate = _updates.rate_at(learning_rate, state.count, state.step_sum)
        mixed = _updates.rate_at(mixing, state.count, state.step_sum)
        age = _updates.increment(state.age)
        root = jnp.sqrt(age.astype(rate.dtype))
        weight = rate * root
        step_sum = state.step_sum + weight
        sums = jax.tree.map(lambda s, g: s + beside(weight, g) * g, state.gradient_sum, gradients)
        squares, steps = state.square_sum, step_sum / root
        inverse = jax.tree.map(lambda s: jnp.ones_like(s) / beside(root, s), sums)
        if eps is not None:
            add = lambda q, g: q + beside(weight, q) * _updates.square(g)
            squares = jax.tree.map(add, squares, gradients)
            inverse = jax.tree.map(lambda q: 1.0 / jnp.where(q > 0, jnp.cbrt(q) + eps, 1.0), squares)
            steps = jax.tree.map(lambda i: beside(step_sum, i) * i, inverse)
        target = jax.tree.map(lambda x, s, i: x - s * i, state.origin, sums, inverse)
        point = penalty.prox(target, steps)
        point = jax.tree.map(lambda x, new: x + beside(mixed, x) * (new - x), params, point)
        count = _updates.increment(state.count)
        return point, RMDAState(count, age, step_sum, sums, squares, state.origin)

    return _leaves.optimizer(name, penalty, init, step)


def _restarted(state, params, now):
    """The state, started anew at the params if `now`."""
    sums = state.age, state.step_sum, state.gradient_sum, state.square_sum
    age, step_sum, gradients, squares = jax.tree.map(lambda leaf: jnp.where(now, 0, leaf), sums)
    origin = jax.tree.map(lambda p, o: jnp.where(now, p, o), params, state.origin)
    return RMDAState(state.count, age, step_sum, gradients, squares, origin)
