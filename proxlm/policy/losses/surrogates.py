"""The family of policy losses: one function of (log-probs, old log-probs, advantages, mask) each.

A loss per token, [..., T], 0 where masked, to be weighed by `aggregation`.  Masked slots may hold
NaN.  No gradient flows into old log-probs and advantages.  A loss of your own is a function of the
same four arguments.
"""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, aggregation, kl
from proxlm.policy.losses import _ratio, clipped


def clip(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
    level: str = "token",
) -> jax.Array:
    """PPO's loss at any level, max(-A ρ, -A ρ̂) with ρ̂ held in [1 - clip_low, 1 + clip_high].

    With `dual_clip` c it is at most -c A where A < 0.

    Args:
      log_probs: nats [..., T].
      old_log_probs: nats [..., T].
      advantages: [..., T] or a scalar.
      mask: bool [..., T].
      clip_low: how far ρ may fall below 1.
      clip_high: how far ρ may rise above 1.
      dual_clip: c ≥ 1 or None; 3 in verl; TRL's `delta` if it is above 1 + clip_high.
      max_log_ratio: as in `ratios.log_ratio`.
      level: "token", "sequence" (GSPO), or another as in `ratios.log_ratio`.

    Returns:
      A loss per token [..., T].

    Raises:
      ValueError: if shapes differ or a setting is out of range.

    Source: Schulman et al. (2017); Ye et al. (2020); Yu et al. (2025); Zheng et al. (2025).

    >>> clip(jnp.log(jnp.array([1.5, 0.5])), jnp.zeros(2), jnp.ones(2), jnp.ones(2, bool))
    Array([-1.2, -0.5], dtype=float32)
    """
    log_rho = _ratio.log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio)
    advantages = aggregation.select(advantages, mask, "advantages")
    # the bounds on log ρ are in place already
    return clipped.clipped_surrogate(
        log_rho, jnp.zeros_like(log_rho), advantages, clip_low, clip_high, dual_clip, max_log_ratio
    )


def policy_gradient(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
) -> jax.Array:
    """-A log π: REINFORCE, right for samples of the policy itself; the old log-probs are not read.

    Args:
      log_probs: nats [..., T].
      old_log_probs: nats [..., T].
      advantages: [..., T] or a scalar.
      mask: bool [..., T].

    Returns:
      A loss per token [..., T].

    Raises:
      ValueError: if shapes differ or the mask is not boolean.

    Source: Williams (1992).

    >>> policy_gradient(jnp.array([-1.0]), jnp.zeros(1), jnp.array([2.0]), jnp.array([True]))
    Array([2.], dtype=float32)
    """
    log_probs, advantages = _select(log_probs, advantages, mask)
    return -advantages * log_probs


def kl_penalty(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    coef: float = 1.0,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
    level: str = "token",
    direction: str = "forward",
) -> jax.Array:
    """-A ρ + c · KL to the policy that sampled; with c = 0 plain importance sampling.

    "forward" adds ρ - 1 - log ρ, whose mean over samples is KL(π_old‖π), as PPO-KL has it;
    "reverse" adds ρ log ρ - ρ + 1, whose mean is KL(π‖π_old), that of the proximal step.

    Args:
      log_probs: nats [..., T].
      old_log_probs: nats [..., T].
      advantages: [..., T] or a scalar.
      mask: bool [..., T].
      coef: c ≥ 0.
      max_log_ratio: as in `ratios.log_ratio`.
      level: as in `clip`.
      direction: "forward" or "reverse".

    Returns:
      A loss per token [..., T].

    Raises:
      ValueError: if shapes differ, c is negative or a name unknown.

    Source: Schulman et al. (2017), section 4; Tomar et al. (2020) for the reverse direction.

    >>> kl_penalty(jnp.zeros(1), jnp.zeros(1), jnp.array([2.0]), jnp.array([True]))
    Array([-2.], dtype=float32)
    """
    _validation.at_least(0.0, coef=coef)
    _validation.one_of(("forward", "reverse"), direction=direction)
    log_rho = _ratio.log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio)
    _, advantages = _select(log_probs, advantages, mask)
    rho = jnp.exp(log_rho)
    price = rho - 1.0 - log_rho if direction == "forward" else rho * log_rho - rho + 1.0
    return jnp.where(mask, coef * price - advantages * rho, 0.0)


