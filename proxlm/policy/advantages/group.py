"""Advantages of a group: the rewards of the G responses to one prompt, compared with each other.

Written for one group: each takes rewards [G] and `valid`, bool [G] or None for all, and gives advantages
[G], 0 where not valid. `by_group` runs one over a batch whose groups lie side by side. What is not valid is
left out as if the group were smaller; an advantage without enough others is 0 (verl's is the reward itself),
and equal rewards give exactly 0. verl and TRL count a response without a token too: give no `valid` for
that. All raise ValueError if a shape is wrong, G is below 2 or a setting is out of range.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy._finite import Number

__all__ = [
    "batch_scaled",
    "by_group",
    "centred",
    "check_group",
    "check_groups",
    "group_relative",
    "leave_one_out",
    "length_weighted",
]


@_validation.typed
def centred(rewards: ArrayLike, valid: ArrayLike | None = None) -> jax.Array:
    """A = r - mean(r), as in Dr. GRPO: the expected gradient is (G - 1)/G of the true one.

    Source: Dr. GRPO (Liu et al. 2025).

    >>> centred(jnp.array([1.0, 0.0, 2.0]))
    Array([ 0., -1.,  1.], dtype=float32)
    """
    return aggregation.masked_deviation(*check_group(rewards, valid))


@_validation.typed
def group_relative(
    rewards: ArrayLike,
    valid: ArrayLike | None = None,
    epsilon: Number = 1e-4,
    ddof: int = 1,
    epsilon_inside: bool = False,
) -> jax.Array:
    """A = (r - mean(r)) / (std(r) + ε), as in GRPO: very easy and very hard prompts gain weight.

    Args:
      epsilon: ε > 0; 1e-4 in TRL, 1e-6 in verl and tunix, 1e-9 in OpenRLHF.
      ddof: 1 divides the variance by G - 1, as all of them do; 0 by G.
      epsilon_inside: True divides by √(σ² + ε) instead.

    Source: GRPO (Shao et al. 2024).

    >>> group_relative(jnp.array([1.0, 0.0, 2.0]), epsilon=1.0)
    Array([ 0. , -0.5,  0.5], dtype=float32)
    """
    _validation.positive("group_relative", epsilon=epsilon)
    _validation.finite("group_relative", epsilon=epsilon)
    rewards, valid = check_group(rewards, valid)
    deviation = aggregation.masked_deviation(rewards, valid)
    return deviation / aggregation.masked_scale(deviation, valid, ddof, epsilon, epsilon_inside)


@_validation.typed
def batch_scaled(
    rewards: ArrayLike, group_size: int, valid: ArrayLike | None = None, epsilon: Number = 1e-4, ddof: int = 1
) -> jax.Array:
    """A = (r - mean of the group) / (std of the batch + ε): scaled, and all prompts weigh the same.

    Of a batch [B] of groups that lie side by side; ε and `ddof` are those of `group_relative`.

    Source: Liu et al. (2025), tricks or traps; TRL's `scale_rewards="batch"`.

    >>> batch_scaled(jnp.array([1.0, -1.0, 1.0, -1.0]), 2, epsilon=1.0, ddof=0).tolist()
    [0.5, -0.5, 0.5, -0.5]
    """
    _validation.positive("batch_scaled", epsilon=epsilon)
    _validation.finite("batch_scaled", epsilon=epsilon)
    rewards, valid = check_group(rewards, valid)
    deviation = aggregation.masked_deviation(rewards, valid)
    scale = aggregation.masked_scale(deviation, valid, ddof, epsilon, inside=False)
    return by_group(centred, group_size, rewards, valid) / scale


@_validation.typed
def leave_one_out(rewards: ArrayLike, valid: ArrayLike | None = None) -> jax.Array:
    """A = r - the mean of the others, as in RLOO: the expected gradient is the true one.

    Source: RLOO (Kool et al. 2019; Ahmadian et al. 2024).

    >>> leave_one_out(jnp.array([1.0, 0.0, 2.0]))
    Array([ 0. , -1.5,  1.5], dtype=float32)
    """
    rewards, valid = check_group(rewards, valid)
    count = jnp.sum(valid)
    return aggregation.masked_deviation(rewards, valid) * (count / jnp.maximum(count - 1, 1))


@_validation.typed
def length_weighted(rewards: ArrayLike, lengths: ArrayLike, valid: ArrayLike | None = None) -> jax.Array:
    """A = r - Σ l r / Σ l, as in OPO: of least variance if the gradient's square grows with the length.

    Source: Hao et al. (2025), on-policy RL with optimal reward baseline.

    >>> length_weighted(jnp.array([1.0, 0.0]), jnp.array([3, 1]))
    Array([ 0.25, -0.75], dtype=float32)
    """
    rewards, valid = check_group(rewards, valid)
    _validation.same_shape("length_weighted", rewards=rewards, lengths=lengths)
    return aggregation.masked_deviation(rewards, valid, lengths)


@_validation.typed
def by_group(baseline: Callable[..., jax.Array], group_size: int, *arrays: jax.Array) -> jax.Array:
    """Runs a function of one group over a batch of groups that lie side by side.

    Args:
      baseline: as those of this module, arrays [G] -> [G].
      *arrays: [B] each.

    >>> by_group(centred, 2, jnp.array([1.0, 3.0, 5.0, 5.0]))
    Array([-1.,  1.,  0.,  0.], dtype=float32)
    """
    _validation.a_function("by_group", baseline=baseline)
    for array in arrays:
        _validation.one_sequence("by_group", arrays=array)
    _validation.same_shape("by_group", **{f"arrays[{i}]": array for i, array in enumerate(arrays)})
    batch = jnp.size(arrays[0])
    check_groups(batch, group_size)
    split = lambda x: jnp.asarray(x).reshape(-1, group_size)
    return jax.vmap(baseline)(*map(split, arrays)).reshape(batch)


@_validation.typed
def check_groups(batch: int, group_size: int) -> None:
    """Raises ValueError unless a batch divides into groups of at least 2.

    >>> check_groups(9, 4)
    Traceback (most recent call last):
        ...
    ValueError: batch size must be a multiple of group_size=4, got 9. The responses to one prompt lie ...
    """
    if group_size < 2:
        remedy = (
            "The responses of a group are each other's baseline: sample more per prompt, or use a critic."
        )
        raise _validation.invalid("group_size", group_size, "an integer ≥ 2, rewards of a group", remedy)
    if batch % group_size:
        remedy = "The responses to one prompt lie side by side."
        raise _validation.invalid("batch size", batch, f"a multiple of group_size={group_size}", remedy)


@_validation.typed
def check_group(rewards: ArrayLike, valid: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Raises ValueError unless given one group of at least 2; gives rewards, 0 where not valid, and the mask.

    >>> check_group(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))[0].tolist()
    [1.0, 0.0]
    """
    _validation.one_sequence(rewards=rewards)
    check_groups(jnp.size(rewards), jnp.size(rewards))
    if valid is None:
        return _validation.floats(rewards)[0], jnp.ones(jnp.shape(rewards), bool)
    _validation.boolean(valid=valid)
    _validation.same_shape(rewards=rewards, valid=valid)
    valid = jnp.broadcast_to(valid, jnp.shape(rewards))
    return aggregation.select(rewards, valid, "rewards"), jnp.asarray(valid)
