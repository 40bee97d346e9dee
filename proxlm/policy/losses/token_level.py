"""Policy losses that single out tokens; arguments and result as in `proxlm.policy.losses`.

Entropy collapses by the tokens of high covariance of A and log π: `clip_cov` and `kl_cov` find them among all
that they are given, a minibatch or a microbatch of it. `dppo` bounds the change of a token's probability, not
its ratio.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation, kl
from proxlm.policy._finite import MAX_LOG_RATIO, Bound, Number, finite
from proxlm.policy.losses import clipping
from proxlm.policy.losses._ratio import ClipBounds, clips_ratio, given, log_ratio, ratio

__all__ = ["clip_cov", "dppo", "kl_cov"]


@clips_ratio(lambda clip_low, clip_high: ClipBounds(clip_low, clip_high))
@_validation.typed
def clip_cov(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    share: Number = 2e-4,
    low: Number = 1.0,
    high: Number = 5.0,
    max_log_ratio: Bound = MAX_LOG_RATIO,
    key: jax.Array | None = None,
) -> jax.Array:
    """Clip-Cov, the clipped loss without a few tokens whose covariance lies between low and high.

    cov = (A - mean A) (log π - mean log π), means over the mask; max(1, ⌊share · n⌋ ) of the tokens
    with low < cov < high, and not clipped already, get neither loss nor gradient.

    Args:
      share: of the valid tokens, in [0, 1].
      key: chooses among the tokens at random, as the paper does; None takes the largest covariance.

    Source: Cui et al. (2025), the entropy mechanism.

    >>> log_probs, advantages = jnp.array([1.0, 0.0, -1.0]), jnp.array([3.0, 0.0, -3.0])
    >>> clip_cov(log_probs, log_probs, advantages, jnp.ones(3, bool))
    Array([ 0., -0.,  3.], dtype=float32)
    """
    _validation.within(0, 1, "clip_cov", share=share)
    _validation.within(-jnp.inf, jnp.inf, "clip_cov", low=low, high=high)  # no NaN
    loss = clipping.clipped(
        log_probs, old_log_probs, advantages, mask, clip_low, clip_high, max_log_ratio=max_log_ratio
    )
    log_rho = log_ratio(log_probs, old_log_probs, mask, "token", max_log_ratio)
    log_probs, advantages = given(log_probs, advantages, mask)
    cov = _covariance(log_probs, advantages, mask)
    free = loss <= -advantages * ratio(log_rho, advantages)
    candidates = jnp.asarray(mask) & free & (cov > low) & (cov < high)
    order = cov if key is None else jax.random.uniform(key, cov.shape)
    chosen = _largest(jnp.where(candidates, order, -jnp.inf), share, mask) & candidates
    return jnp.where(chosen, 0.0, loss)


@_validation.typed
def kl_cov(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    share: Number = 2e-4,
    coef: Number = 1.0,
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """KL-Cov, -A ρ plus c |log ρ| at the max(1, ⌊share · n⌋) tokens of the largest covariance.

    Args:
      share: of the valid tokens, in [0, 1].
      coef: c ≥ 0.

    Source: Cui et al. (2025), the entropy mechanism.

    >>> log_probs, advantages = jnp.array([1.0, 0.0, -1.0]), jnp.array([3.0, 0.0, -1.0])
    >>> kl_cov(log_probs, log_probs - jnp.log(2.0), advantages, jnp.ones(3, bool), coef=0.0)
    Array([-6.,  0.,  2.], dtype=float32)
    """
    _validation.within(0, 1, "kl_cov", share=share)
    _validation.at_least(0, "kl_cov", coef=coef)
    _validation.finite("kl_cov", coef=coef)
    log_rho = log_ratio(log_probs, old_log_probs, mask, "token", max_log_ratio)
    log_probs, advantages = given(log_probs, advantages, mask)
    cov = jnp.where(mask, _covariance(log_probs, advantages, mask), -jnp.inf)
    penalty = coef * kl.absolute(log_rho, jnp.zeros_like(log_rho))
    penalty = jnp.where(_largest(cov, share, mask), penalty, 0.0)
    return penalty - advantages * ratio(log_rho, advantages)


@_validation.typed
def dppo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    max_ratio: Number = 20.0,
    max_log_ratio: Bound = MAX_LOG_RATIO,
    divergence: str = "tv",
) -> jax.Array:
    """DPPO, -sg[min(ρ, max_ratio)] A log π where the token's probability has not moved too far.

    "tv" drops a token of A > 0 where π - π_old > clip_high and one of A ≤ 0 where π_old - π >
    clip_low; "kl" compares the divergence of "this token or another" with the same bounds, in nats.

    Args:
      clip_low: bound where A ≤ 0.
      clip_high: bound where A > 0.
      max_ratio: bound of the weight; verl's `clip_ratio_c`, which its actor config sets to 3.
      divergence: "tv" or "kl".

    Source: DPPO (2026, arXiv 2602.04879), as verl 0.9.1 defines it.

    >>> log_probs, mask = jnp.log(jnp.array([0.5, 0.9])), jnp.ones(2, bool)
    >>> losses = dppo(log_probs, jnp.log(jnp.array([0.5, 0.5])), jnp.ones(2), mask)
    >>> f"{losses[0]:.3f} {losses[1]:.0f}"
    '0.693 0'
    """
    _validation.one_of(("tv", "kl"), "dppo", divergence=divergence)
    _validation.at_least(0, "dppo", clip_low=clip_low, clip_high=clip_high, max_ratio=max_ratio)
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, "token", max_log_ratio))
    (old,) = finite(aggregation.select(jax.lax.stop_gradient(old_log_probs), mask, "old_log_probs"))
    log_probs, advantages = given(log_probs, advantages, mask)
    rise, bound = jnp.exp(log_probs) - jnp.exp(old), jnp.where(advantages > 0, clip_high, clip_low)
    towards = jnp.where(advantages > 0, rise, -rise)
    moved = towards if divergence == "tv" else _binary_kl(old, log_probs)
    keep = (moved <= bound) | (towards <= 0)
    weight = jnp.where(keep, jnp.minimum(rho, max_ratio), 0.0)
    return -jax.lax.stop_gradient(weight) * advantages * log_probs


def _binary_kl(old, new, epsilon=1e-8):
    """KL of "this token or another" from old to new."""
    others = jnp.maximum(1.0 - jnp.exp(old), 0.0), jnp.maximum(1.0 - jnp.exp(new), 0.0)
    rest = others[0] * (jnp.log(others[0] + epsilon) - jnp.log(others[1] + epsilon))
    return jnp.exp(old) * (old - new) + rest


def _covariance(log_probs, advantages, mask):
    of = aggregation.masked_deviation
    return of(advantages, mask) * of(jax.lax.stop_gradient(log_probs), mask)


def _largest(x, share, mask):
    """Marks the max(1, ⌊share · n⌋) largest entries; n counts the mask."""
    count = jnp.maximum(jnp.floor(share * jnp.sum(mask)), 1)
    ranks = jnp.argsort(jnp.argsort(-x.reshape(-1))).reshape(x.shape)
    return ranks < count
