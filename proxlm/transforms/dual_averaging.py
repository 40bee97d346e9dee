"""Dual averaging: a prox of sums of gradients, whose zeros are decided by their average.

A prox at each step compares one noisy gradient with the threshold, so that weights jump to zero and back
under minibatches. Here the mean of all gradients is compared with it: gradients and thresholds are both
summed.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.penalties import base
from proxlm.transforms import _arguments, _leaves, _updates
from proxlm.transforms._updates import beside

__all__ = ["AdagradRDAState", "FTRLProximalState", "RDAState", "adagrad_rda", "ftrl_proximal", "rda"]


class RDAState(NamedTuple):
    """State of `rda`: two arrays per parameter.

    Attributes:
      count: the updates seen, int32.
      step_sum: A = Σ η_s, the weight of the penalty.
      gradient_sum: Σ η_s g_s.
      origin: the params at `init`.
    """

    count: jax.Array
    step_sum: jax.Array
    gradient_sum: chex.ArrayTree
    origin: chex.ArrayTree


def rda(
    learning_rate: optax.ScalarOrSchedule, penalty: base.Penalty
) -> optax.GradientTransformationExtraArgs:
    """Regularised dual averaging: x = prox_{A/√t g}(x_0 - Σ_s η_s g_s / √t), A = Σ_s η_s.

    x minimises Σ_s η_s (⟨g_s, x⟩ + g(x)) + √t |x - x_0|²/2, all gradients weighing alike if η is
    constant. The step is measured from x_0 each time, so a schedule that decays does not freeze
    the params: late gradients count less, and the growing √t draws back to x_0. For schedules take
    `ftrl_proximal` or `dual_averaging_adam`, which are centred at the last point.

    Args:
      learning_rate: η; it is 1/γ of the paper.
      penalty: g; it need not allow a diagonal metric. It should be smallest at x_0, as l1 is at 0.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Xiao 2009 (regularised dual averaging), β_t = γ√t.

    >>> from proxlm import penalties
    >>> tx, params = rda(0.5, penalties.l1(1.0)), jnp.zeros(2)
    >>> updates, state = tx.update(jnp.array([3.0, -0.5]), tx.init(params), params)
    >>> updates.tolist()
    [-1.0, 0.0]
    """
    _arguments.require_step("rda", penalty, learning_rate)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        # A copy, so that the params may be donated.
        origin = jax.tree.map(jnp.array, params)
        return RDAState(jnp.zeros([], jnp.int32), _updates.zero(params), zeros, origin)

    def step(gradients, state, params, extra_args):
        del params, extra_args
        rate = _updates.rate_at(learning_rate, state.count, state.step_sum)
        count = _updates.increment(state.count)
        step_sum = state.step_sum + rate
        sums = jax.tree.map(lambda s, g: s + beside(rate, g) * g, state.gradient_sum, gradients)
        slowness = 1.0 / jnp.sqrt(count.astype(step_sum.dtype))
        target = jax.tree.map(lambda x, s: x - beside(slowness, s) * s, state.origin, sums)
        point = penalty.prox(target, slowness * step_sum)
        return point, RDAState(count, step_sum, sums, state.origin)

    return _leaves.optimizer("rda", penalty, init, step)


class AdagradRDAState(NamedTuple):
    """State of `adagrad_rda`: three arrays per parameter.

    Attributes:
      count: the updates seen, int32.
      step_sum: A = Σ η_s.
      gradient_sum: Σ η_s g_s.
      sum_of_squares: the initial accumulator value plus Σ g_s².
      origin: the params at `init`.
    """

    count: jax.Array
    step_sum: jax.Array
    gradient_sum: chex.ArrayTree
    sum_of_squares: chex.ArrayTree
    origin: chex.ArrayTree


def adagrad_rda(
    learning_rate: optax.ScalarOrSchedule,
    penalty: base.Penalty,
    initial_accumulator_value: chex.Numeric = 0.1,
    eps: chex.Numeric = 1e-7,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad by dual averaging: x = prox_{A/H g}(x_0 - Σ_s η_s g_s / H), H = √(Σ_s g_s² + ε).

    x minimises Σ_s η_s (⟨g_s, x⟩ + g(x)) + |x - x_0|²_H/2. As in `rda` the step is measured from
    x_0, and a learning rate of 0 does not freeze the params.

    Args:
      initial_accumulator_value: the value that Σ g² starts at, as in `optax.adagrad`. A value above 0 keeps
        the threshold of weights without a gradient finite.

    Raises:
      ValueError: if an argument is invalid; on update, without params or if the penalty has no prox in a
        diagonal metric.

    Source: Duchi, Hazan & Singer 2011, primal-dual subgradient update with a composite term.

    >>> from proxlm import penalties
    >>> tx, params = adagrad_rda(0.5, penalties.l1(1.0), 0.0, 0.0), jnp.zeros(2)
    >>> updates, state = tx.update(jnp.array([4.0, -0.5]), tx.init(params), params)
    >>> updates.tolist()
    [-0.375, 0.0]
    """
    name = "adagrad_rda"
    _arguments.require_step(name, penalty, learning_rate)
    _validation.tree_at_least(0, name, initial_accumulator_value=initial_accumulator_value)
    _validation.tree_at_least(0, name, eps=eps)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        squares = jax.tree.map(lambda x: jnp.full_like(jnp.real(x), initial_accumulator_value), params)
        origin = jax.tree.map(jnp.array, params)
        start = jnp.zeros([], jnp.int32)
        return AdagradRDAState(start, _updates.zero(params), zeros, squares, origin)

    def step(gradients, state, params, extra_args):
        del params, extra_args
        rate = _updates.rate_at(learning_rate, state.count, state.step_sum)
        step_sum = state.step_sum + rate
        sums = jax.tree.map(lambda s, g: s + beside(rate, g) * g, state.gradient_sum, gradients)
        squares = jax.tree.map(lambda q, g: q + _updates.square(g), state.sum_of_squares, gradients)
        # Without any square yet there is no step.
        inverse = lambda q: jnp.where(q > 0, jax.lax.rsqrt(q + eps), 0.0)
        target = jax.tree.map(lambda x, s, q: x - inverse(q) * s, state.origin, sums, squares)
        point = penalty.prox(target, jax.tree.map(lambda q: inverse(q) * beside(step_sum, q), squares))
        count = _updates.increment(state.count)
        return point, AdagradRDAState(count, step_sum, sums, squares, state.origin)

    return _leaves.optimizer(name, penalty, init, step)


