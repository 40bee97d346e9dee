"""Advantages by comparison: the rewards of one group, G answers to one prompt, against each other.

Written for one group, [G]; `by_group` runs one over a batch whose groups lie side by side.  `valid`
leaves answers out as if the group were smaller; an advantage without enough others is 0 (verl's is
the reward itself).  verl and TRL count an answer without a token too: give no `valid` for that.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, aggregation


def centred(rewards: jax.typing.ArrayLike, valid: jax.typing.ArrayLike | None = None) -> jax.Array:
    """A = r - mean(r): the expected gradient is (G - 1)/G of the true one, its direction right.

    Args:
      rewards: [G].
      valid: bool [G], or None: all.

    Returns:
      [G], 0 where not valid.

    Raises:
      ValueError: if shapes are wrong or G is below 2.

    Source: Dr. GRPO (Liu et al. 2025).

    >>> centred(jnp.array([1.0, 0.0, 2.0]))
    Array([ 0., -1.,  1.], dtype=float32)
    """
    rewards, valid = check_group(rewards, valid)
    return jnp.where(valid, rewards - aggregation.masked_mean(rewards, valid), 0.0)


def group_relative(
    rewards: jax.typing.ArrayLike,
    valid: jax.typing.ArrayLike | None = None,
    epsilon: float = 1e-4,
    ddof: int = 1,
    epsilon_inside: bool = False,
) -> jax.Array:
    """A = (r - mean(r)) / (std(r) + ε), which tilts the gradient towards easy and hard prompts.

    Args:
      rewards: [G].
      valid: bool [G], or None: all.
      epsilon: above 0; 1e-4 in TRL, 1e-6 in verl and tunix, 1e-9 in OpenRLHF.
      ddof: 1 divides the variance by G - 1, as all of them do; 0 by G.
      epsilon_inside: True divides by √(σ² + ε) instead.

    Returns:
      [G], 0 where not valid and where all rewards are equal.

    Raises:
      ValueError: if shapes are wrong, G is below 2, ε not positive or ddof negative.

    Source: GRPO (Shao et al. 2024).

    >>> group_relative(jnp.array([1.0, 0.0, 2.0]), epsilon=1.0)
    Array([ 0. , -0.5,  0.5], dtype=float32)
    """
    _validation.positive(epsilon=epsilon)
    difference = centred(rewards, valid)
    _, valid = check_group(rewards, valid)
    return difference / deviation(difference, valid, ddof, epsilon, epsilon_inside)


def batch_scaled(
    rewards: jax.typing.ArrayLike,
    group_size: int,
    valid: jax.typing.ArrayLike | None = None,
    epsilon: float = 1e-4,
    ddof: int = 1,
) -> jax.Array:
    """A = (r - mean of the group) / (std of the batch + ε): scaled, but no prompt is favoured.

    Args:
      rewards: [B], of groups that lie side by side.
      group_size: G.
      valid: bool [B], or None: all.
      epsilon: above 0.
      ddof: 1 divides the variance by B - 1, 0 by B.

    Returns:
      [B], 0 where not valid.

    Raises:
      ValueError: if shapes are wrong, B is not a multiple of G, G below 2 or ε not positive.

    Source: Liu et al. (2025), tricks or traps; TRL's `scale_rewards="batch"`.

    >>> batch_scaled(jnp.array([1.0, -1.0, 1.0, -1.0]), 2, epsilon=1.0, ddof=0).tolist()
    [0.5, -0.5, 0.5, -0.5]
    """
    _validation.positive(epsilon=epsilon)
    rewards, valid = check_group(rewards, valid)
    scale = deviation(rewards, valid, ddof, epsilon, inside=False)
    return by_group(centred, group_size, rewards, valid) / scale


def leave_one_out(rewards: jax.typing.ArrayLike, valid: jax.typing.ArrayLike | None = None) -> jax.Array:
    """A = r - the mean of the others: the expected gradient is the true one.

    Args:
      rewards: [G].
      valid: bool [G], or None: all.

    Returns:
      [G], 0 where not valid or alone.

    Raises:
      ValueError: if shapes are wrong or G is below 2.

    Source: RLOO (Kool et al. 2019; Ahmadian et al. 2024).

    >>> leave_one_out(jnp.array([1.0, 0.0, 2.0]))
    Array([ 0. , -1.5,  1.5], dtype=float32)
    """
    difference = centred(rewards, valid)
    _, valid = check_group(rewards, valid)
    count = jnp.sum(valid)
    return difference * (count / jnp.maximum(count - 1, 1))


def length_weighted(
    rewards: jax.typing.ArrayLike,
    lengths: jax.typing.ArrayLike,
    valid: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """A = r - Σ l r / Σ l: OPO's baseline, of least variance if a score grows with its length.

    Args:
      rewards: [G].
      lengths: [G], tokens.
      valid: bool [G], or None: all.

    Returns:
      [G], 0 where not valid.

    Raises:
      ValueError: if shapes are wrong or G is below 2.

    Source: Hao et al. (2025), on-policy RL with optimal reward baseline.

    >>> length_weighted(jnp.array([1.0, 0.0]), jnp.array([3, 1]))
    Array([ 0.25, -0.75], dtype=float32)
    """
    rewards, valid = check_group(rewards, valid)
    lengths = aggregation.select(lengths, valid, "lengths")
    total = jnp.sum(lengths)
    baseline = jnp.sum(lengths * rewards) / jnp.where(total > 0, total, 1.0)
    return jnp.where(valid, rewards - baseline, 0.0)


def by_group(baseline: Callable, group_size: int, *arrays: jax.Array) -> jax.Array:
    """Runs a function of one group over a batch of groups that lie side by side.

    Args:
      baseline: as those of this module, arrays [G] -> [G].
      group_size: G.
      *arrays: [B] each.

    Returns:
      [B].

    Raises:
      ValueError: if B is not a multiple of G, or G below 2.

    >>> by_group(centred, 2, jnp.array([1.0, 3.0, 5.0, 5.0]))
    Array([-1.,  1.,  0.,  0.], dtype=float32)
    """
    batch = jnp.shape(arrays[0])[0]
    check_groups(batch, group_size)
    split = lambda x: jnp.asarray(x).reshape(-1, group_size)
    return jax.vmap(baseline)(*map(split, arrays)).reshape(batch)


def check_groups(batch: int, group_size: int) -> None:
    """Asks that a batch divides into groups of at least 2.

    Raises:
      ValueError: saying which number does not fit.

    >>> check_groups(8, 4)
    """
    if group_size < 2:
        raise ValueError(
            f"group_size is {group_size}; expected at least 2: the answers of a group are each "
            "other's baseline. Sample more answers per prompt, or take a critic."
        )
    if batch % group_size:
        raise ValueError(
            f"a batch of {batch} does not divide into groups of group_size={group_size}; expected "
            f"a multiple of {group_size}."
        )


def check_group(
    rewards: jax.typing.ArrayLike, valid: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Asks for one group of at least 2; gives rewards, 0 where not valid, and the mask.

    >>> check_group(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))[0].tolist()
    [1.0, 0.0]
    """
    _validation.one_sequence(rewards=rewards)
    check_groups(jnp.size(rewards), jnp.size(rewards))
    valid = jnp.ones(jnp.shape(rewards), bool) if valid is None else jnp.asarray(valid)
    return aggregation.select(rewards, valid, "rewards"), valid


def deviation(difference, valid, ddof, epsilon, inside):
    """σ + ε, or √(σ² + ε), of the valid differences; its slope at σ = 0 is 0.

    >>> deviation(jnp.array([-1.0, 1.0]), jnp.ones(2, bool), 0, 0.5, inside=False).item()
    1.5
    """
    variance = aggregation.masked_var(difference, valid, ddof=ddof)
    if inside:
        return jnp.sqrt(variance + epsilon)
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0) + epsilon
