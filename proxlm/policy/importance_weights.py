"""Weights for tokens that another policy sampled than the one that is said to be old.

A sampler with other kernels, quantised or late, says log μ(a) where the trainer says log π_old(a).
Every function gives weights [..., T] that multiply a loss per token before it is aggregated; no
gradient flows through them, and they are 0 where masked.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, aggregation, kl, losses


def truncated(
    old_log_probs: jax.typing.ArrayLike,
    sampler_log_probs: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    low: float = 0.0,
    high: float = 2.0,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
    level: str = "token",
) -> jax.Array:
    """Truncated importance sampling, w = clip(π_old/μ, low, high).

    Args:
      old_log_probs: nats [..., T].
      sampler_log_probs: nats [..., T].
      mask: bool [..., T].
      low: least weight.
      high: largest weight.
      max_log_ratio: as in `losses.log_ratio`.
      level: "token", "sequence" or "product", as in `losses.log_ratio`; what verl and TRL call a
        weight of the sequence is its "product".

    Returns:
      Weights [..., T].

    Raises:
      ValueError: if shapes differ or a setting is out of range.

    Source: Yao et al. (2025), TIS; Ionides (2008).

    >>> truncated(jnp.log(jnp.array([3.0, 0.5])), jnp.zeros(2), jnp.ones(2, bool)).tolist()
    [2.0, 0.5]
    """
    _validation.at_least(0.0, low=low, high=high)
    weights = _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    return jnp.where(mask, jnp.clip(weights, low, high), 0.0)


def icepop(
    old_log_probs: jax.typing.ArrayLike,
    sampler_log_probs: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    low: float = 0.5,
    high: float = 5.0,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
    level: str = "token",
) -> jax.Array:
    """What is far off teaches nothing: w = π_old/μ where it lies in [low, high], else 0.

    Args:
      old_log_probs: nats [..., T].
      sampler_log_probs: nats [..., T].
      mask: bool [..., T].
      low: bound.
      high: bound.
      max_log_ratio: as in `losses.log_ratio`.
      level: as in `truncated`.

    Returns:
      Weights [..., T].

    Raises:
      ValueError: if shapes differ or a setting is out of range.

    Source: IcePop (Ant Ling team, 2025).

    >>> icepop(jnp.log(jnp.array([6.0, 0.5])), jnp.zeros(2), jnp.ones(2, bool)).tolist()
    [0.0, 0.5]
    """
    _validation.at_least(0.0, low=low, high=high)
    weights = _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    return jnp.where(jnp.asarray(mask) & (weights >= low) & (weights <= high), weights, 0.0)


def sequence_mask(
    old_log_probs: jax.typing.ArrayLike,
    sampler_log_probs: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    low: float = 0.5,
    high: float = 5.0,
    max_weight: float | None = None,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
    level: str = "sequence",
) -> jax.Array:
    """Per token w = π_old/μ, in sequences whose own ratio lies in [low, high]; 0 in the others.

    Args:
      old_log_probs: nats [..., T].
      sampler_log_probs: nats [..., T].
      mask: bool [..., T].
      low: bound on the ratio of the sequence.
      high: bound on the ratio of the sequence.
      max_weight: bound on the weights of tokens, or None.
      max_log_ratio: as in `losses.log_ratio`.
      level: of the sequence's ratio: "sequence", the geometric mean, or "product".

    Returns:
      Weights [..., T].

    Raises:
      ValueError: if shapes differ or a setting is out of range.

    Source: OpenRLHF's "seq-mask-tis" (2026).

    >>> old, mask = jnp.log(jnp.array([[6.0, 6.0], [4.0, 1.0]])), jnp.ones((2, 2), bool)
    >>> sequence_mask(old, jnp.zeros((2, 2)), mask).round(4).tolist()
    [[0.0, 0.0], [4.0, 1.0]]
    """
    _validation.at_least(0.0, low=low, high=high, max_weight=max_weight)
    whole = _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    weights = _weights(old_log_probs, sampler_log_probs, mask, "token", max_log_ratio)
    weights = weights if max_weight is None else jnp.minimum(weights, max_weight)
    return jnp.where(jnp.asarray(mask) & (whole >= low) & (whole <= high), weights, 0.0)


def off_policy_sequence_mask(
    log_probs: jax.typing.ArrayLike,
    sampler_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    threshold: float,
) -> jax.Array:
    """1, but 0 in sequences of negative advantage whose mean log μ/π is above the threshold.

    Args:
      log_probs: nats [..., T], of the policy that learns.
      sampler_log_probs: nats [..., T].
      advantages: [..., T] or a scalar.
      mask: bool [..., T].
      threshold: nats per token.

    Returns:
      Weights [..., T].

    Raises:
      ValueError: if shapes differ or the mask is not boolean.

    Source: DeepSeek-V3.2 (2025), the off-policy sequence mask; TRL's `off_policy_mask_threshold`.

    >>> log_probs, mask = jnp.array([[-2.0], [-2.0]]), jnp.ones((2, 1), bool)
    >>> off_policy_sequence_mask(log_probs, log_probs + 1.0, jnp.array([[1.0], [-1.0]]), mask, 0.5).tolist()
    [[1.0], [0.0]]
    """
    far = -losses.log_ratio(log_probs, sampler_log_probs, mask, "sequence", 88.0)
    keep = (aggregation.select(advantages, mask, "advantages") >= 0) | (far <= threshold)
    return jax.lax.stop_gradient(jnp.where(jnp.asarray(mask) & keep, 1.0, 0.0))


def kl_rejection_mask(
    old_log_probs: jax.typing.ArrayLike,
    sampler_log_probs: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    high: float,
    low: float | None = None,
    kind: str = "k3",
    over: str = "token",
) -> jax.Array:
    """Marks the tokens, or all of the sequences, whose estimate of KL(μ‖π_old) lies in [low, high].

    Use it as the mask, and what is far off leaves the denominators too.

    Args:
      old_log_probs: nats [..., T].
      sampler_log_probs: nats [..., T].
      mask: bool [..., T].
      high: nats.
      low: nats, or None; for k1 = log μ/π_old, which may be negative.
      kind: an estimator of `kl`; log-ratios are held within ±20.
      over: "token", or the "sum", "mean" or "max" over a sequence.

    Returns:
      bool [..., T], False where masked.

    Raises:
      ValueError: if shapes differ or a name is unknown.

    Source: verl's rejection sampling: "seq_mean_k3" is kind="k3", over="mean"; its bounds of k1 are
    ratios, so "0.5_2.0" is low=log 0.5, high=log 2.

    >>> old, mask = jnp.array([[0.0, -2.0], [0.0, 0.0]]), jnp.ones((2, 2), bool)
    >>> kl_rejection_mask(old, jnp.zeros((2, 2)), mask, high=1.5, kind="k1").tolist()
    [[True, False], [True, True]]
    """
    _validation.one_of(("token", "sum", "mean", "max"), over=over)
    d = losses.log_ratio(old_log_probs, sampler_log_probs, mask)
    far = jax.lax.stop_gradient(kl.estimator(kind)(jnp.zeros_like(d), d))  # 0 where masked
    if over == "max":
        far = jnp.max(jnp.where(mask, far, -jnp.inf), axis=-1, keepdims=True)
    elif over != "token":
        far = jnp.sum(far, axis=-1, keepdims=True)
        count = jnp.sum(jnp.asarray(mask), axis=-1, keepdims=True)
        far = far / jnp.maximum(count, 1) if over == "mean" else far
    keep = (far <= high) if low is None else (far <= high) & (far >= low)
    return jnp.asarray(mask) & keep


def normalised(
    old_log_probs: jax.typing.ArrayLike,
    sampler_log_probs: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    correction: Callable = truncated,
    over: str = "token",
) -> jax.Array:
    """The weights of another correction divided by their mean over the batch, so that it is 1.

    Args:
      old_log_probs: nats [..., T].
      sampler_log_probs: nats [..., T].
      mask: bool [..., T], of the whole batch.
      correction: a function of these three, as those above.
      over: the mean's weights, as in `aggregation.weights`: "token" or "sequence".

    Returns:
      Weights [..., T].

    Raises:
      ValueError: as the correction, or if the mean is unknown.

    Source: self-normalised importance sampling; verl's `rollout_is_batch_normalize`.

    >>> normalised(jnp.log(jnp.array([0.25, 0.75])), jnp.zeros(2), jnp.ones(2, bool)).round(2)
    Array([0.5, 1.5], dtype=float32)
    """
    weights = correction(old_log_probs, sampler_log_probs, mask)
    mean = aggregation.weighted_sum(weights, aggregation.weights(mask, over))
    return weights / jnp.where(mean > 1e-8, mean, 1.0)


def _weights(old_log_probs, sampler_log_probs, mask, level, max_log_ratio):
    log_weights = losses.log_ratio(old_log_probs, sampler_log_probs, mask, level, max_log_ratio)
    return jnp.exp(jax.lax.stop_gradient(log_weights))
