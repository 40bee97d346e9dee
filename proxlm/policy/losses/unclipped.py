"""Policy losses without a clip: the plain policy gradient, and those that pay for leaving the old policy."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation, kl
from proxlm.policy._finite import MAX_LOG_RATIO, Bound, Number
from proxlm.policy.losses._ratio import given, log_ratio, ratio

__all__ = ["dro", "kl_penalty", "policy_gradient"]


@_validation.typed
def policy_gradient(
    log_probs: ArrayLike, old_log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike
) -> jax.Array:
    """REINFORCE, -A log π: right for samples of the policy itself; the old log-probs are not read.

    Source: Williams (1992).

    >>> policy_gradient(jnp.array([-1.0]), jnp.zeros(1), jnp.array([2.0]), jnp.array([True]))
    Array([2.], dtype=float32)
    """
    _validation.same_shape("policy_gradient", mask=mask, old_log_probs=old_log_probs)
    log_probs, advantages = given(log_probs, advantages, mask)
    return -advantages * log_probs


@_validation.typed
def kl_penalty(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    coef: Number = 1.0,
    direction: str = "forward",
    level: str = "token",
    max_log_ratio: Bound = MAX_LOG_RATIO,
) -> jax.Array:
    """PPO-KL, -A ρ + c · KL to the policy that sampled; with c = 0 plain importance sampling.

    "forward" adds ρ - 1 - log ρ, whose mean over samples is KL(π_old‖π), as PPO-KL has it;
    "reverse" adds ρ log ρ - ρ + 1, whose mean is KL(π‖π_old), that of the proximal step.

    Args:
      coef: c ≥ 0.

    Source: Schulman et al. (2017), section 4; Tomar et al. (2020) for the reverse direction.

    >>> kl_penalty(jnp.zeros(1), jnp.zeros(1), jnp.array([2.0]), jnp.array([True]))
    Array([-2.], dtype=float32)
    """
    _validation.at_least(0, "kl_penalty", coef=coef)
    _validation.finite("kl_penalty", coef=coef)
    _validation.one_of(("forward", "reverse"), "kl_penalty", direction=direction)
    log_rho = log_ratio(log_probs, old_log_probs, mask, level, max_log_ratio)
    _, advantages = given(log_probs, advantages, mask)
    rho = ratio(log_rho, advantages)
    divergence = rho - 1.0 - log_rho if direction == "forward" else rho * log_rho - rho + 1.0
    return jnp.where(mask, coef * divergence - advantages * rho, 0.0)


@_validation.typed
def dro(
    log_probs: ArrayLike, old_log_probs: ArrayLike, advantages: ArrayLike, mask: ArrayLike, beta: Number = 0.1
) -> jax.Array:
    """DRO, -A log π + ½ β (log ρ)²: the square draws log ρ to A/β, for samples of any policy.

    Args:
      beta: β ≥ 0.

    Source: Richemond et al. (2024), as verl 0.9.1 defines it.

    >>> dro(jnp.array([-1.0]), jnp.array([-3.0]), jnp.ones(1), jnp.array([True]), beta=0.5)
    Array([2.], dtype=float32)
    """
    _validation.at_least(0, "dro", beta=beta)
    _validation.finite("dro", beta=beta)
    old = aggregation.select(jax.lax.stop_gradient(old_log_probs), mask, "old_log_probs")
    log_probs, advantages = given(log_probs, advantages, mask)
    return beta * kl.k2(log_probs, old) - advantages * log_probs
