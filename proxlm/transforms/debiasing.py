"""Healing: from some update on, what is zero stays zero, and what is left trains unpenalised."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import _trees
from proxlm.penalties.groups import _partition
from proxlm.transforms import _arguments, _leaves


class DebiasState(NamedTuple):
    """State of `debias` and `freeze_zeros`.

    Attributes:
      count: the updates seen, int32.
      inner: the state of the link that is dropped; () of `freeze_zeros`.
    """

    count: jax.Array
    inner: Any


def freeze_zeros(
    start: int = 0, over: _partition.Grouping | None = None
) -> optax.GradientTransformationExtraArgs:
    """From update `start` on, a weight that is exactly 0 stays so: u_i ↦ 0 where params_i = 0.

    Before, updates pass as they are. There is no mask to keep: the zeros of the params are the
    mask. They are bit for bit zero in any dtype, whatever the update there, NaN included. A weight
    that starts at 0, such as a bias, and has not moved by then never will: leave such leaves out
    with `optax.masked`.

    As the last link it may follow a prox, since it moves no weight. Behind a `proximal` optimizer
    whose penalty is to end at the same update, let the strength fall to 0 with `scheduled`; around
    a link such as `apply_prox`, `debias` does both.

    Args:
      start: the number of updates that pass before. May be traced.
      over: freeze a weight only where its whole group is zero, such as grouping.axes(0); None
        freezes single weights. Leaves in no group pass.

    Returns:
      The transformation. It ignores extra arguments; updates come in the dtype of the params.

    Raises:
      ValueError: if start is no integer ≥ 0 or over not a grouping; and, on update, without params.

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
        _arguments.require_params("freeze_zeros", params)

        def step(updates, count, params):
            frozen = _freeze("freeze_zeros", updates, params, over)
            late = count >= start
            updates = jax.tree.map(lambda a, b: jnp.where(late, a, b), frozen, updates)
            return _trees.narrow(updates, params), optax.safe_increment(count)

        updates, count = _leaves.over_trainable(step, updates, state.count, params, _leaves.as_given)
        return updates, DebiasState(count, ())

    return optax.GradientTransformationExtraArgs(init, update)


def debias(
    link: optax.GradientTransformation, start: int, over: _partition.Grouping | None = None
) -> optax.GradientTransformationExtraArgs:
    """Drops a last link from update `start` on, and freezes the zeros it has made.

    Before `start` the link acts; from then on, `freeze_zeros` in its place: the support is what it
    was, and the weights on it lose the bias of the penalty (debiasing, as in relaxed lasso). The
    link's state and its cost end there, too. The base optimizer, before it in the chain, goes on:

        optax.chain(optax.adam(1e-3), debias(apply_prox(penalties.l1(1e-2), 1e-3), 5_000))

    Args:
      link: what ends a chain: `apply_prox`, `prune_to`, `scheduled` of these. Not a whole
        optimizer, which would be dropped with its prox.
      start: the number of updates that the link sees. May be traced.
      over: as in `freeze_zeros`.

    Returns:
      The transformation. Extra arguments are handed on to the link; updates come in the dtype of
      the params.

    Raises:
      ValueError: if the link is none, start is no integer ≥ 0 or over not a grouping; and, on
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
    _arguments.require_link("debias", "link", link)
    _require("debias", start, over)
    link = optax.with_extra_args_support(link)

    def init(params):
        return DebiasState(jnp.zeros([], jnp.int32), link.init(params))

    def update(updates, state, params=None, **extra_args):
        _arguments.require_params("debias", params)

        def step(updates, inner, params):
            late = lambda: (_trees.narrow(_freeze("debias", updates, params, over), params), inner)

            def early():
                moved, after = link.update(updates, inner, params, **extra_args)
                return _trees.narrow(moved, params), after

            return jax.lax.cond(state.count >= start, late, early)

        updates, inner = _leaves.over_trainable(step, updates, state.inner, params, _leaves.as_given)
        return updates, DebiasState(optax.safe_increment(state.count), inner)

    return optax.GradientTransformationExtraArgs(init, update)


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
