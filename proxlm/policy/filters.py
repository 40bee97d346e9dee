"""Masks over responses and tokens: which of them a policy learns from; and penalties on length.

`reward_varies` and `ended_only` are filters of one group of G responses: its rewards, whether each is valid
and has ended, and its length, [G] -> bool [G]; `advantages.by_group` runs one over a batch. Penalties on
length take lengths in tokens and give what to add to the rewards, of the same shape. All raise ValueError if
shapes differ or a setting is out of range.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation

__all__ = ["ended_only", "high_entropy_mask", "overlong", "overlong_share", "reward_varies"]


@_validation.typed
def reward_varies(
    rewards: ArrayLike,
    valid: ArrayLike | None = None,
    ended: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    tolerance: float = 0.0,
) -> jax.Array:
    """Dynamic sampling within one group: keeps it only if its rewards differ by more than the tolerance.

    A group of equal rewards has advantages 0; masked out, it does not dilute the mean over the
    batch either. Shapes stay fixed, so no other group is sampled in its place.

    Source: DAPO (Yu et al. 2025).

    >>> reward_varies(jnp.array([1.0, 0.0])).tolist(), reward_varies(jnp.array([1.0, 1.0])).tolist()
    ([True, True], [False, False])
    """
    _check_group("reward_varies", rewards, valid=valid, ended=ended, lengths=lengths)
    if jnp.size(rewards) < 2:
        remedy = "One answer's reward does not vary: sample more per prompt, or leave the filter out."
        given = _validation.Verbatim(f"shape {jnp.shape(rewards)}")
        raise _validation.invalid("rewards", given, "of a group of 2 or more", remedy, "reward_varies")
    _validation.at_least(0.0, tolerance=tolerance)
    valid = jnp.broadcast_to(True if valid is None else jnp.asarray(valid), jnp.shape(rewards))
    rewards = aggregation.select(rewards, valid, "rewards")
    highest = jnp.max(jnp.where(valid, rewards, -jnp.inf))
    lowest = jnp.min(jnp.where(valid, rewards, jnp.inf))
    return valid & (highest - lowest > tolerance)


@_validation.typed
def ended_only(
    rewards: ArrayLike, valid: ArrayLike, ended: ArrayLike, lengths: ArrayLike | None = None
) -> jax.Array:
    """Overlong filtering: an answer that was cut does not teach, but stays in its group's baseline.

    Source: DAPO (Yu et al. 2025); TRL's `mask_truncated_completions`.

    >>> ended_only(jnp.zeros(3), jnp.array([True, True, False]), jnp.array([True, False, True])).tolist()
    [True, False, False]
    """
    _check_group("ended_only", rewards, valid=valid, ended=ended, lengths=lengths)
    return jnp.asarray(valid) & jnp.asarray(ended)


@_validation.typed
def overlong(lengths: ArrayLike, max_length: float, buffer: float, penalty: float = 1.0) -> jax.Array:
    """0 up to max_length - buffer, then linearly down to -penalty at max_length and beyond.

    Args:
      max_length: L.
      buffer: c, tokens, above 0.

    Source: DAPO (Yu et al. 2025), soft overlong punishment.

    >>> overlong(jnp.array([4, 7, 8, 10]), max_length=8, buffer=4)
    Array([ 0.  , -0.75, -1.  , -1.  ], dtype=float32)
    """
    _validation.positive("overlong", max_length=max_length, buffer=buffer)
    if _validation.is_known(max_length):
        _validation.within(0, max_length, "overlong", buffer=buffer)
    _validation.at_least(0, "overlong", penalty=penalty)
    _validation.finite("overlong", penalty=penalty)
    beyond = (jnp.asarray(lengths) - (max_length - buffer)) / buffer
    return 0.0 - penalty * jnp.clip(beyond, 0.0, 1.0)


@_validation.typed
def overlong_share(lengths: ArrayLike, longest: int, share: float = 0.2, penalty: float = 1.0) -> jax.Array:
    """`overlong` with a buffer that is a share of the longest response.

    Args:
      longest: tokens at which a response is cut.
      share: in (0, 1].

    Source: DAPO (Yu et al. 2025), where 4096 of 20480 tokens are the buffer.

    >>> overlong_share(jnp.array([16, 18, 20]), longest=20).tolist()
    [0.0, -0.5, -1.0]
    """
    _validation.positive("overlong_share", longest=longest, share=share)
    _validation.within(0, 1, "overlong_share", share=share)
    return overlong(lengths, longest, share * longest, penalty)


@_validation.typed
def high_entropy_mask(entropies: ArrayLike, mask: ArrayLike, share: float = 0.2) -> jax.Array:
    """Marks the tokens of the highest entropy, where the policy was least certain.

    A token counts if its entropy is at least the (1 - share)-quantile of the valid ones, [..., T].
    Multiply the policy loss by it, not the mask: the denominators stay those of all tokens.

    Source: Wang et al. (2025), beyond the 80/20 rule; TRL's `top_entropy_quantile`.

    >>> high_entropy_mask(jnp.array([0.1, 2.0, 0.3, 9.0]), jnp.array([True, True, True, False]), 0.5)
    Array([False,  True,  True, False], dtype=bool)
    """
    _validation.within(0.0, 1.0, share=share)
    entropies = aggregation.select(jax.lax.stop_gradient(entropies), mask, "entropies")
    if entropies.size == 0:
        return jnp.asarray(mask)
    # an empty mask has no quantile, and NaN is above nothing
    least = jnp.nanquantile(jnp.where(mask, entropies, jnp.nan), 1.0 - share)
    return jnp.asarray(mask) & (entropies >= least)


def _check_group(function, rewards, lengths, **masks):
    given = {name: mask for name, mask in masks.items() if mask is not None}
    _validation.one_sequence(function, rewards=rewards)
    _validation.boolean(function, **given)
    given |= {} if lengths is None else {"lengths": lengths}
    _validation.same_shape(function, rewards=rewards, **given)
