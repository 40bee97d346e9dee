"""Importance weights for a mismatch between the policy that sampled and the old policy of the loss.

A sampler with other kernels, of lower precision or out of date, has log μ(a) where the trainer has log
π_old(a). Every function takes these two, nats [..., T], and a mask, bool [..., T]; `old_log_probs` and
`sampler_log_probs` carry no gradient. It gives weights [..., T], 0 where masked, that multiply a loss per
token before it is aggregated. `level` and `max_log_ratio` are those of `losses.log_ratio`; what verl and TRL
call the weight of the sequence is its "product". All raise ValueError if shapes differ or a setting is out of
range.

A log-prob of -inf counts as -1e9, and log-ratios are clipped to ±`max_log_ratio` before they are
exponentiated, so that every weight is a number.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation, kl, losses
from proxlm.policy._finite import MAX_LOG_RATIO, Bound, Number

__all__ = [
    "icepop",
    "kl_rejection_mask",
    "normalised",
    "off_policy_sequence_mask",
    "sequence_mask",
    "truncated",
]


@_validation.typed
def truncated(
    old_log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    mask: ArrayLike,
    low: Number = 0.0,
    high: Number = 2.0,
    max_log_ratio: Bound = MAX_LOG_RATIO,
    level: str = "token",
) -> jax.Array:
    """Truncated importance sampling, w = clip(π_old/μ, low, high).

    Source: Yao et al. (2025), TIS; Ionides (2008).

    >>> truncated(jnp.log(jnp.array([3.0, 0.5])), jnp.zeros(2), jnp.ones(2, bool)).tolist()
    [2.0, 0.5]
    """
    _require_bounds("truncated", low, high)
    weights = _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    return jnp.where(mask, jnp.clip(weights, low, high), 0.0)


@_validation.typed
def icepop(
    old_log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    mask: ArrayLike,
    low: Number = 0.5,
    high: Number = 5.0,
    max_log_ratio: Bound = MAX_LOG_RATIO,
    level: str = "token",
) -> jax.Array:
    """IcePop, w = π_old/μ where it lies in [low, high] and 0 elsewhere.

    Source: IcePop (Ant Ling team, 2025).

    >>> icepop(jnp.log(jnp.array([6.0, 0.5])), jnp.zeros(2), jnp.ones(2, bool)).tolist()
    [0.0, 0.5]
    """
    _require_bounds("icepop", low, high)
    weights = _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    return jnp.where(jnp.asarray(mask) & (weights >= low) & (weights <= high), weights, 0.0)


@_validation.typed
def sequence_mask(
    old_log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    mask: ArrayLike,
    low: Number = 0.5,
    high: Number = 5.0,
    max_weight: Number | None = None,
    max_log_ratio: Bound = MAX_LOG_RATIO,
    level: str = "sequence",
) -> jax.Array:
    """Weights w = π_old/μ per token in sequences whose own ratio lies in [low, high]; 0 in the others.

    Args:
      max_weight: bound on the weights of tokens, or None.
      level: of the sequence's ratio: "sequence", the geometric mean, or "product".

    Source: OpenRLHF's "seq-mask-tis" (2026).

    >>> old, mask = jnp.log(jnp.array([[6.0, 6.0], [4.0, 1.0]])), jnp.ones((2, 2), bool)
    >>> sequence_mask(old, jnp.zeros((2, 2)), mask).round(4).tolist()
    [[0.0, 0.0], [4.0, 1.0]]
    """
    _require_bounds("sequence_mask", low, high)
    _validation.at_least(0, "sequence_mask", max_weight=max_weight)
    whole = _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    weights = _weights(old_log_probs, sampler_log_probs, mask, "token", max_log_ratio)
    weights = weights if max_weight is None else jnp.minimum(weights, max_weight)
    return jnp.where(jnp.asarray(mask) & (whole >= low) & (whole <= high), weights, 0.0)


@_validation.typed
def off_policy_sequence_mask(
    log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    threshold: Number,
) -> jax.Array:
    """Weights 1, but 0 in sequences of negative advantage whose mean log μ/π is above the threshold.

    π is the policy that learns, the advantages [..., T] or a scalar.

    Args:
      threshold: nats per token.

    Source: DeepSeek-V3.2 (2025), the off-policy sequence mask; TRL's `off_policy_mask_threshold`.

    >>> log_probs, mask = jnp.array([[-2.0], [-2.0]]), jnp.ones((2, 1), bool)
    >>> off_policy_sequence_mask(log_probs, log_probs + 1.0, jnp.array([[1.0], [-1.0]]), mask, 0.5).tolist()
    [[1.0], [0.0]]
    """
    _validation.at_least(0, "off_policy_sequence_mask", threshold=threshold)
    _check(mask, log_probs=log_probs, sampler_log_probs=sampler_log_probs, advantages=advantages)
    far = -losses.log_ratio(log_probs, sampler_log_probs, mask, "sequence", 88.0)
    keep = (aggregation.select(advantages, mask, "advantages") >= 0) | (far <= threshold)
    return jax.lax.stop_gradient(jnp.where(jnp.asarray(mask) & keep, 1.0, 0.0))


@_validation.typed
def kl_rejection_mask(
    old_log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    mask: ArrayLike,
    high: Number,
    low: Number | None = None,
    kind: str = "k3",
    over: str = "token",
) -> jax.Array:
    """Marks the tokens, or all tokens of the sequences, whose estimate of KL(μ‖π_old) lies in [low, high].

    Take the result, bool [..., T], as the mask: what is rejected leaves the denominators too.

    Args:
      low: nats, or None; for k1 = log μ/π_old, which may be negative.
      kind: an estimator of `kl`; log-ratios are clipped to ±20.
      over: "token", or the "sum", "mean" or "max" over a sequence.

    Source: verl's rejection sampling: "seq_mean_k3" is kind="k3", over="mean"; its bounds of k1 are
    ratios, so "0.5_2.0" is low=log 0.5, high=log 2.

    >>> old, mask = jnp.array([[0.0, -2.0], [0.0, 0.0]]), jnp.ones((2, 2), bool)
    >>> kl_rejection_mask(old, jnp.zeros((2, 2)), mask, high=1.5, kind="k1").tolist()
    [[True, False], [True, True]]
    """
    _validation.one_of(("token", "sum", "mean", "max"), "kl_rejection_mask", over=over)
    _validation.one_of(tuple(kl.ESTIMATORS), "kl_rejection_mask", kind=kind)
    _validation.within(-np.inf, np.inf, "kl_rejection_mask", low=low, high=high)  # no NaN
    _check(mask, old_log_probs=old_log_probs, sampler_log_probs=sampler_log_probs)
    d = losses.log_ratio(old_log_probs, sampler_log_probs, mask)
    far = jax.lax.stop_gradient(kl.estimator(kind)(jnp.zeros_like(d), d))  # 0 where masked
    if over == "max":
        far = jnp.max(jnp.where(mask, far, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    elif over != "token":
        far = jnp.sum(far, axis=-1, keepdims=True)
        count = jnp.sum(jnp.asarray(mask), axis=-1, keepdims=True)
        far = far / jnp.maximum(count, 1) if over == "mean" else far
    keep = (far <= high) if low is None else (far <= high) & (far >= low)
    return jnp.asarray(mask) & keep


@_validation.typed
def normalised(
    old_log_probs: ArrayLike,
    sampler_log_probs: ArrayLike,
    mask: ArrayLike,
    correction: Callable[..., jax.Array] = truncated,
    over: str = "token",
) -> jax.Array:
    """The weights of another correction divided by their mean over the batch, so that the mean is 1.

    The mask is that of the whole batch. Equal weights become exactly 1.

    Args:
      correction: (old_log_probs, sampler_log_probs, mask) -> weights, as the functions above.
      over: "token" or "sequence", what counts the same in the mean.

    Source: self-normalised importance sampling; verl's `rollout_is_batch_normalize`.

    >>> normalised(jnp.log(jnp.array([0.25, 0.75])), jnp.zeros(2), jnp.ones(2, bool)).round(2)
    Array([0.5, 1.5], dtype=float32)
    """
    _validation.one_of(("token", "sequence"), "normalised", over=over)
    _check(mask, old_log_probs=old_log_probs, sampler_log_probs=sampler_log_probs)
    weights = correction(old_log_probs, sampler_log_probs, mask)
    highest = jnp.max(weights, initial=0.0)
    relative = weights / jnp.where(highest > 0, highest, 1.0)
    mean = aggregation.weighted_sum(relative, aggregation.weights(mask, over))
    equal = jnp.min(jnp.where(mask, relative, 1.0), initial=1.0) == 1.0
    return relative / jnp.where(equal | (mean <= 0), 1.0, mean)


def _check(mask, **arrays):
    _validation.boolean(mask=mask)
    _validation.same_shape(mask=mask, **arrays)


def _require_bounds(function, low, high):
    _validation.at_least(0, function, low=low, high=high)
    if _validation.is_known(high) and np.ndim(high) == 0:
        _validation.within(0, float(high), function, low=low)


def _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio):
    _check(mask, old_log_probs=old_log_probs, sampler_log_probs=sampler_log_probs)
    log_weights = losses.log_ratio(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    return jnp.exp(jax.lax.stop_gradient(log_weights))
