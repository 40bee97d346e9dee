"""Advantages of one sequence [T] without a critic, or with one whose λ depends on the length.

Rewards, values and masks are [T], the results 0 where masked; γ, λ and `holes` are those of `gae`. All raise
ValueError if shapes differ, a mask is not boolean or a setting is out of range.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy._finite import Number
from proxlm.policy.advantages.temporal import gae

__all__ = ["adaptive_lambda", "decoupled_gae", "over_tokens", "remax", "reward_to_go"]


@_validation.typed
def reward_to_go(
    rewards: ArrayLike,
    mask: ArrayLike,
    discount: Number = 1.0,
    *,
    holes: str = "skip",
    discounts: ArrayLike | None = None,
) -> jax.Array:
    """The reward still to come, Gₜ = rₜ + γ Gₜ₊₁ over the valid tokens, γ with the `discounts` of `gae`.

    Source: Williams (1992); REINFORCE++ (Hu 2025) whitens it over the batch.

    >>> reward_to_go(jnp.array([0.0, jnp.nan, 1.0]), jnp.array([True, False, True]), 0.5)
    Array([0.5, 0. , 1. ], dtype=float32)
    """
    zeros = jnp.zeros(jnp.shape(rewards))
    return gae(rewards, zeros, mask, discount, 1.0, holes=holes, discounts=discounts)[0]


@_validation.typed
def remax(rewards: ArrayLike, greedy_score: Number, mask: ArrayLike, discount: Number = 1.0) -> jax.Array:
    """The reward to come minus that of the greedy response, Gₜ - r(greedy), of likeliest tokens.

    Source: Li et al. (2023), ReMax.

    >>> remax(jnp.array([0.0, 1.0]), 0.25, jnp.ones(2, bool))
    Array([0.75, 0.75], dtype=float32)
    """
    return jnp.where(mask, reward_to_go(rewards, mask, discount) - greedy_score, 0.0)


@_validation.typed
def over_tokens(per_sequence: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Spreads one number per sequence, [...], over its valid tokens, [..., T].

    >>> over_tokens(jnp.array([2.0]), jnp.array([[True, False]])).tolist()
    [[2.0, 0.0]]
    """
    given, expected = jnp.shape(per_sequence), jnp.shape(mask)[:-1]
    if given != expected:
        expected = f"{expected}, one number for each row of the mask"
        raise _validation.invalid("per_sequence.shape", given, expected, "", "over_tokens")
    spread = jnp.broadcast_to(jnp.asarray(per_sequence)[..., None], jnp.shape(mask))
    return aggregation.select(spread, mask, "per_sequence")


@_validation.typed
def adaptive_lambda(mask: ArrayLike, alpha: Number = 0.05) -> jax.Array:
    """The λ [...] of sequences [..., T] of l tokens, max(0, 1 - 1 / (α l)): longer ones are discounted less.

    Source: VAPO (Yue et al. 2025).

    >>> adaptive_lambda(jnp.ones((1, 40), bool), alpha=0.05).tolist()
    [0.5]
    """
    _validation.boolean("adaptive_lambda", mask=mask)
    if not jnp.ndim(mask):
        raise _validation.invalid("mask.shape", (), "[..., T]", "Give a sequence.", "adaptive_lambda")
    _validation.positive("adaptive_lambda", alpha=alpha)
    length = jnp.maximum(jnp.sum(jnp.asarray(mask), axis=-1), 1)
    return jnp.maximum(1.0 - 1.0 / (alpha * length), 0.0)


@_validation.typed
def decoupled_gae(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike,
    discount: Number = 1.0,
    policy_lambda: Number = 0.95,
    critic_lambda: Number = 1.0,
    *,
    holes: str = "skip",
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantages by one λ and returns by another: the critic learns without bias by λ = 1.

    Args:
      policy_lambda: λ of the advantages, in [0, 1]; `adaptive_lambda` gives VAPO's.
      critic_lambda: λ of the returns, in [0, 1].

    Source: VC-PPO (Yuan et al. 2025); VAPO (Yue et al. 2025).

    >>> rewards, mask = jnp.array([0.0, 1.0]), jnp.ones(2, bool)
    >>> decoupled_gae(rewards, jnp.array([0.0, 0.5]), mask, policy_lambda=0.0)
    (Array([0.5, 0.5], dtype=float32), Array([1., 1.], dtype=float32))
    """
    _validation.within(0, 1, "decoupled_gae", policy_lambda=policy_lambda, critic_lambda=critic_lambda)
    one = lambda gae_lambda: gae(rewards, values, mask, discount, gae_lambda, holes=holes)
    return one(policy_lambda)[0], one(critic_lambda)[1]
