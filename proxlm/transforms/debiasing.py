"""Debiasing: from some update on, what is zero stays zero, and what is left trains without the penalty."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.penalties import _trees
from proxlm.penalties.groups import _partition
from proxlm.transforms import _arguments, _leaves, _proximal, _states, _updates, pruning

__all__ = ["DebiasState", "debias", "freeze_zeros"]


class DebiasState(NamedTuple):
    """State of `debias` and `freeze_zeros`.

    Attributes:
      count: the updates seen, int32.
      inner: the state of the transformation that loses its penalty; () of `freeze_zeros`.
    """

    count: jax.Array
    inner: Any


def freeze_zeros(
    start: int = 0, over: _partition.Grouping | None = None
) -> optax.GradientTransformationExtraArgs:
    """From update `start` on, a weight that is exactly 0 stays so: u_i ↦ 0 where params_i = 0.

    Before, updates pass as they are. The zeros of the params are the mask, so none is kept in the state; they
    stay zero bit for bit in any dtype, whatever the update there, NaN included. A weight that starts at 0,
    such as a bias, and is still 0 at `start` stays 0: leave such leaves out with `optax.masked`.

    As the last transformation of a chain it may follow a prox, since it moves no weight. `debias` also ends
    the penalty.

    Args:
      start: the number of updates that pass before. May be traced.
      over: freeze a weight only where its whole group is zero, such as grouping.axes(0); None freezes single
        weights. Leaves in no group pass.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    >>> tx = freeze_zeros()
    >>> params = jnp.array([0.0, 2.0])
    >>> tx.update(jnp.array([0.5, 0.5]), tx.init(params), params)[0].tolist()
    [0.0, 0.5]
    """
    _require("freeze_zeros", start, over)

    def init(params):
        del params
        return DebiasState(jnp.zeros([], jnp.int32), ())

    def update(updates, state, params=None, **extra_args):
        del extra_args
        params = _arguments.require_params("freeze_zeros", params)

        def step(updates, count, params):
            frozen = _freeze("freeze_zeros", updates, params, over)
            late = count >= start
            updates = jax.tree.map(lambda a, b: jnp.where(late, a, b), frozen, updates)
            return _trees.narrow(updates, params), _updates.increment(count)

        updates, count = _leaves.over_trainable(
            "freeze_zeros", step, updates, state.count, params, passes=True
        )
        return updates, DebiasState(count, ())

    return optax.GradientTransformationExtraArgs(init, update)


def debias(
    penalised: optax.GradientTransformation, start: int, over: _partition.Grouping | None = None
) -> optax.GradientTransformationExtraArgs:
    """Ends a penalty at update `start`, and freezes the zeros that it has made.

    Before `start` the transformation acts as it is. From then on it goes on without its penalty, and
    `freeze_zeros` follows it: the support is what it was, and the weights on it lose the bias of the penalty
    (as in the relaxed lasso). The cost of the penalty ends there, too. It goes around the last transformation
    of a chain, or around a whole optimizer of this package:

        optax.chain(optax.scale_by_adam(), debias(proximal_step(penalties.l1(1e-2), 1e-3), 5_000))
        debias(proximal_adam(1e-3, penalties.l1(1e-2)), 5_000)

    Args:
      penalised: `proximal_step`, `apply_prox`, `prune_to`, `project`, `scheduled` of these; `proximal`,
        `proximal_sgd`, `proximal_adam` or `decoupled_proximal_adamw`. Dual averaging has no form without a
        penalty; and of a chain only the last part may be wrapped.
      start: the number of updates before. May be traced.

    Raises:
      ValueError: if an argument is invalid; on init, if `penalised` cannot go on without its penalty; and, on
        update, without params.

    Source: Meinshausen 2007 (relaxed lasso); Han et al. 2015 (retraining after pruning).

    >>> from proxlm import penalties
    >>> from proxlm.transforms import apply_prox
    >>> tx = debias(apply_prox(penalties.l1(1.0), 0.5), start=1)
    >>> params = jnp.array([2.0, 0.25])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.array([0.1, 0.1]), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> [round(x, 2) for x in params.tolist()]  # 2 + 0.1 - 0.5, and then + 0.1
    [1.7, 0.0]
    """
    _arguments.require_link("debias", "penalised", penalised)
    _require("debias", start, over)
    penalised = optax.with_extra_args_support(penalised)

    def init(params):
        inner = penalised.init(params)
        unpenalised_of(penalised, inner)
        return DebiasState(jnp.zeros([], jnp.int32), inner)

    def update(updates, state, params=None, **extra_args):
        params = _arguments.require_params("debias", params)
        unpenalised = unpenalised_of(penalised, state.inner)

        def step(updates, inner, params):
            def late():
                moved, after = unpenalised(updates, inner, params, **extra_args)
                return _trees.narrow(_freeze("debias", moved, params, over), params), after

            def early():
                moved, after = penalised.update(updates, inner, params, **extra_args)
                return _trees.narrow(moved, params), after

            return jax.lax.cond(state.count >= start, late, early)

        updates, inner = _leaves.over_trainable("debias", step, updates, state.inner, params, passes=True)
        return updates, DebiasState(_updates.increment(state.count), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def unpenalised_of(
    penalised: optax.GradientTransformation, state: Any
) -> Callable[..., tuple[chex.ArrayTree, Any]]:
    """The update of a transformation without its penalty; ValueError for one that has none.

    >>> from proxlm.transforms import prune_to
    >>> unpenalised_of(prune_to(0.5), prune_to(0.5).init(jnp.ones(2)))(jnp.ones(1), ())
    (Array([1.], dtype=float32), ())
    """
    if isinstance(penalised, _leaves.Penalised):
        return penalised.unpenalised
    if _moves_zeros_alone(state):
        return lambda updates, state, params=None, **extra_args: (updates, state)
    raise _validation.invalid(
        "penalised",
        _validation.Verbatim(f"one whose state holds {', '.join(_states.names(state)) or 'nothing'}"),
        "a transformation that can go on without its penalty",
        "Put debias around the last part of a chain alone, as in "
        "optax.chain(optax.adam(1e-3), debias(apply_prox(penalties.l1(1e-2), 1e-3), 5_000)).",
        "debias",
    )


def _moves_zeros_alone(state):
    """Whether a state is that of masks and chains of what only makes zeros, so that it may be dropped."""
    if isinstance(state, _proximal.ProximalState):
        return isinstance(state.inner_state, optax.EmptyState)
    if isinstance(state, optax.MaskedState):
        return _moves_zeros_alone(state.inner_state)
    if type(state) is tuple:
        return bool(state) and all(map(_moves_zeros_alone, state))
    return isinstance(state, pruning.PruneState)


def _freeze(name, updates, params, over):
    still = lambda u, size: jnp.where(size == 0, jnp.zeros_like(u), u)
    if over is None:
        return jax.tree.map(still, updates, params)
    sizes = jax.tree.map(jnp.abs, _trees.widen(name, params))
    groups = over.split(name, sizes)
    return groups.apply(still, (updates,), (groups.reduce(_partition.LARGEST, sizes),))


def _require(name, start, over):
    _arguments.require_count(name, "start", start, least=0)
    _arguments.require_grouping(name, over)
