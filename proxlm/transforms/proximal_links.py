"""The proximal step as the last link of an Optax chain."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import _trees, base
from proxlm.penalties.compose import calculus
from proxlm.transforms import _arguments, _updates


class ApplyProxState(NamedTuple):
    """State of `apply_prox`.

    Attributes:
      count: the updates seen, int32.
      step_sum: the sum of the learning rates since the last prox.
      anchor: the params at `init`, or None without an anchor.
    """

    count: jax.Array
    step_sum: jax.Array
    anchor: Any


def apply_prox(
    penalty: base.Penalty,
    learning_rate: optax.ScalarOrSchedule,
    *,
    every: int = 1,
    anchored: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Ends a chain with a proximal step: u ↦ prox_tg(params + u) - params, t the learning rate.

    After plain SGD this is the proximal gradient method for loss + g. After a preconditioner such
    as Adam it is decoupled, as the decay of AdamW is: the threshold knows nothing of the metric.

    It must be the last link, since whatever is added to its update moves weights off their exact
    zeros; and it must be given the learning rate that scaled u. A schedule is read at the number
    of earlier updates, as `optax.scale_by_schedule` reads it. The step is computed in float32 (in
    float64 for float64 params), and its result rounded to the dtype of the params, in which the
    update is emitted. `optax.apply_updates` keeps exact zeros exact. Where the prox moves nothing
    the params arrive within one rounding of where the update alone takes them.

    `optax.contrib.schedule_free`, `optax.lookahead` and averages of params mix the result with
    other points, which loses the zeros. `optax.inject_hyperparams` rounds a learning rate to the
    dtype of the params unless it is given hyperparam_dtype=jnp.float32.

    Args:
      penalty: g; its strengths may be traced.
      learning_rate: t ≥ 0, a number, a traced scalar or a schedule.
      every: apply the prox at each `every`-th update only, with the sum of the learning rates since
        the last time as t. Other updates pass as they are.
      anchored: measure g from the params seen by `init`, kept in the state: the update becomes
        a + prox_tg(params + u - a) - params. With `squared_l2` this is a trust region around the
        pretrained weights (L2-SP, FedProx).

    Returns:
      The transformation. It ignores extra arguments.

    Raises:
      ValueError: if `penalty` is not a Penalty, `every` not a positive integer or `learning_rate`
        negative, NaN or not a scalar; and, on update, without params.

    Source: Duchi & Singer 2009 (forward-backward splitting) and, for `every`, lazy updates as in
    Langford, Li & Zhang 2009.

    >>> from proxlm import penalties
    >>> tx = optax.chain(optax.sgd(0.5), apply_prox(penalties.l1(1.0), 0.5))
    >>> params = jnp.array([2.0, 0.3])
    >>> updates, state = tx.update(jnp.array([1.0, 0.1]), tx.init(params), params)
    >>> optax.apply_updates(params, updates).tolist()
    [1.0, 0.0]
    """
    _arguments.require_step("apply_prox", penalty, learning_rate, every)

    def init(params):
        # A copy, so that the params may be donated.
        anchor = jax.tree.map(jnp.array, params) if anchored else None
        return ApplyProxState(jnp.zeros([], jnp.int32), jnp.zeros([]), anchor)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        _arguments.require_params(params)
        goal = calculus.translate(penalty, state.anchor) if anchored else penalty
        step_size = state.step_sum + _updates.rate_at(learning_rate, state.count)
        count = optax.safe_increment(state.count)

        def move():
            return proximal_update(goal, updates, params, step_size), jnp.zeros_like(step_size)

        def wait():
            return _trees.narrow(updates, params), step_size

        always = isinstance(every, int) and every == 1
        updates, step_sum = move() if always else jax.lax.cond(count % every == 0, move, wait)
        return updates, ApplyProxState(count, step_sum, state.anchor)

    return optax.GradientTransformationExtraArgs(init, update)


def proximal_update(
    penalty: base.Penalty,
    updates: chex.ArrayTree,
    params: chex.ArrayTree,
    step_size: chex.ArrayTree,
) -> chex.ArrayTree:
    """prox_tg(params + u) - params, in the dtype of the params, such that zeros stay exact.

    It is a function of params + u alone, so that u need not be kept next to it: where the prox
    moves nothing the params still arrive within one rounding of where u takes them.

    >>> from proxlm import penalties
    >>> x = jnp.array([2.0, 0.25], jnp.bfloat16)
    >>> proximal_update(penalties.l1(1.0), jnp.array([0.5, 0.0]), x, 0.5)
    Array([0, -0.25], dtype=bfloat16)
    """
    wide = _trees.widen("apply_prox", params)
    target = jax.tree.map(jnp.add, wide, _trees.widen("apply_prox", updates))
    return _updates.updates_to(penalty.prox(target, step_size), params)
