"""The policy that samples n answers and keeps the one of highest reward.

All raise ValueError if shapes differ, n is below 1, or B is not a multiple of it.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation

__all__ = ["best", "expected", "kl_bound", "log_probs_of_best"]


@_validation.typed
def best(rewards: ArrayLike, n: int) -> jax.Array:
    """The row of the highest reward among each n rows that lie side by side, the first of equals.

    Args:
      rewards: [B]; NaN is never chosen before a number.

    Returns:
      Rows, int [B / n]: `jax.tree.map(lambda x: x[rows], samples)` keeps the best.

    >>> best(jnp.array([0.0, 2.0, 5.0, jnp.nan]), 2).tolist()
    [1, 2]
    """
    _validation.one_sequence(rewards=rewards)
    _validation.at_least(1, n=n)
    rewards = jnp.asarray(rewards)
    if rewards.size % n:
        raise ValueError(
            f"rewards has shape {rewards.shape}; expected a multiple of n={n}: all n answers to a "
            "prompt side by side."
        )
    groups = jnp.where(jnp.isnan(rewards), -jnp.inf, rewards).reshape(-1, n)
    return n * jnp.arange(groups.shape[0]) + jnp.argmax(groups, axis=1)


@_validation.typed
def expected(values: ArrayLike, rewards: ArrayLike, n: ArrayLike) -> jax.Array:
    """The mean value of the best of n, without bias from N ≥ n samples: every n of them are tried.

    Σₖ v₍ₖ₎ C(N - k, n - 1) / C(N, n), where v₍ₖ₎ belongs to the k-th highest reward, the first of
    equals first: as `best` would choose.

    Args:
      values: [N], what is asked about: the rewards themselves, or another score.
      rewards: [N], by which the best is chosen; NaN only where there is nothing else.
      n: from 1 to N, may be traced.

    Source: Nakano et al. (2021), WebGPT, appendix I; used so by Gao, Schulman and Hilton (2023).

    >>> f"{expected(jnp.array([5.0, 6.0, 7.0]), jnp.array([1.0, 3.0, 2.0]), 2):.4f}"
    '6.3333'
    """
    _validation.one_sequence(rewards=rewards)
    _validation.one_sequence(values=values)
    _validation.same_shape(rewards=rewards, values=values)
    rewards = jnp.asarray(rewards)
    _validation.scalar("expected", n=n)
    _validation.within(1, rewards.size, n=n)
    left = rewards.size - jnp.arange(1, rewards.size)  # samples below the k-th highest
    fewer = jnp.maximum(left - n + 1, 0) / left
    weights = n / rewards.size * jnp.concatenate([jnp.ones(1), jnp.cumprod(fewer)])
    return jnp.sum(weights * jnp.asarray(values)[jnp.argsort(-rewards.astype(float))])


@_validation.typed
def kl_bound(n: ArrayLike) -> jax.Array:
    """Log n - (n - 1)/n ≥ KL(best of n‖π), nats; equal where no two answers are alike.

    Source: Stiennon et al. (2020); an upper bound by Beirami et al. (2024).

    >>> f"{kl_bound(4):.4f}"
    '0.6363'
    """
    _validation.at_least(1, n=n)
    n = jnp.asarray(n, jnp.float32)
    return jnp.log(n) - (n - 1.0) / n


@_validation.typed
def log_probs_of_best(log_probs: ArrayLike, rewards: ArrayLike, n: ArrayLike) -> jax.Array:
    """The exact log-probabilities of the best of n, for outcomes that can be listed.

    p(y) = F(y)ⁿ - F₋(y)ⁿ over the outcomes with the reward of y, F and F₋ the chances of a reward
    at most and below it; outcomes of equal reward share it in proportion to π. Arrays are [N], an
    outcome each; n need not be whole.

    Source: Beirami et al. (2024).

    >>> uniform = jnp.log(jnp.full(2, 0.5))
    >>> jnp.exp(log_probs_of_best(uniform, jnp.array([0.0, 1.0]), 2)).tolist()
    [0.25, 0.75]
    """
    _validation.one_sequence(log_probs=log_probs)
    _validation.one_sequence(rewards=rewards)
    _validation.same_shape(log_probs=log_probs, rewards=rewards)
    _validation.scalar("log_probs_of_best", n=n)
    _validation.at_least(1, n=n)
    probs, rewards = jnp.exp(log_probs), jnp.asarray(rewards)
    # dead outcomes must not be divided by
    chance = lambda chosen: jnp.sum(jnp.where(chosen, probs[None], 0.0), axis=1)
    below = chance(rewards[None] < rewards[:, None])
    equal = chance(rewards[None] == rewards[:, None])
    share = jnp.where(equal > 0, ((below + equal) ** n - below**n) / jnp.where(equal > 0, equal, 1), 1)
    return jnp.asarray(log_probs) + jnp.log(share)
