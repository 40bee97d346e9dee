"""Schedules of strengths and of sparsity."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.transforms import _arguments, _leaves, _updates, debiasing

__all__ = ["ScheduledState", "cubic_sparsity", "scheduled"]


class ScheduledState(NamedTuple):
    """State of `scheduled`.

    Attributes:
      count: the updates seen, int32.
      inner: the state of the link that was made.
    """

    count: jax.Array
    inner: Any


def scheduled(
    make: Callable[[Any], optax.GradientTransformation], schedule: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """A link with a scheduled argument: at step n it is make(s(n)), such as a penalty of strength s(n).

    Use it to let the strength of a penalty rise or fall, in any link or optimizer:

        scheduled(lambda strength: apply_prox(penalties.l1(strength), 1e-3), schedule)

    The schedule is read at the number of earlier updates, as Optax reads that of a learning rate, and its
    number keeps its dtype. All links made must have states of the same form. With `every` above 1 in the
    link, the strength is the one at the update that applies the prox.

    Args:
      make: a pure function, number ↦ transformation. The number is traced.
      schedule: count ↦ that number, or a tree of numbers.

    Raises:
      ValueError: if make or the schedule cannot be called; on init, if make does not return a transformation.

    Source: `optax.inject_hyperparams`, which also keeps the numbers in the state, where they can
    be overwritten, but in the dtype of the params.

    >>> from proxlm import penalties
    >>> from proxlm.transforms import apply_prox
    >>> ramp = lambda count: 1.0 * count
    >>> tx = scheduled(lambda strength: apply_prox(penalties.l1(strength), 0.5), ramp)
    >>> params = jnp.array([3.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.zeros(1), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params.tolist()  # 3 - 0.5 · (0 + 1 + 2)
    [1.5]
    """
    for argument, given in (("make", make), ("schedule", schedule)):
        if not callable(given):
            raise ValueError(
                f"scheduled: {argument} must be a function, got {given!r}. Write "
                "scheduled(lambda strength: apply_prox(penalties.l1(strength), 1e-3), schedule)."
            )

    def link(count):
        made = make(schedule(count))
        _arguments.require_link("scheduled", "what make returns", made)
        return optax.with_extra_args_support(made)

    def init(params):
        count = jnp.zeros([], jnp.int32)
        return ScheduledState(count, link(count).init(params))

    def advance(update_of, updates, state, params=None, **extra_args):
        made = update_of(link(state.count), state.inner)
        updates, inner = made(updates, state.inner, params, **extra_args)
        return updates, ScheduledState(_updates.increment(state.count), inner)

    update = functools.partial(advance, lambda made, inner: made.update)
    return _leaves.penalised(init, update, functools.partial(advance, debiasing.unpenalised_of))


@_validation.typed
def cubic_sparsity(final: chex.Numeric, begin: int, end: int, initial: chex.Numeric = 0.0) -> optax.Schedule:
    """A schedule of sparsity that rises fast while many weights are redundant, and slowly at the end.

    s(n) = s_f + (s_i - s_f) (1 - (n - b) / (e - b))³ for b ≤ n ≤ e; s_i before, s_f after.

    Args:
      final: s_f in [0, 1], the share reached at `end`. May be traced.
      begin: b ≥ 0, an update.
      end: e > b, an update.
      initial: s_i in [0, 1]. May be traced.

    Raises:
      ValueError: if an argument is invalid.

    Source: Zhu & Gupta 2017.

    >>> ramp = cubic_sparsity(0.8, begin=100, end=300)
    >>> [round(float(ramp(n)), 3) for n in (0, 100, 200, 300, 1000)]
    [0.0, 0.0, 0.7, 0.8, 0.8]
    """
    _validation.integer(0, "cubic_sparsity", begin=begin)
    _validation.integer(1, "cubic_sparsity", end=end)
    if begin >= end:
        raise ValueError(f"cubic_sparsity: begin must be before end, got {begin} and {end}.")
    _arguments.require_share("cubic_sparsity", "final", final)
    _arguments.require_share("cubic_sparsity", "initial", initial)

    def schedule(count):
        done = jnp.clip((count - begin) / (end - begin), 0.0, 1.0)
        return jnp.asarray(final + (jnp.asarray(initial) - final) * (1.0 - done) ** 3)

    return schedule
