"""Advantages of answers that are judged by the best of their group, [G] each."""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation
from proxlm.policy.advantages import group


def best_minus_second(
    rewards: jax.typing.ArrayLike,
    valid: jax.typing.ArrayLike | None = None,
    epsilon: float | None = 1e-6,
    ddof: int = 1,
) -> jax.Array:
    """A = r_max - r_second for the best answer, 0 for the others: what it adds to best-of-G.

    Args:
      rewards: [G].
      valid: bool [G], or None: all.
      epsilon: divides by std(r) + ε; None does not divide.
      ddof: as in `group_relative`.

    Returns:
      [G].

    Raises:
      ValueError: if shapes are wrong, G is below 2 or ε not positive.

    Source: Tang et al. (2025, arXiv 2503.19595), as verl 0.9.1's pass@k defines it.

    >>> best_minus_second(jnp.array([1.0, 0.0, 3.0]), epsilon=None)
    Array([0., 0., 2.], dtype=float32)
    """
    _validation.positive(epsilon=epsilon)
    rewards, valid = group.check_group(rewards, valid)
    known = jnp.where(valid, rewards, -jnp.inf)
    best = jnp.argmax(known)
    is_best = jnp.arange(known.size) == best
    second = jnp.max(jnp.where(is_best, -jnp.inf, known))
    gap = jnp.where(jnp.isfinite(second), known[best] - second, 0.0)
    if epsilon is not None:
        gap = gap / group.deviation(group.centred(rewards, valid), valid, ddof, epsilon, inside=False)
    return jnp.where(is_best & valid, gap, 0.0)


def pass_at_k(
    rewards: jax.typing.ArrayLike,
    valid: jax.typing.ArrayLike | None = None,
    *,
    k: int,
    epsilon: float = 1e-6,
) -> jax.Array:
    """The advantage of being right or wrong when k answers of the group are judged by their best.

    With n answers of which w are wrong, R = 1 - C(w, k) / C(n, k) is the chance that k drawn ones
    hold a right one and σ = √(R (1 - R)); a right answer has A = (1 - R) / σ, a wrong one
    A = (1 - R - C(w-1, k-1) / C(n-1, k-1)) / σ.

    Args:
      rewards: [G]; an answer is right if its reward is above 0.
      valid: bool [G], or None: all.
      k: from 1 to G.
      epsilon: added to σ, above 0.

    Returns:
      [G], 0 where all are right or all wrong.

    Raises:
      ValueError: if shapes are wrong, G is below 2 or k not in 1 to G.

    Source: Chen et al. (2025), pass@k training.

    >>> pass_at_k(jnp.array([1.0, 0.0, 0.0]), k=1).round(2)
    Array([ 1.41, -0.71, -0.71], dtype=float32)
    """
    rewards, valid = group.check_group(rewards, valid)
    _validation.within(1, rewards.size, k=k)
    _validation.positive(epsilon=epsilon)
    right = valid & (rewards > 0)
    n, wrong = jnp.sum(valid), jnp.sum(valid & ~right)
    miss = _all_among(wrong, n, k)
    sigma = jnp.sqrt(jnp.maximum(miss * (1.0 - miss), 0.0))
    gain = jnp.where(right, miss, miss - _all_among(wrong - 1, n - 1, k - 1))
    return jnp.where(valid & (sigma > 0), gain / (sigma + epsilon), 0.0)


def _all_among(some, n, k):
    """C(some, k) / C(n, k): the chance that k drawn of n are all among `some` of them."""
    drawn = jnp.arange(k)
    chances = (some - drawn) / jnp.maximum(n - drawn, 1)
    return jnp.prod(jnp.clip(chances, 0.0, 1.0))