def dro(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    beta: float = 0.1,
) -> jax.Array:
    """-A log π + ½ β (log ρ)²: a square draws log ρ to A/β, whoever sampled; no ratio, no clip.

    Args:
      log_probs: nats [..., T].
      old_log_probs: nats [..., T].
      advantages: [..., T] or a scalar.
      mask: bool [..., T].
      beta: β ≥ 0.

    Returns:
      A loss per token [..., T].

    Raises:
      ValueError: if shapes differ or β is negative.

    Source: Richemond et al. (2024), as verl 0.9.1 defines it.

    >>> dro(jnp.array([-1.0]), jnp.array([-3.0]), jnp.ones(1), jnp.array([True]), beta=0.5)
    Array([2.], dtype=float32)
    """
    _validation.at_least(0.0, beta=beta)
    old = aggregation.select(jax.lax.stop_gradient(old_log_probs), mask, "old_log_probs")
    log_probs, advantages = _select(log_probs, advantages, mask)
    return beta * kl.k2(log_probs, old) - advantages * log_probs


def cispo(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
    level: str = "token",
) -> jax.Array:
    """-sg[clip(ρ, 1 - clip_low, 1 + clip_high)] A log π: the weight is clipped, no token is lost.

    Args:
      log_probs: nats [..., T].
      old_log_probs: nats [..., T].
      advantages: [..., T] or a scalar.
      mask: bool [..., T].
      clip_low: 1 leaves the weight without a bound below, as TRL does; 0.2 in verl.
      clip_high: TRL writes `epsilon_high` = 1 + clip_high.
      max_log_ratio: as in `ratios.log_ratio`.
      level: as in `clip`.

    Returns:
      A loss per token [..., T].

    Raises:
      ValueError: if shapes differ or a setting is out of range.

    Source: MiniMax-M1 (2025).

    >>> mask = jnp.ones(1, bool)
    >>> cispo(jnp.array([-1.0]), jnp.array([-9.0]), jnp.ones(1), mask, clip_high=1.0)
    Array([2.], dtype=float32)
    """
    _validation.within(0.0, 1.0, clip_low=clip_low)
    _validation.at_least(0.0, clip_high=clip_high)
    rho = jnp.exp(_ratio.log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio))
    weight = jax.lax.stop_gradient(jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high))
    log_probs, advantages = _select(log_probs, advantages, mask)
    return -weight * advantages * log_probs


def sapo(
    log_probs: jax.typing.ArrayLike,
    old_log_probs: jax.typing.ArrayLike,
    advantages: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    max_log_ratio: float = kl.MAX_LOG_RATIO,
    level: str = "token",
) -> jax.Array:
    """-A (4/τ) σ(τ (ρ - 1)): a soft gate, of slope 1 at ρ = 1, in place of the clip.

    Args:
      log_probs: nats [..., T].
      old_log_probs: nats [..., T].
      advantages: [..., T] or a scalar.
      mask: bool [..., T].
      tau_positive: τ > 0 where A > 0.
      tau_negative: τ > 0 elsewhere; larger, since what is unlearnt spreads over all tokens.
      max_log_ratio: as in `ratios.log_ratio`.
      level: as in `clip`.

    Returns:
      A loss per token [..., T].

    Raises:
      ValueError: if shapes differ or a τ is not positive.

    Source: Gao et al. (2025), soft adaptive policy optimisation.

    >>> sapo(jnp.zeros(1), jnp.zeros(1), jnp.array([0.5]), jnp.array([True]))
    Array([-1.], dtype=float32)
    """
    _validation.positive(tau_positive=tau_positive, tau_negative=tau_negative)
    rho = jnp.exp(_ratio.log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio))
    _, advantages = _select(log_probs, advantages, mask)
    tau = jnp.where(advantages > 0, tau_positive, tau_negative)
    return -advantages * jax.nn.sigmoid(tau * (rho - 1.0)) * (4.0 / tau)


def _select(log_probs, advantages, mask):
    advantages = aggregation.select(jax.lax.stop_gradient(advantages), mask, "advantages")
    return aggregation.select(log_probs, mask, "log_probs"), advantages
