"""Exact objectives of a policy on a small language, as sums over its prefixes and outcomes.

A sequence earns its reward r at the end and pays β log π/π_ref at every token, so that

    J(π) = E[r] - β KL(π‖π_ref).
"""

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.policy import kl
from proxlm.policy._finite import Number, scaled
from proxlm.policy.tabular.dynamic import backward, rows
from proxlm.policy.tabular.language import Language, check_rewards, check_table, ended, outcomes

__all__ = ["divergence", "expected_reward", "objective", "occupancy", "outcome_log_probs"]


@_validation.typed
def outcome_log_probs(log_probs: jax.Array, language: Language) -> jax.Array:
    """The log-probability of every outcome, log π(y) = Σₜ log π(yₜ|y₍<ₜ₎).

    >>> language = Language(vocab_size=2, length=2)
    >>> jnp.exp(outcome_log_probs(jnp.log(jnp.full((3, 2), 0.5)), language)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_table(language, log_probs=log_probs)
    tokens, mask, states = outcomes(language)
    return jnp.sum(jnp.where(mask, log_probs[states, tokens], 0.0), axis=1)


@_validation.typed
def expected_reward(log_probs: jax.Array, rewards: jax.Array, language: Language) -> jax.Array:
    """E[r] = Σ_y π(y) r(y).

    >>> language = Language(vocab_size=2, length=1)
    >>> expected_reward(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0.0, 4.0]), language)
    Array(3., dtype=float32)
    """
    check_rewards(language, rewards)
    return jnp.sum(jnp.exp(outcome_log_probs(log_probs, language)) * rewards)


@_validation.typed
def divergence(log_probs: jax.Array, ref_log_probs: jax.Array, language: Language) -> jax.Array:
    """The KL divergence of whole sequences, KL(π‖π_ref), by K(s) = KL(π(·|s)‖π_ref(·|s)) + Σᵥ π(v|s) K(sv).

    >>> language = Language(vocab_size=2, length=2)
    >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]))
    >>> f"{divergence(log_probs, jnp.full((3, 2), jnp.log(0.5)), language):.4f}"
    '0.3466'
    """
    check_table(language, log_probs=log_probs, ref_log_probs=ref_log_probs)
    here = jnp.where(ended(language), 0.0, kl.exact(log_probs, ref_log_probs))
    last = jnp.zeros(language.vocab_size**language.length, here.dtype)
    return backward(log_probs, here[:, None], last, language)[0][0]


@_validation.typed
def objective(
    log_probs: jax.Array,
    rewards: jax.Array,
    language: Language,
    ref_log_probs: jax.Array | None = None,
    kl_coef: Number = 0.0,
) -> jax.Array:
    """The objective J(π) = E[r] - β KL(π‖π_ref), which can be differentiated exactly.

    >>> language = Language(vocab_size=2, length=1)
    >>> log_probs = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> objective(log_probs, jnp.array([0.0, 4.0]), language, log_probs, kl_coef=1.0)
    Array(3., dtype=float32)
    """
    _validation.at_least(0, "objective", kl_coef=kl_coef)
    reward = expected_reward(log_probs, rewards, language)
    if ref_log_probs is None:
        return reward
    return reward - scaled(kl_coef, divergence(log_probs, ref_log_probs, language))


@_validation.typed
def occupancy(log_probs: jax.Array, language: Language) -> jax.Array:
    """The probability π(s) that a sequence passes through each prefix and continues, [S].

    >>> language = Language(vocab_size=2, length=2, stop_token=0)
    >>> occupancy(jnp.log(jnp.full((3, 2), 0.5)), language).tolist()
    [1.0, 0.0, 0.5]
    """
    check_table(language, log_probs=log_probs)
    probs = jnp.where(ended(language)[:, None], 0.0, jnp.exp(log_probs))
    reached = [jnp.ones(1, log_probs.dtype)]
    for level in range(language.length - 1):
        reached.append((reached[-1][:, None] * probs[rows(level, language)]).reshape(-1))
    return jnp.where(ended(language), 0.0, jnp.concatenate(reached))
