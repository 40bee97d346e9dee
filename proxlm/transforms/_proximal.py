"""The one proximal step that every link of this kind is made of."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import _trees, base
from proxlm.penalties.compose import calculus
from proxlm.transforms import _arguments, _leaves, _states, _updates, preconditioners
from proxlm.transforms._updates import beside


class ProximalState(NamedTuple):
    """State of `proximal_step`, `apply_prox`, `proximal` and of the optimizers made with them.

    Attributes:
      count: the updates that the inner optimizer has emitted, int32.
      step_sum: the sum of their learning rates since the last prox.
      anchor: the params at `init`, or None without an anchor.
      inner_state: the state of the inner optimizer; empty without one.
    """

    count: jax.Array
    step_sum: jax.Array
    anchor: Any
    inner_state: Any


class Scaled(NamedTuple):
    """The inner state of `proximal_step`, which multiplies by the learning rate itself."""


class Rule(NamedTuple):
    """The settings of a prox that follows an optimizer, named as the arguments of `proximal`.

    Attributes:
      name: the function that the user called, for messages.
      scales: whether the updates are still to be multiplied by -learning_rate.
      eps: ε and ε_root of an Adam inside, which the dtype of the params must be able to hold.
    """

    name: str
    penalty: base.Penalty
    learning_rate: optax.ScalarOrSchedule
    scales: bool = False
    preconditioner: preconditioners.Preconditioner | None = None
    floor: chex.Numeric = 0.0
    cap: chex.Numeric = jnp.inf
    every: int = 1
    anchored: bool = False
    eps: tuple[chex.Numeric, chex.Numeric] | None = None


def follow(
    inner: optax.GradientTransformation | optax.MultiSteps,
    rule: Rule,
    require: Callable[[optax.OptState, chex.ArrayTree], None] = lambda state, params: None,
) -> optax.GradientTransformationExtraArgs:
    """Follows an inner optimizer with a prox: x ↦ prox_tg(x + u), u the inner update.

    `require` sees the first state of the inner optimizer and the params, and raises where no prox may follow.

    >>> from proxlm import penalties
    >>> tx = follow(optax.identity(), Rule("doc", penalties.l1(1.0), 0.5, scales=True))
    >>> tx.update(jnp.ones(1), tx.init(jnp.full(1, 3.0)), jnp.full(1, 3.0))[0].tolist()
    [-1.0]
    """
    inner = _as_transformation(rule.name, inner)
    init = functools.partial(_begin, inner, rule, require)

    def advance(penalised, updates, state, params=None, **extra_args):
        params = _arguments.require_params(rule.name, params)
        inner_update = functools.partial(inner.update, **extra_args)
        everything = lambda params: params
        moved, after = _leaves.over_trainable(
            rule.name, inner_update, updates, state.inner_state, params, only=everything
        )
        emitted = _has_emitted(rule.name, state.inner_state, after)
        rate = _updates.rate_at(rule.learning_rate, state.count, state.step_sum)
        step_sum = state.step_sum + jnp.where(emitted, rate, 0.0)
        count = jnp.where(emitted, _updates.increment(state.count), state.count)
        always = emitted is True and isinstance(rule.every, int) and rule.every == 1
        due = penalised and (always or jnp.logical_and(emitted, count % rule.every == 0))

        def step(moved, kept, params):
            if rule.scales:
                moved = jax.tree.map(lambda u: -beside(rate, u) * u, _trees.promote(moved))
            read = functools.partial(_read, rule, state.inner_state, after, params, updates, moved, rate)
            return _step(rule, due, read, kept, params)

        kept, passes = (state.anchor, step_sum), not rule.scales
        result, (anchor, left) = _leaves.over_trainable(rule.name, step, moved, kept, params, passes)
        return result, ProximalState(count, left, anchor, after)

    return _leaves.penalised(init, functools.partial(advance, True), functools.partial(advance, False))


def _begin(inner, rule, require, params):
    """The first state."""
    _leaves.require_trainable(rule.name, rule.penalty, params)
    inner_state = inner.init(params)
    require(inner_state, params)
    trained = _leaves.trainable(params)
    if rule.eps is not None:
        _arguments.require_eps(rule.name, trained, *rule.eps)
    zero = _updates.zero(_trees.promote(trained))
    if rule.preconditioner is not None:
        _states.require_readable(rule.preconditioner, inner_state)
        jax.eval_shape(lambda x: _tried(rule, inner_state, x), trained)
    # A copy, so that the params may be donated.
    anchor = jax.tree.map(jnp.array, trained) if rule.anchored else None
    return ProximalState(jnp.zeros([], jnp.int32), zero, anchor, inner_state)


def _tried(rule, state, params):
    """A prox in the metric, for its shapes alone: raises now what would be raised at the first update."""
    divisor = _states.diagonal(rule.preconditioner, state, state, params, params)
    return rule.penalty.prox(_trees.promote(params), _trees.promote(divisor))


def _step(rule, due, read, kept, params):
    """The prox where it is due, and else the inner update; with the anchor and the step sum that are left."""
    anchor, step_sum = kept

    def move():
        step_size, update = read(step_sum)
        goal = calculus.translate(rule.penalty, anchor) if rule.anchored else rule.penalty
        # Of params + u alone, so that u need not be kept beside it.
        target = jax.tree.map(jnp.add, _trees.promote(params), _trees.promote(update))
        point = goal.prox(target, step_size)
        return _updates.updates_to(point, params), (anchor, jnp.zeros_like(step_sum))

    def wait():
        return _trees.narrow(read(step_sum)[1], params), kept

    if isinstance(due, bool):
        return move() if due else wait()
    return jax.lax.cond(due, move, wait)


def _read(rule, before, after, params, gradients, moved, rate, step_sum):
    """The step sizes, and the inner update shortened where these are bounded."""
    if rule.preconditioner is None:
        return step_sum, moved
    divisor = _states.diagonal(rule.preconditioner, before, after, params, gradients)
    divisor = _trees.widen(rule.name, divisor)
    if preconditioners.unbounded(rule.floor, rule.cap):
        return jax.tree.map(functools.partial(_free, step_sum), divisor), moved
    bounded = functools.partial(_bounded, rule.floor, rule.cap)
    # Lazy steps are as many equal ones, so that floor and cap mean the same.
    mean = functools.partial(bounded, step_sum / rule.every)
    total = jax.tree.map(lambda d: rule.every * mean(d), divisor)
    shorten = lambda u, d: _shorten(u, bounded(rate, d), _free(rate, d))
    return total, jax.tree.map(shorten, _trees.widen(rule.name, moved), divisor)


def _free(rate, divisor):
    return rate.astype(divisor.dtype) / jnp.abs(divisor)


def _bounded(floor, cap, rate, divisor):
    seen = divisor > 0
    # D is the root of what the state holds, so that its square is in range.
    known = jnp.where(seen, divisor, 0.0)
    rms = jnp.sqrt(jnp.tensordot(known, known, divisor.ndim, precision="highest") / divisor.size)
    bounded = jnp.where(seen, jnp.maximum(divisor, floor * rms), -divisor)
    return jnp.minimum(rate / bounded, cap).astype(divisor.dtype)


def _shorten(update, size, free):
    """-t m for -(η/D) m where t < η/D; elsewhere the update as it is."""
    bound = size < free
    return jnp.where(bound, size / jnp.where(bound, free, 1.0) * update, update)


def _as_transformation(name, inner):
    if isinstance(inner, optax.MultiSteps):
        # Its own gradient_transformation() would lose the extra arguments.
        update: Any = inner.update
        return optax.GradientTransformationExtraArgs(inner.init, update)
    _arguments.require_link(name, "inner", inner)
    return optax.with_extra_args_support(inner)


def _has_emitted(name, before, after):
    """True, or whether the one MultiSteps inside has just emitted an update."""
    old, new = (_states.find(state, optax.MultiStepsState) for state in (before, after))
    if len(old) > 1:
        raise ValueError(
            f"{name}: inner holds {len(old)} MultiSteps, which may emit at different times. "
            "Put one around them all."
        )
    return old[0].gradient_step != new[0].gradient_step if old else True
