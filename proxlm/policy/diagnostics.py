"""Diagnostics of a policy that learns: plain numbers over the valid tokens of a batch.

Arrays have one shape, the mask is bool of that shape. All raise ValueError if shapes differ, the mask is not
boolean or a bound is negative.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation, kl, losses
from proxlm.policy.losses._ratio import ClipBounds

__all__ = [
    "ClipBounds",
    "PolicyDiagnostics",
    "clip_bounds",
    "effective_sample_size",
    "explained_variance",
    "policy_diagnostics",
]


class PolicyDiagnostics(NamedTuple):
    """The distance of the policy from the one that sampled; every field a scalar.

    Attributes:
      approx_kl: nats per token, mean of ρ - 1 - log ρ, an unbiased estimate of KL(π_old‖π).
      approx_kl_k2: nats per token, mean of ½ (log ρ)².
      clip_fraction_low: share of the tokens whose ratio is below 1 - clip_low, whatever A; NaN
        without a bound, as the next two are.
      clip_fraction_high: share of the tokens whose ratio is above 1 + clip_high, whatever A.
      clip_fraction_active: share of the tokens whose gradient the clip removes: beyond the bound on
        the side that the sign of A asks for.
      ratio_min: smallest ρ.
      ratio_max: largest ρ.
      effective_sample_size: (Σρ)² / (n Σρ²) in (0, 1]; 1 when all ratios are equal.
    """

    approx_kl: jax.Array
    approx_kl_k2: jax.Array
    clip_fraction_low: jax.Array
    clip_fraction_high: jax.Array
    clip_fraction_active: jax.Array
    ratio_min: jax.Array
    ratio_max: jax.Array
    effective_sample_size: jax.Array


@_validation.typed
def policy_diagnostics(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    clip_low: ArrayLike | None = 0.2,
    clip_high: ArrayLike | None = 0.2,
    level: str = "token",
) -> PolicyDiagnostics:
    """Masked means over all valid tokens of a batch; see `PolicyDiagnostics`.

    Without a valid token, it reports a policy that has not moved: KL 0, ratios 1, sample size 1. The bounds
    and the level are those of the loss; None for a loss that does not clip the ratio.

    >>> log_probs = jnp.log(jnp.array([1.5, 0.5, 1.0]))
    >>> mask = jnp.array([True, True, True])
    >>> report = policy_diagnostics(log_probs, jnp.zeros(3), jnp.ones(3), mask)
    >>> f"{report.clip_fraction_active:.2f} {report.ratio_max:.2f}"
    '0.33 1.50'
    """
    _validation.at_least(0.0, clip_low=clip_low, clip_high=clip_high)
    log_probs = aggregation.select(log_probs, mask, "log_probs")
    old_log_probs = aggregation.select(old_log_probs, mask, "old_log_probs")
    advantages = aggregation.select(advantages, mask, "advantages")
    rho = jnp.exp(losses.log_ratio(log_probs, old_log_probs, mask))  # 1 where masked
    clipped_low = clipped_high = active = jnp.full(rho.shape, jnp.nan)
    if clip_low is not None and clip_high is not None:
        judged = rho if level == "token" else jnp.exp(losses.log_ratio(log_probs, old_log_probs, mask, level))
        clipped_low, clipped_high = judged < 1.0 - clip_low, judged > 1.0 + clip_high
        active = (clipped_low & (advantages < 0)) | (clipped_high & (advantages > 0))
    return PolicyDiagnostics(
        # the samples came from the old policy, so it is the first argument
        approx_kl=aggregation.masked_mean(kl.k3(old_log_probs, log_probs), mask),
        approx_kl_k2=aggregation.masked_mean(kl.k2(log_probs, old_log_probs), mask),
        clip_fraction_low=aggregation.masked_mean(clipped_low, mask),
        clip_fraction_high=aggregation.masked_mean(clipped_high, mask),
        clip_fraction_active=aggregation.masked_mean(active, mask),
        ratio_min=_extreme(jnp.min, rho, mask, jnp.inf),
        ratio_max=_extreme(jnp.max, rho, mask, 0.0),
        effective_sample_size=effective_sample_size(rho, mask),
    )


@_validation.typed
def clip_bounds(loss: Callable[..., jax.Array]) -> ClipBounds:
    """The bounds by which a loss clips the ratio: what it says of itself by `clips_ratio`.

    A `Partial` will do. None without bounds, for a loss that clips no ratio.

    >>> from proxlm.policy import losses
    >>> clip_bounds(losses.clipped)
    ClipBounds(clip_low=0.2, clip_high=0.2, level='token')
    >>> clip_bounds(losses.sapo)
    ClipBounds(clip_low=None, clip_high=None, level='token')
    """
    fn = getattr(loss, "fn", loss)
    bounds = getattr(fn, "clip_bounds", None)
    if bounds is None:
        return ClipBounds()
    settings = {x.name: x.default for x in inspect.signature(fn).parameters.values()}
    settings |= getattr(loss, "settings", {})
    return bounds(**{name: settings[name] for name in inspect.signature(bounds).parameters})


@_validation.typed
def effective_sample_size(weights: ArrayLike, mask: ArrayLike) -> jax.Array:
    """(Σw)² / (n Σw²): the share of the samples that importance weights leave standing, from 0 to 1.

    Source: Kong (1992).

    >>> effective_sample_size(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
    Array(0.8, dtype=float32)
    """
    weights = aggregation.select(weights, mask, "weights")
    # relative to the largest, no square over- or underflows
    weights = weights / jnp.maximum(jnp.max(weights, initial=0.0), jnp.finfo(weights.dtype).tiny)
    squares = jnp.sum(jnp.square(weights)) * jnp.sum(mask)
    share = jnp.square(jnp.sum(weights)) / jnp.where(squares > 0, squares, 1.0)
    return jnp.where(squares > 0, jnp.minimum(share, 1.0), 1.0)


@_validation.typed
def explained_variance(values: ArrayLike, returns: ArrayLike, mask: ArrayLike) -> jax.Array:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for a constant one, negative for worse.

    0 where the returns do not vary.

    >>> mask = jnp.array([True, True, False])
    >>> explained_variance(jnp.array([0.0, 1.0, 5.0]), jnp.array([0.0, 2.0, jnp.nan]), mask)
    Array(0.75, dtype=float32)
    """
    values = aggregation.select(values, mask, "values")
    returns = aggregation.select(returns, mask, "returns")
    total = aggregation.masked_var(returns, mask)
    left = aggregation.masked_var(returns - values, mask)
    return jnp.where(total > 0, 1.0 - left / jnp.where(total > 0, total, 1.0), 0.0)


def _extreme(reduce, rho: jax.Array, mask: ArrayLike, fill: float) -> jax.Array:
    extreme = reduce(jnp.where(mask, rho, fill), initial=fill)
    return jnp.where(jnp.any(mask), extreme, 1.0)
