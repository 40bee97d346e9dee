"""Advantages of one group [G, T] with a baseline that differs from token to token.

All raise ValueError if shapes differ, a mask is not boolean or G is below 2.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy.advantages import group, returns

__all__ = ["optimal_token", "score_energy"]


@_validation.typed
def score_energy(log_probs: ArrayLike, sum_of_squares: ArrayLike) -> jax.Array:
    """The squared norm of the score, ‖∇ log π(a)‖² = 1 - 2 π(a) + Σᵥ π(v)², with respect to the logits.

    Of sampled tokens a with the sums Σᵥ π(v)² over the vocabulary; any shape.

    >>> f"{score_energy(jnp.log(0.5), 0.5):.2f}"
    '0.50'
    """
    _validation.same_shape("score_energy", log_probs=log_probs, sum_of_squares=sum_of_squares)
    log_probs, sum_of_squares = _validation.floats(log_probs, sum_of_squares)
    return jnp.maximum(1.0 - 2.0 * jnp.exp(log_probs) + sum_of_squares, 0.0)


@_validation.typed
def optimal_token(
    rewards: ArrayLike, energies: ArrayLike, mask: ArrayLike, free_tail: bool = True
) -> jax.Array:
    """Aₜ = Gₜ - Bₜ with the baseline of least variance at every token, Bₜ = Σ Wₜ Gₜ / Σ Wₜ.

    Sums run over the group, t counts valid tokens, G is the reward still to come and Wₜ = Σₛ≤ₜ eₛ the energy
    of the response's gradient up to token t.

    Args:
      energies: e ≥ 0, [G, T], as `score_energy`; times w² where weights w correct the sampler.
      free_tail: True takes no baseline where only the longest response goes on; False takes its own return,
        which leaves an advantage of 0 there.

    Source: the optimal token baseline as verl 0.9.1 defines it ("tir_optimal_token_baseline", and
    without holes "optimal_token_baseline").

    >>> rewards, mask = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[True] * 2, [True, False]])
    >>> optimal_token(rewards, jnp.ones((2, 2)), mask).round(2).tolist()
    [[0.5, 0.0], [-0.5, 0.0]]
    """
    mask = jnp.asarray(mask)
    if mask.ndim != 2:
        remedy = "Use jax.vmap for several."
        raise _validation.invalid("mask.shape", mask.shape, "[G, T], of one group", remedy, "optimal_token")
    group.check_groups(mask.shape[0], mask.shape[0])
    _validation.same_shape("optimal_token", mask=mask, energies=energies)
    if jnp.shape(rewards) != mask.shape:
        expected = f"{mask.shape}, the shape of mask"
        raise _validation.invalid("rewards.shape", jnp.shape(rewards), expected, "", "optimal_token")
    to_go = jax.vmap(returns.reward_to_go)(rewards, mask)
    gathered = jnp.cumsum(aggregation.select(energies, mask, "energies"), axis=1)
    # without holes: the valid tokens of every row side by side, at its left end
    order = jnp.argsort(~mask, axis=1, stable=True)
    pack = lambda x: jnp.take_along_axis(x, order, axis=1)
    here, weights = pack(mask), jnp.where(pack(mask), pack(gathered), 0.0)
    packed = jax.vmap(aggregation.masked_deviation, 1, 1)(pack(to_go), here, weights)
    if free_tail:
        packed = jnp.where(jnp.sum(here, axis=0, keepdims=True) > 1, packed, pack(to_go))
    advantages = jnp.take_along_axis(packed, jnp.argsort(order, axis=1), axis=1)
    return jnp.where(mask, advantages, 0.0)
