"""Baselines that differ from token to token, for the answers of one group."""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, aggregation
from proxlm.policy.advantages import group, returns


def score_energy(log_probs: jax.typing.ArrayLike, sum_of_squares: jax.typing.ArrayLike) -> jax.Array:
    """‖∇ log π(a)‖² = 1 - 2 π(a) + Σᵥ π(v)², with respect to the logits.

    Args:
      log_probs: nats, log π(a) of the tokens that were drawn, any shape.
      sum_of_squares: Σᵥ π(v)² over the vocabulary, the same shape.

    Returns:
      An array of that shape.

    Raises:
      ValueError: if the shapes differ.

    >>> f"{score_energy(jnp.log(0.5), 0.5):.2f}"
    '0.50'
    """
    _validation.same_shape(log_probs=log_probs, sum_of_squares=sum_of_squares)
    log_probs, sum_of_squares = _validation.floats(log_probs, sum_of_squares)
    return 1.0 - 2.0 * jnp.exp(log_probs) + sum_of_squares


def optimal_token(
    rewards: jax.typing.ArrayLike,
    energies: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    epsilon: float = 1e-8,
    free_tail: bool = True,
) -> jax.Array:
    """Aₜ = Gₜ - Bₜ with Bₜ = Σ Wₜ Gₜ / (Σ Wₜ + ε): the baseline of least variance at every token.

    Sums run over the group, t counts valid tokens, G is the reward still to come and Wₜ = Σₛ≤ₜ eₛ
    the energy that the answer's gradient has gathered so far.

    Args:
      rewards: [G, T].
      energies: e ≥ 0, [G, T], as `score_energy`; times w² where weights w correct the sampler.
      mask: bool [G, T].
      epsilon: above 0.
      free_tail: no baseline where only the longest answer still goes on; False takes its own
        return, which leaves an advantage of 0 there.

    Returns:
      Advantages [G, T], 0 where masked.

    Raises:
      ValueError: if shapes are wrong, G is below 2 or ε not positive.

    Source: the optimal token baseline as verl 0.9.1 defines it ("tir_optimal_token_baseline", and
    without holes "optimal_token_baseline").

    >>> rewards, mask = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[True] * 2, [True, False]])
    >>> optimal_token(rewards, jnp.ones((2, 2)), mask).round(2).tolist()
    [[0.5, 0.0], [-0.5, 0.0]]
    """
    _validation.positive(epsilon=epsilon)
    mask = jnp.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}; expected [G, T], the answers of one group.")
    group.check_groups(mask.shape[0], mask.shape[0])
    to_go = jax.vmap(returns.reward_to_go)(rewards, mask)
    gathered = jnp.cumsum(aggregation.select(energies, mask, "energies"), axis=1)
    # holes out: the valid tokens of every row side by side, at its left end
    order = jnp.argsort(~mask, axis=1, stable=True)
    pack = lambda x: jnp.take_along_axis(x, order, axis=1)
    here, weights = pack(mask), jnp.where(pack(mask), pack(gathered), 0.0)
    baseline = jnp.sum(weights * pack(to_go), axis=0) / (jnp.sum(weights, axis=0) + epsilon)
    if free_tail:
        baseline = jnp.where(jnp.sum(here, axis=0) > 1, baseline, 0.0)
    packed = pack(to_go) - baseline[None]
    advantages = jnp.take_along_axis(packed, jnp.argsort(order, axis=1), axis=1)
    return jnp.where(mask, advantages, 0.0)
