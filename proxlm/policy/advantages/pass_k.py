"""Advantages of responses that are judged by the best of their group; arguments and result as in `group`."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy._finite import Number
from proxlm.policy.advantages import group

__all__ = ["best_minus_second", "pass_at_k"]


@_validation.typed
def best_minus_second(
    rewards: ArrayLike, valid: ArrayLike | None = None, epsilon: Number | None = 1e-6, ddof: int = 1
) -> jax.Array:
    """A = r_max - r_second for the best response, 0 for the others: the gain of best-of-G by this one.

    Args:
      epsilon: divides by std(r) + ε; None does not divide.

    Source: Tang et al. (2025, arXiv 2503.19595), as verl 0.9.1's pass@k defines it.

    >>> best_minus_second(jnp.array([1.0, 0.0, 3.0]), epsilon=None)
    Array([0., 0., 2.], dtype=float32)
    """
    _validation.positive("best_minus_second", epsilon=epsilon)
    _validation.finite("best_minus_second", epsilon=epsilon)
    rewards, valid = group.check_group(rewards, valid)
    known = jnp.where(valid, rewards, -jnp.inf)
    best = jnp.argmax(known)
    is_best = jnp.arange(known.size) == best
    second = jnp.max(jnp.where(is_best, -jnp.inf, known))
    gap = jnp.where(jnp.isfinite(second), known[best] - second, 0.0)
    if epsilon is not None:
        deviation = aggregation.masked_deviation(rewards, valid)
        gap = gap / aggregation.masked_scale(deviation, valid, ddof, epsilon, inside=False)
    return jnp.where(is_best & valid, gap, 0.0)


@_validation.typed
def pass_at_k(
    rewards: ArrayLike, valid: ArrayLike | None = None, *, k: int, epsilon: Number = 1e-6
) -> jax.Array:
    """The advantage of a right or wrong response if k drawn ones are judged by the best of them.

    With n responses of which w are wrong, R = 1 - C(w, k) / C(n, k) is the chance that k drawn ones hold a
    right one, and σ = √(R (1 - R)). A right response has A = (1 - R) / σ, a wrong one A = (1 - R - C(w-1,
    k-1) / C(n-1, k-1)) / σ.

    Args:
      rewards: [G]; a response is right if its reward is above 0.
      k: from 1 to G.
      epsilon: ε > 0, added to σ.

    Source: Chen et al. (2025), pass@k training.

    >>> pass_at_k(jnp.array([1.0, 0.0, 0.0]), k=1).round(2)
    Array([ 1.41, -0.71, -0.71], dtype=float32)
    """
    rewards, valid = group.check_group(rewards, valid)
    _validation.integer(1, "pass_at_k", k=k)
    _validation.within(1, rewards.size, "pass_at_k", "Sample larger groups, or lower k.", k=k)
    _validation.positive("pass_at_k", epsilon=epsilon)
    _validation.finite("pass_at_k", epsilon=epsilon)
    right = valid & (rewards > 0)
    n, wrong = jnp.sum(valid), jnp.sum(valid & ~right)
    miss = _all_among(wrong, n, k)
    mixed = (wrong > 0) & (wrong < n)
    variance = miss * (1.0 - miss)
    varies = mixed & (variance > 0)
    sigma = jnp.sqrt(jnp.where(varies, variance, 1.0))
    gain = jnp.where(right, miss, miss - _all_among(wrong - 1, n - 1, k - 1))
    return jnp.where(valid & varies, gain / (sigma + epsilon), 0.0)


def _all_among(some, n, k):
    """C(some, k) / C(n, k): the chance that k drawn of n are all among `some` of them."""
    drawn = jnp.arange(k)
    chances = (some - drawn) / jnp.maximum(n - drawn, 1)
    return jnp.prod(jnp.clip(chances, 0.0, 1.0))
