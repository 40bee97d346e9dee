"""Early stopping on a held-out loss: the best params so far, and how long they have been the best.

Two pure functions, for a loop inside jit and for one on the host alike.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp


class Best(NamedTuple):
    """The best of the params judged so far.

    Attributes:
      params: those of the lowest held-out loss.
      loss: that loss, float32 []; infinity before the first judgement.
      step: the step after which they were judged, int32 [].
      waited: judgements since then, int32 []; a fit stops where this reaches its patience.
    """

    params: Any
    loss: jax.Array
    step: jax.Array
    waited: jax.Array


def none_yet(params: Any) -> Best:
    """Starts with no judgement: any finite loss is better.

    Args:
      params: a pytree of arrays, kept until the first judgement.

    Returns:
      The `Best` that `observe` goes on from.

    >>> float(none_yet(jnp.ones(2)).loss)
    inf
    """
    zero = jnp.zeros((), jnp.int32)
    return Best(params, jnp.full((), jnp.inf, jnp.float32), zero, zero)


def observe(
    best: Best, params: Any, loss: chex.Numeric, step: chex.Numeric, margin: chex.Numeric = 0.0
) -> Best:
    """Takes params whose held-out loss L beats the best: L < L_best − margin; otherwise waits.

    A loss that is NaN is never better.

    Args:
      best: what was seen before.
      params: those judged now.
      loss: their held-out loss, a scalar.
      step: the steps taken so far, a scalar.
      margin: by how much a loss has to be lower to count as better, ≥ 0.

    Returns:
      The best of both.

    >>> best = observe(none_yet(jnp.ones(1)), jnp.ones(1), 0.5, step=10)
    >>> best = observe(best, jnp.zeros(1), 0.6, step=20)
    >>> best.params.tolist(), float(best.loss), int(best.step), int(best.waited)
    ([1.0], 0.5, 10, 1)
    """
    loss = jnp.asarray(loss, jnp.float32)
    better = loss < best.loss - margin
    zero = jnp.zeros((), jnp.int32)
    new = Best(params, loss, jnp.asarray(step, jnp.int32), zero)
    old = best._replace(waited=best.waited + 1)
    return jax.tree.map(lambda one, other: jnp.where(better, one, other), new, old)
