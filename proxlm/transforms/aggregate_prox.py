"""Aggregate proximal gradient (AProx, of PARQ): an optimizer moves a point whose prox the params are."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import _trees, base
from proxlm.transforms import _arguments, _leaves, _states, _updates

__all__ = ["AProxState", "aprox"]


class AProxState(NamedTuple):
    """State of `aprox`: one array per parameter beside those of the inner optimizer.

    Attributes:
      count: the updates seen, int32.
      step_sum: the sum of the learning rates.
      latent: z, in at least float32.
      inner_state: the state of the inner optimizer.
    """

    count: jax.Array
    step_sum: jax.Array
    latent: chex.ArrayTree
    inner_state: optax.OptState


def aprox(
    inner: optax.GradientTransformation, penalty: base.Penalty, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Aggregate proximal gradient: z ← z + u, x = prox_{Sg}(z), S the sum of all learning rates.

    u is the update of an inner optimizer, from gradients at x. Over plain SGD with a constant rate
    this is dual averaging: x minimises Σ_s η (⟨g_s, x⟩ + g(x)) + |x - z_0|²/2. Over Adam and its
    like the threshold stays Euclidean, and another problem than min f + g is solved;
    `dual_averaging_adam` solves the stated one.

    With a set or quantised levels, z is the latent weight of straight-through training, and x its rounding.
    A penalty scheduled from soft to hard levels gives PARQ.

    It must be the last link of a chain. The inner optimizer sees z as its params, so that weight decay acts
    on z.

    Args:
      inner: the optimizer, its learning rate included.

    Raises:
      ValueError: if an argument is invalid; on update, without params.

    Source: Jin et al. 2025 (PARQ), section 3: AProx; Dockhorn et al. 2021 and Xiao 2009 before it.

    >>> from proxlm import penalties
    >>> tx, params = aprox(optax.sgd(0.5), penalties.l1(1.0), 0.5), jnp.array([2.0, 1.0])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.array([-1.0, 0.5]), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params.tolist(), state.latent.tolist()
    ([2.0, 0.0], [3.0, 0.5])
    """
    name = "aprox"
    _arguments.require_link(name, "inner", inner)
    _arguments.require_step(name, penalty, learning_rate)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        # A copy, so that the params may be donated.
        latent = jax.tree.map(jnp.array, _trees.promote(params))
        inner_state = inner.init(params)
        _states.require_rate(name, inner, inner_state, params, learning_rate)
        return AProxState(jnp.zeros([], jnp.int32), _updates.zero(latent), latent, inner_state)

    def step(gradients, state, params, extra_args):
        seen = _trees.narrow(state.latent, params)
        moves, inner_state = inner.update(gradients, state.inner_state, seen, **extra_args)
        latent = jax.tree.map(jnp.add, state.latent, _trees.promote(moves))
        step_sum = state.step_sum + _updates.rate_at(learning_rate, state.count, state.step_sum)
        point = penalty.prox(latent, step_sum)
        count = _updates.increment(state.count)
        return point, AProxState(count, step_sum, latent, inner_state)

    return _leaves.optimizer(name, penalty, init, step, widens=False)
