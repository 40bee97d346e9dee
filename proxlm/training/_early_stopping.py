"""Early stopping on a held-out loss: the best params so far, and how long they have been the best.

Two pure functions, for a loop inside jit and for one on the host alike.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation


class BestParams(NamedTuple):
    """The params with the lowest held-out loss so far.

    Attributes:
      params: those of the lowest held-out loss.
      loss: that loss, float32 []; infinity before the first update.
      step: the step after which it was measured, int32 [].
      waited: updates since then, int32 []; a fit stops where this reaches its patience.
    """

    params: optax.Params
    loss: jax.Array
    step: jax.Array
    waited: jax.Array


@_validation.typed
def init_best_params(params: optax.Params) -> BestParams:
    """A `BestParams` before any loss is known: the first finite one is better.

    >>> float(init_best_params(jnp.ones(2)).loss)
    inf
    """
    zero = jnp.zeros((), jnp.int32)
    return BestParams(params, jnp.full((), jnp.inf, jnp.float32), zero, zero)


@_validation.typed
def update_best_params(
    best: BestParams, params: optax.Params, loss: chex.Numeric, step: chex.Numeric, margin: chex.Numeric = 0.0
) -> BestParams:
    """Replaces the best params if the new held-out loss is lower: L < L_best − margin.

    A loss that is NaN is never better.

    Args:
      best: of `init_best_params` or of an update.
      params: the new ones.
      loss: their held-out loss, a scalar.
      step: the steps taken so far, a scalar.
      margin: by how much a loss has to be lower to count as better, ≥ 0.

    >>> best = update_best_params(init_best_params(jnp.ones(1)), jnp.ones(1), 0.5, step=10)
    >>> best = update_best_params(best, jnp.zeros(1), 0.6, step=20)
    >>> best.params.tolist(), float(best.loss), int(best.step), int(best.waited)
    ([1.0], 0.5, 10, 1)
    """
    loss = jnp.asarray(loss, jnp.float32)
    better = loss < best.loss - margin
    zero = jnp.zeros((), jnp.int32)
    new = BestParams(params, loss, jnp.asarray(step, jnp.int32), zero)
    old = best._replace(waited=best.waited + 1)
    return jax.tree.map(lambda one, other: jnp.where(better, one, other), new, old)
