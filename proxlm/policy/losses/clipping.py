"""Policy losses that clip the ratio of a token or sequence, PPO's first; and the clipped loss of a critic."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy._finite import MAX_LOG_RATIO, Bound, Number
from proxlm.policy.losses._ratio import clips_ratio, given, log_ratio, ratio

__all__ = ["cispo", "clipped", "clipped_value_loss", "sapo"]


@clips_ratio()
@_validation.typed
def clipped(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    dual_clip: Number | None = None,
    level: str = "token",
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """PPO's loss per token, max(-A ρ, -A clip(ρ, 1 - clip_low, 1 + clip_high)), at any level of the ratio.

    With `dual_clip` c the loss is at most -c A where A < 0, so that a token of a bad response
    whose probability has risen cannot dominate the batch.

    Args:
      clip_low: how far ρ may fall below 1, in [0, 1].
      clip_high: how far ρ may rise above 1; larger than clip_low in DAPO ("clip higher").
      dual_clip: None, or c ≥ 1; 3 is usual, and verl's default; TRL's `delta` if it is above 1 + clip_high.
      level: "sequence" in GSPO.

    Source: Schulman et al. (2017); dual clip: Ye et al. (2020); clip higher: Yu et al. (2025); sequences:
    Zheng et al. (2025).

    >>> log_probs = jnp.log(jnp.array([1.5, 1.5, 0.5, 9.0]))
    >>> advantages, mask = jnp.array([1.0, -1.0, -1.0, -1.0]), jnp.ones(4, bool)
    >>> losses = clipped(log_probs, jnp.zeros(4), advantages, mask, dual_clip=3.0)
    >>> " ".join(f"{loss:.1f}" for loss in losses)
    '-1.2 1.5 0.8 3.0'
    """
    _validation.within(0, 1, "clipped", clip_low=clip_low)
    _validation.at_least(0, "clipped", clip_high=clip_high)
    _validation.at_least(1, "clipped", dual_clip=dual_clip)
    _, advantages = given(log_probs, advantages, mask)
    rho = ratio(log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio), advantages)
    near = jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(-advantages * rho, -advantages * near)
    if dual_clip is None:
        return loss
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)


@clips_ratio()
@_validation.typed
def cispo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    clip_low: Number = 1.0,
    clip_high: Number = 4.0,
    level: str = "token",
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """CISPO, -sg[clip(ρ, 1 - clip_low, 1 + clip_high)] A log π: every token keeps its gradient.

    Args:
      clip_low: 1 leaves the weight without a bound below, as TRL does; 0.2 in verl.
      clip_high: TRL writes `epsilon_high` = 1 + clip_high.

    Source: MiniMax-M1 (2025).

    >>> mask = jnp.ones(1, bool)
    >>> cispo(jnp.array([-1.0]), jnp.array([-9.0]), jnp.ones(1), mask, clip_high=1.0)
    Array([2.], dtype=float32)
    """
    _validation.within(0, 1, "cispo", clip_low=clip_low)
    _validation.at_least(0, "cispo", clip_high=clip_high)
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio))
    weight = jax.lax.stop_gradient(jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high))
    log_probs, advantages = given(log_probs, advantages, mask)
    return -weight * advantages * log_probs


@_validation.typed
def sapo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    tau_positive: Number = 1.0,
    tau_negative: Number = 1.05,
    level: str = "token",
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """SAPO, -A (4/τ) σ(τ (ρ - 1)): a soft gate, of slope 1 at ρ = 1, in place of the clip.

    Args:
      tau_positive: τ > 0 where A > 0.
      tau_negative: τ > 0 elsewhere; larger, since lowering one token raises all others.

    Source: Gao et al. (2025), soft adaptive policy optimisation.

    >>> sapo(jnp.zeros(1), jnp.zeros(1), jnp.array([0.5]), jnp.array([True]))
    Array([-1.], dtype=float32)
    """
    _validation.positive("sapo", tau_positive=tau_positive, tau_negative=tau_negative)
    _validation.finite("sapo", tau_positive=tau_positive, tau_negative=tau_negative)
    rho = jnp.exp(log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio))
    _, advantages = given(log_probs, advantages, mask)
    tau = jnp.where(advantages > 0, tau_positive, tau_negative)
    return -advantages * jax.nn.sigmoid(tau * (rho - 1.0)) * (4.0 / tau)


@_validation.typed
def clipped_value_loss(
    values: ArrayLike, old_values: ArrayLike, returns: ArrayLike, clip: Number | None = 0.2
) -> jax.Array:
    """½ max((V - R)², (clip(V, V_old ± clip) - R)²), the larger of the critic's two squared errors.

    Where V left the interval *towards* R the gradient is 0, where it left it away from R it is not. No
    gradient flows into `old_values` and `returns`. This one knows no mask: where masked slots may hold NaN,
    pass the inputs through `aggregation.select` first.

    Args:
      values: of the critic that learns, any shape.
      old_values: of the critic when the tokens were sampled, the same shape.
      returns: R, the same shape or a scalar.
      clip: in units of the values; None leaves ½ (V - R)².

    Source: OpenAI baselines' PPO2; the ½ as in "The 37 implementation details of PPO" (2022).

    >>> values, old = jnp.array([1.0, 1.0]), jnp.array([0.0, 0.0])
    >>> clipped_value_loss(values, old, jnp.array([1.0, -1.0]), clip=0.5)
    Array([0.125, 2.   ], dtype=float32)
    """
    _validation.same_shape("clipped_value_loss", values=values, old_values=old_values, returns=returns)
    _validation.at_least(0, "clipped_value_loss", clip=clip)
    dtype = jnp.result_type(values, jnp.float32)
    values = jnp.asarray(values, dtype)
    old_values, returns = jax.lax.stop_gradient((jnp.asarray(old_values, dtype), jnp.asarray(returns, dtype)))
    loss = jnp.square(values - returns)
    if clip is None:
        return 0.5 * loss
    near = jnp.clip(values, old_values - clip, old_values + clip)
    return 0.5 * jnp.maximum(loss, jnp.square(near - returns))
