"""The clipped objectives of PPO, one value per token; the caller masks and aggregates.

Nothing here knows a mask. Where masked slots may hold NaN, pass the inputs through
`aggregation.select` first; a selection of the output alone would not keep NaN out of the gradient.
"""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, kl
from proxlm.policy.losses import _ratio


def ratio(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    max_log_ratio: jax.typing.ArrayLike | tuple = kl.MAX_LOG_RATIO,
) -> jax.Array:
    """ρ = exp(clip(log π(a) - log π_old(a), ±max_log_ratio)), held *before* the exponential.

    Args:
      log_probs: nats, any shape.
      old_log_probs: nats, the same shape.
      max_log_ratio: nats, as in `ratios.hold`.

    Returns:
      ρ of that shape, always finite for log-probs that are; beyond the bound its gradient is 0.

    Raises:
      ValueError: if the shapes differ or the bound is out of range.

    >>> f"{ratio(-0.5, -1.0):.4f}", f"{ratio(1e4, 0.0):.1e}"
    ('1.6487', '4.9e+08')
    """
    return jnp.exp(_ratio.hold(kl.log_ratio(log_probs, old_log_probs), max_log_ratio))


def clipped_surrogate(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
) -> jax.Array:
    """PPO's loss per token: max(-A ρ, -A clip(ρ, 1 - clip_low, 1 + clip_high)).

    With `dual_clip` c, where A < 0 the loss is at most -c A, so that one forgotten token of a bad
    answer cannot own the batch. No gradient flows into `old_log_probs` and `advantages`.

    Args:
      log_probs: nats, of the policy that learns, any shape.
      old_log_probs: nats, of the policy that sampled, the same shape.
      advantages: the same shape or a scalar.
      clip_low: how far ρ may fall below 1.
      clip_high: how far ρ may rise above 1; larger than clip_low in DAPO ("clip higher").
      dual_clip: None, or c ≥ 1; 3 is usual, and verl's default.
      max_log_ratio: as in `ratio`.

    Returns:
      A loss per token, to be minimised.

    Raises:
      ValueError: if shapes differ, clip_low is not in [0, 1], clip_high is negative or c < 1.

    Source: Schulman et al. (2017); dual clip: Ye et al. (2020); clip higher: Yu et al. (2025).

    >>> log_probs = jnp.log(jnp.array([1.5, 1.5, 0.5, 9.0]))
    >>> advantages = jnp.array([1.0, -1.0, -1.0, -1.0])
    >>> losses = clipped_surrogate(log_probs, jnp.zeros(4), advantages, dual_clip=3.0)
    >>> " ".join(f"{loss:.1f}" for loss in losses)
    '-1.2 1.5 0.8 3.0'
    """
    _validation.same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    _validation.within(0.0, 1.0, clip_low=clip_low)
    _validation.at_least(0.0, clip_high=clip_high)
    _validation.at_least(1.0, dual_clip=dual_clip)
    advantages = jnp.asarray(advantages, jnp.result_type(advantages, jnp.float32))
    advantages = jax.lax.stop_gradient(advantages)
    rho = ratio(log_probs, jax.lax.stop_gradient(old_log_probs), max_log_ratio)
    clipped = jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(-advantages * rho, -advantages * clipped)
    if dual_clip is None:
        return loss
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)


def clipped_value_loss(
    values: jax.typing.ArrayLike,
    old_values: jax.typing.ArrayLike,
    returns: jax.typing.ArrayLike,
    clip: float | None = 0.2,
) -> jax.Array:
    """½ max((V - R)², (clip(V, V_old ± clip) - R)²): the worse of the value and its short step.

    Where V left the interval *towards* R the gradient is 0, where it left it away from R it is not.
    No gradient flows into `old_values` and `returns`.

    Args:
      values: of the critic that learns, any shape.
      old_values: of the critic when the tokens were sampled, the same shape.
      returns: R, the same shape or a scalar.
      clip: in units of the values; None leaves ½ (V - R)².

    Returns:
      A loss per token.

    Raises:
      ValueError: if shapes differ or the clip is negative.

    Source: OpenAI baselines' PPO2; the ½ as in "The 37 implementation details of PPO" (2022).

    >>> values, old = jnp.array([1.0, 1.0]), jnp.array([0.0, 0.0])
    >>> clipped_value_loss(values, old, jnp.array([1.0, -1.0]), clip=0.5)
    Array([0.125, 2.   ], dtype=float32)
    """
    _validation.same_shape(values=values, old_values=old_values, returns=returns)
    _validation.at_least(0.0, clip=clip)
    dtype = jnp.result_type(values, jnp.float32)
    values = jnp.asarray(values, dtype)
    old_values, returns = jax.lax.stop_gradient((jnp.asarray(old_values, dtype), jnp.asarray(returns, dtype)))
    loss = jnp.square(values - returns)
    if clip is None:
        return 0.5 * loss
    near = jnp.clip(values, old_values - clip, old_values + clip)
    return 0.5 * jnp.maximum(loss, jnp.square(near - returns))