class FTRLProximalState(NamedTuple):
    """State of `ftrl_proximal`: two arrays per parameter.

    Attributes:
      count: the updates seen, int32; schedules count by it.
      active: the updates with a learning rate above 0, int32.
      sum_of_squares: Σ g_s².
      subgradient: the mean subgradient of g at the params, r.
    """

    count: jax.Array
    active: jax.Array
    sum_of_squares: chex.ArrayTree
    subgradient: chex.ArrayTree


def ftrl_proximal(
    learning_rate: optax.ScalarOrSchedule, penalty: base.Penalty, beta: chex.Numeric = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Follow the proximally regularised leader, each weight with its own learning rate.

    x_{t+1} minimises Σ_{s≤t} (⟨g_s, x⟩ + g(x)) + ½ Σ_s |x - x_s|²_{Q_s}, the Q adding up to
    H_t = (β + √(Σ_s g_s²))/α. So the penalty is that of each loss, summed as the losses are. (The
    logistic regression of 2013 adds its l1 once, to the sum of all losses.) Without a penalty it
    is AdaGrad: x - α g/(β + √Σ g²).

    It is computed from r, the subgradient of t·g at x_t divided by t, with τ = t/H_t; this gives the same
    points and needs no sum over all x_s:

        y = ((t - 1) r - g_t)/t,   x ← prox_τg(x + τ y),   r ← (x_t + τ y - x_{t+1})/τ.

    Args:
      learning_rate: α. Updates with 0 move nothing and are not averaged.
      beta: β > 0; it keeps the step of a weight without gradients at α/β.

    Raises:
      ValueError: if an argument is invalid; on update, without params or if the penalty has no prox in a
        diagonal metric.

    Source: McMahan 2011 (FTRL-Proximal), with the rates of
    McMahan et al. 2013 (Ad click prediction).

    >>> from proxlm import penalties
    >>> tx, params = ftrl_proximal(1.0, penalties.l1(1.0)), jnp.array([1.0, 1.0])
    >>> updates, state = tx.update(jnp.array([3.0, 0.0]), tx.init(params), params)
    >>> optax.apply_updates(params, updates).tolist()
    [0.0, 0.0]
    """
    name = "ftrl_proximal"
    _arguments.require_step(name, penalty, learning_rate)
    _validation.tree_positive(name, beta=beta)

    def init(params):
        zeros = lambda of: jax.tree.map(lambda x: jnp.zeros_like(of(x)), params)
        start = lambda: jnp.zeros([], jnp.int32)
        return FTRLProximalState(start(), start(), zeros(jnp.real), zeros(jnp.asarray))

    def step(gradients, state, params, extra_args):
        del extra_args
        rate = _updates.rate_at(learning_rate, state.count, _updates.zero(params))
        active = jnp.where(rate > 0, _updates.increment(state.active), state.active)
        t = jnp.maximum(active, 1).astype(rate.dtype)
        squares = jax.tree.map(lambda q, g: q + _updates.square(g), state.sum_of_squares, gradients)
        steps = jax.tree.map(lambda q: beside(rate * t, q) / (beta + jnp.sqrt(q)), squares)
        average = lambda r, g: (beside(t - 1, r) * r - g) / beside(t, r)
        mean = jax.tree.map(average, state.subgradient, gradients)
        target = jax.tree.map(lambda x, s, y: x + s * y, params, steps, mean)
        point = penalty.prox(target, steps)
        kept = jax.tree.map(_updates.left_over, target, point, steps, state.subgradient)
        count = _updates.increment(state.count)
        return point, FTRLProximalState(count, active, squares, kept)

    return _leaves.optimizer(name, penalty, init, step)
