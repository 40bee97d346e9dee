"""Log-ratios of the policy that learns to the one that sampled: of tokens or of whole sequences."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation, kl
from proxlm.policy._finite import LARGEST_EXPONENT, MAX_LOG_RATIO, Bound, Number, clip_log_ratio, finite

__all__ = ["LEVELS", "ClipBounds", "clips_ratio", "log_ratio"]

Loss = TypeVar("Loss", bound=Callable[..., jax.Array])

LEVELS = ("token", "sequence", "sequence_token", "product", "product_token")


class ClipBounds(NamedTuple):
    """The bounds at which a loss clips a ratio: 1 - clip_low and 1 + clip_high, or none.

    Attributes:
      clip_low: how far the ratio may fall below 1, or None.
      clip_high: how far it may rise above 1, or None.
      level: which ratio, as in `log_ratio`.
    """

    clip_low: Number | None = None
    clip_high: Number | None = None
    level: str = "token"


@_validation.typed
def clips_ratio(bounds: Callable[..., ClipBounds] = ClipBounds) -> Callable[[Loss], Loss]:
    """Marks a loss as one that clips the ratio, so that diagnostics can report how often it does.

    Args:
      bounds: settings of the loss, by name -> `ClipBounds`.

    >>> marked = clips_ratio()(lambda log_probs, clip_low=0.1, clip_high=0.1, level="token": 0.0)
    >>> marked.clip_bounds is ClipBounds
    True
    """

    def mark(loss):
        loss.clip_bounds = bounds
        return loss

    return mark


@_validation.typed
def log_ratio(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    mask: ArrayLike,
    level: str = "token",
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """The log-ratio log ρₜ of every token, at the level of tokens or of its whole sequence.

    With dₜ = log π(aₜ) - log π_old(aₜ), n valid tokens and sg the stopped gradient,

        token           log ρₜ = dₜ
        sequence        log ρₜ = Σd / n, the geometric mean of the ratios
        sequence_token  log ρₜ = sg[Σd / n] + dₜ - sg[dₜ], the same with each token's own gradient
        product         log ρₜ = Σd, the ratio of the whole sequences
        product_token   log ρₜ = sg[Σd] + dₜ - sg[dₜ], the same with each token's own gradient

    clipped to ±max_log_ratio, beyond which the gradient is 0. All levels have one number per token, so every
    policy loss takes any of them. Weigh "sequence" and "product" by `aggregation.sequence_weights`; a token
    form has the gradient of its sequence's form if its tokens weigh 1/n, or 1 where it is the product.
    Arguments as of every policy loss; the result is nats [..., T], 0 where masked.

    Source: GSPO (Zheng et al. 2025) and its token form. Their gradients differ only where the advantages do
    within a sequence; TRL and OpenRLHF take the former, verl the latter. TRL's RLOO takes "product".

    >>> mask = jnp.array([True, True, False])
    >>> log_ratio(jnp.array([1.0, 2.0, 9.0]), jnp.zeros(3), mask, "sequence")
    Array([1.5, 1.5, 0. ], dtype=float32)
    """
    _validation.one_of(LEVELS, "log_ratio", level=level)
    current = aggregation.select(log_probs, mask, "log_probs")
    old = aggregation.select(jax.lax.stop_gradient(old_log_probs), mask, "old_log_probs")
    difference = kl.k1(current, old)
    if level != "token":
        total = jnp.sum(difference, axis=-1, keepdims=True)
        valid = jnp.sum(jnp.asarray(mask), axis=-1, keepdims=True)
        shared = total if level.startswith("product") else total / jnp.maximum(valid, 1)
        if level.endswith("_token"):
            own = difference - jax.lax.stop_gradient(difference)
            shared = jax.lax.stop_gradient(shared) + own
        difference = jnp.where(mask, shared, 0.0)
    return clip_log_ratio(difference, max_log_ratio)


def given(log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Log-probs and advantages as a loss reads them: 0 where masked, finite, no gradient into advantages.

    >>> log_probs, advantages = given(jnp.array([-jnp.inf, jnp.nan]), 2.0, jnp.array([True, False]))
    >>> log_probs.tolist(), advantages.tolist()
    ([-1000000000.0, 0.0], [2.0, 0.0])
    """
    advantages = aggregation.select(jax.lax.stop_gradient(advantages), mask, "advantages")
    return finite(aggregation.select(log_probs, mask, "log_probs"))[0], advantages


def ratio(log_rho: jax.Array, advantages: jax.Array) -> jax.Array:
    """The ratio ρ of its logarithm, bounded so that A ρ is finite: |A| ρ ≤ e^80 where |A| ≥ 1.

    >>> advantages = jnp.array([1.0, -1e4])
    >>> bool(jnp.all(jnp.isfinite(advantages * ratio(jnp.array([80.0, 80.0]), advantages))))
    True
    """
    return jnp.exp(jnp.minimum(log_rho, LARGEST_EXPONENT - jnp.log(jnp.maximum(jnp.abs(advantages), 1.0))))
