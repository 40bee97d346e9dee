"""Policy losses that weight whole sequences; arguments and result as in `proxlm.policy.losses`."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy._finite import MAX_LOG_RATIO, Bound, Number
from proxlm.policy.losses._ratio import ClipBounds, clips_ratio, given, log_ratio, ratio

__all__ = ["geometric_mean", "topr", "vespo"]


@clips_ratio(lambda clip_low, clip_high: ClipBounds(-jnp.expm1(-clip_low), jnp.expm1(clip_high)))
@_validation.typed
def geometric_mean(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    clip_low: Number = 0.4,
    clip_high: Number = 0.4,
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """GMPO, -Ā exp(Σₜ d̂ₜ / n), the geometric mean of ratios that are clipped one by one.

    d̂ₜ is dₜ = log ρₜ in nats, at most clip_high where A > 0 and at least -clip_low where A < 0; Ā is the
    mean advantage of the sequence. Every valid token carries the loss of its sequence, so the
    weights "sequence" give the paper's mean over sequences (verl and TRL: with rows="all").

    Source: Zhao et al. (2025), geometric-mean policy optimisation.

    >>> log_probs, mask = jnp.array([0.3, 0.8, 0.0]), jnp.array([True, True, False])
    >>> (geometric_mean(log_probs, jnp.zeros(3), jnp.ones(3), mask) / jnp.exp(0.35)).tolist()
    [-1.0, -1.0, 0.0]
    """
    _validation.at_least(0, "geometric_mean", clip_low=clip_low, clip_high=clip_high)
    d = log_ratio(log_probs, old_log_probs, mask, "token", max_log_ratio)
    _, advantages = given(log_probs, advantages, mask)
    sign = jnp.sign(advantages)
    held = sign * jnp.minimum(sign * d, sign * jnp.clip(d, -clip_low, clip_high))
    mean = _mean(advantages, mask)
    return jnp.where(mask, -mean * ratio(_mean(held, mask), mean), 0.0)


@_validation.typed
def vespo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    k_positive: Number = 2.0,
    lambda_positive: Number = 3.0,
    k_negative: Number = 3.0,
    lambda_negative: Number = 2.0,
    max_log_ratio: Number = MAX_LOG_RATIO,
    min_log_weight: Number = -18.420680743952367,
) -> jax.Array:
    """VESPO, -sg[φ(w)] A log π with φ(w) = e^λ w^k e^(-λw) of the ratio w of whole sequences; φ(1) = 1.

    k and λ are the positive ones where A ≥ 0, the negative ones elsewhere.

    Args:
      max_log_ratio: nats, bound of every token's log-ratio and of their sum.
      min_log_weight: nats, bound of the sum below; log 1e-8 as in TRL 1.16.

    Source: VESPO (2026), as TRL 1.16 defines it; it corrects for another sampler by taking the
    correction's log-weights off `old_log_probs`.

    >>> vespo(jnp.array([-1.0]), jnp.array([-1.0]), jnp.array([2.0]), jnp.array([True]))
    Array([2.], dtype=float32)
    """
    _validation.positive("vespo", k_positive=k_positive, k_negative=k_negative)
    _validation.finite("vespo", k_positive=k_positive, k_negative=k_negative)
    _validation.positive("vespo", lambda_positive=lambda_positive, lambda_negative=lambda_negative)
    _validation.finite("vespo", lambda_positive=lambda_positive, lambda_negative=lambda_negative)
    _validation.within(-jnp.inf, 0, "vespo", min_log_weight=min_log_weight)
    d = log_ratio(log_probs, old_log_probs, mask, "token", max_log_ratio)
    log_w = jnp.clip(jnp.sum(d, axis=-1, keepdims=True), min_log_weight, max_log_ratio)
    log_probs, advantages = given(log_probs, advantages, mask)
    good = advantages >= 0
    k = jnp.where(good, k_positive, k_negative)
    rate = jnp.where(good, lambda_positive, lambda_negative)
    phi = jax.lax.stop_gradient(jnp.exp(rate + k * log_w - rate * jnp.exp(log_w)))
    return -phi * advantages * log_probs


@_validation.typed
def topr(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    low_positive: Number = 1.0,
    high_positive: Number = 1.0,
    low_negative: Number = 0.0,
    high_negative: Number = 1.0,
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """TOPR, -sg[clip(w, low, high)] A log π of the ratio w of whole sequences, with bounds by the sign of A.

    The bounds are the positive ones where A ≥ 0. By default good sequences have weight 1, and bad ones the
    probability that is left of them, at most 1.

    Source: Le Roux et al. (2025), tapered off-policy REINFORCE.

    >>> log_probs, mask = jnp.array([[-3.0], [-3.0]]), jnp.ones((2, 1), bool)
    >>> topr(log_probs, log_probs + jnp.log(2.0), jnp.array([[1.0], [-1.0]]), mask).tolist()
    [[3.0], [-1.5]]
    """
    _validation.at_least(0, "topr", low_positive=low_positive, high_positive=high_positive)
    _validation.at_least(0, "topr", low_negative=low_negative, high_negative=high_negative)
    w = jnp.exp(log_ratio(log_probs, old_log_probs, mask, "product", max_log_ratio))
    log_probs, advantages = given(log_probs, advantages, mask)
    good = advantages >= 0
    low = jnp.where(good, low_positive, low_negative)
    high = jnp.where(good, high_positive, high_negative)
    return -jax.lax.stop_gradient(jnp.clip(w, low, high)) * advantages * log_probs


def _mean(x, mask):
    """Mean over the valid tokens of each sequence, [..., 1]; x is 0 where masked."""
    valid = jnp.sum(jnp.asarray(mask), axis=-1, keepdims=True)
    return jnp.sum(x, axis=-1, keepdims=True) / jnp.maximum(valid, 1)
