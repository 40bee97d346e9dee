"""Values and the best policy by dynamic programming over the prefixes of a small language."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.policy import kl
from proxlm.policy._finite import Number
from proxlm.policy.tabular.language import Language, check_rewards, check_table, ended, outcomes

__all__ = ["Values", "optimum", "proximal_point", "values"]


class Values(NamedTuple):
    """The exact value functions of a policy.

    Attributes:
      v: [S], of a prefix.
      q: [S, V], of a prefix and the token after it, with the KL penalty of this token.
      advantages: [S, V], q - v; their mean under the policy is 0 in every row.
    """

    v: jax.Array
    q: jax.Array
    advantages: jax.Array


@_validation.typed
def values(
    log_probs: jax.Array,
    rewards: jax.Array,
    language: Language,
    ref_log_probs: jax.Array | None = None,
    kl_coef: Number = 0.0,
) -> Values:
    """V, Q and A of every prefix, by Q(s, v) = -β log π/π_ref(v|s) + V(sv) and V(s) = Σᵥ π(v|s) Q(s, v).

    Σ_s π(s) Σᵥ ∇π(v|s) A(s, v) is the gradient of `objective`. 0 at prefixes that have ended.

    >>> language = Language(vocab_size=2, length=1)
    >>> values(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0.0, 4.0]), language).advantages
    Array([[-3.,  1.]], dtype=float32)
    """
    _validation.at_least(0, "values", kl_coef=kl_coef)
    check_table(language, log_probs=log_probs)
    penalty = jnp.zeros_like(log_probs)
    if ref_log_probs is not None:
        check_table(language, ref_log_probs=ref_log_probs)
        penalty = -kl_coef * kl.k1(log_probs, ref_log_probs)
        penalty = jnp.where(ended(language)[:, None], 0.0, penalty)
    v, q = backward(log_probs, penalty, _on_grid(rewards, language), language)
    alive = ~ended(language)
    v, q = jnp.where(alive, v, 0.0), jnp.where(alive[:, None], q, 0.0)
    return Values(v, q, q - v[:, None])


@_validation.typed
def optimum(
    ref_log_probs: jax.Array, rewards: jax.Array, kl_coef: Number, language: Language
) -> tuple[jax.Array, jax.Array]:
    """The optimal policy π* = π_ref e^(r/β) / Z, and its objective J* = β log Z.

    Z(s) = Σᵥ π_ref(v|s) Z(sv) with Z = e^(r/β) at the end; π*(v|s) = π_ref(v|s) Z(sv) / Z(s).
    For every policy, J* - J(π) = β KL(π‖π*).

    Returns:
      log π*, nats [S, V], and J*, a scalar.

    Source: Levine (2018); Korbak et al. (2022).

    >>> language = Language(vocab_size=2, length=1)
    >>> rewards = jnp.log(jnp.array([1.0, 3.0]))
    >>> best, value = optimum(jnp.log(jnp.array([[0.5, 0.5]])), rewards, 1.0, language)
    >>> jnp.exp(best).round(2).tolist(), f"{jnp.exp(value):.2f}"
    ([[0.25, 0.75]], '2.00')
    """
    _validation.positive("optimum", kl_coef=kl_coef)
    check_table(language, ref_log_probs=ref_log_probs)
    following = _on_grid(rewards, language) / kl_coef
    over, levels = ended(language), []
    for level in reversed(range(language.length)):
        here = rows(level, language)
        joint = ref_log_probs[here] + following.reshape(-1, language.vocab_size)
        log_z = jax.nn.logsumexp(joint, axis=1)
        stop = following.reshape(-1, language.vocab_size)[:, language.stop_token or 0]
        log_z = jnp.where(over[here], stop, log_z)
        levels.append(jnp.where(over[here, None], ref_log_probs[here], joint - log_z[:, None]))
        following = log_z
    return jnp.concatenate(levels[::-1]), kl_coef * following[0]


@_validation.typed
def proximal_point(
    log_probs: jax.Array,
    rewards: jax.Array,
    language: Language,
    ref_log_probs: jax.Array | None = None,
    kl_coef: Number = 0.0,
    step_size: Number = 1.0,
) -> jax.Array:
    """The exact proximal step on whole sequences, π⁺ ∝ (π_ref^β π^(1/τ) e^r)^(1/(β + 1/τ)).

    Every step multiplies log π/π* by (1/τ)/(β + 1/τ), up to a constant that normalises.

    Source: Nemirovski and Yudin (1983), mirror descent with the entropy.

    >>> language = Language(vocab_size=2, length=1)
    >>> uniform, rewards = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([1.0, 3.0]))
    >>> jnp.exp(proximal_point(uniform, rewards, language)).round(2).tolist()
    [[0.25, 0.75]]
    """
    _validation.at_least(0, "proximal_point", kl_coef=kl_coef)
    _validation.positive("proximal_point", step_size=step_size)
    if ref_log_probs is not None:
        tokens, mask, states = outcomes(language)
        check_table(language, log_probs=log_probs, ref_log_probs=ref_log_probs)
        log_ratio = kl.k1(log_probs[states, tokens], ref_log_probs[states, tokens])
        rewards = rewards - kl_coef * jnp.sum(jnp.where(mask, log_ratio, 0.0), axis=1)
    return optimum(log_probs, rewards, kl_coef + 1.0 / step_size, language)[0]


def rows(level: int, language: Language) -> slice:
    """The rows of a table that belong to the prefixes of `level` tokens.

    >>> rows(1, Language(vocab_size=3, length=2))
    slice(1, 4, None)
    """
    return slice(language.start(level), language.start(level + 1))


def _on_grid(rewards, language):
    """Rewards of outcomes put among all V^T sequences; sequences that are no outcome have 0."""
    check_rewards(language, rewards)
    powers = language.vocab_size ** jnp.arange(language.length)[::-1]
    code = outcomes(language).tokens @ powers
    (rewards,) = _validation.floats(rewards)
    return jnp.zeros(language.vocab_size**language.length, rewards.dtype).at[code].set(rewards)


def backward(
    log_probs: jax.Array, immediate: jax.Array, last: jax.Array, language: Language
) -> tuple[jax.Array, jax.Array]:
    """The recursion Q = immediate reward + V of the child, V = E[Q], from the last tokens to the first.

    log π is [S, V], the reward [S, V] or [S, 1], and `last` [V^T] the value of every full sequence.

    >>> language = Language(vocab_size=2, length=1)
    >>> log_probs = jnp.log(jnp.full((1, 2), 0.5))
    >>> backward(log_probs, jnp.zeros((1, 1)), jnp.array([0.0, 1.0]), language)[0]
    Array([0.5], dtype=float32)
    """
    over, levels = ended(language), []
    for level in reversed(range(language.length)):
        here = rows(level, language)
        q = immediate[here] + last.reshape(-1, language.vocab_size)
        # no 0 · ∞ where a token has probability 0
        probs = jnp.exp(log_probs[here])
        v = jnp.sum(jnp.where(probs > 0, probs * jnp.where(probs > 0, q, 0.0), 0.0), axis=1)
        last = jnp.where(over[here], q[:, language.stop_token or 0], v)
        levels.append((last, q))
    v, q = zip(*levels[::-1], strict=True)
    return jnp.concatenate(v), jnp.concatenate(q)
