"""Exact answers by dynamic programming over the prefixes of a small language.

A sequence earns its reward r at the end and pays β log π/π_ref at every token, so that

    J(π) = E[r] - β KL(π‖π_ref).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm.policy import checks, kl
from proxlm.policy.enumerable.language import Language, ended, outcomes


class Values(NamedTuple):
    """What the future is worth under a policy, exactly.

    Attributes:
      v: [S], of a prefix.
      q: [S, V], of a prefix and the token after it, this token's price included.
      advantages: [S, V], q - v; their mean under the policy is 0 in every row.
    """

    v: jax.Array
    q: jax.Array
    advantages: jax.Array


def outcome_log_probs(log_probs: jax.Array, language: Language) -> jax.Array:
    """The log-probability of every outcome, log π(y) = Σₜ log π(yₜ|y₍<ₜ₎).

    Args:
      log_probs: nats [S, V], normalised rows.
      language: a `Language`.

    Returns:
      Nats [N].

    Raises:
      ValueError: if the table has another shape.

    >>> language = Language(vocab_size=2, length=2)
    >>> jnp.exp(outcome_log_probs(jnp.log(jnp.full((3, 2), 0.5)), language)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_table(language, log_probs=log_probs)
    tokens, mask, states = outcomes(language)
    return jnp.sum(jnp.where(mask, log_probs[states, tokens], 0.0), axis=1)


def expected_reward(log_probs: jax.Array, rewards: jax.Array, language: Language) -> jax.Array:
    """E[r] = Σ_y π(y) r(y).

    Args:
      log_probs: nats [S, V].
      rewards: [N], one for each of `outcomes`.
      language: a `Language`.

    Returns:
      A scalar.

    Raises:
      ValueError: if table or rewards have another shape.

    >>> language = Language(vocab_size=2, length=1)
    >>> expected_reward(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0.0, 4.0]), language)
    Array(3., dtype=float32)
    """
    check_rewards(language, rewards)
    return jnp.sum(jnp.exp(outcome_log_probs(log_probs, language)) * rewards)


def divergence(log_probs: jax.Array, ref_log_probs: jax.Array, language: Language) -> jax.Array:
    """KL(π‖π_ref) of whole sequences, K(s) = KL(π(·|s)‖π_ref(·|s)) + Σᵥ π(v|s) K(sv).

    Args:
      log_probs: nats [S, V].
      ref_log_probs: nats [S, V].
      language: a `Language`.

    Returns:
      Nats, a scalar.

    Raises:
      ValueError: if a table has another shape.

    >>> language = Language(vocab_size=2, length=2)
    >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]))
    >>> f"{divergence(log_probs, jnp.full((3, 2), jnp.log(0.5)), language):.4f}"
    '0.3466'
    """
    check_table(language, log_probs=log_probs, ref_log_probs=ref_log_probs)
    price = jnp.where(ended(language), 0.0, kl.exact(log_probs, ref_log_probs))
    last = jnp.zeros(language.vocab_size**language.length, price.dtype)
    return _backward(log_probs, price[:, None], last, language)[0][0]


def objective(
    log_probs: jax.Array,
    rewards: jax.Array,
    language: Language,
    ref_log_probs: jax.Array | None = None,
    kl_coef: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
    """J(π) = E[r] - β KL(π‖π_ref), differentiable: its gradient is the truth.

    Args:
      log_probs: nats [S, V].
      rewards: [N].
      language: a `Language`.
      ref_log_probs: nats [S, V], or None without the KL.
      kl_coef: β ≥ 0.

    Returns:
      A scalar.

    Raises:
      ValueError: if a shape is wrong or β negative.

    >>> language = Language(vocab_size=2, length=1)
    >>> log_probs = jnp.log(jnp.array([[0.25, 0.75]]))
    >>> objective(log_probs, jnp.array([0.0, 4.0]), language, log_probs, kl_coef=1.0)
    Array(3., dtype=float32)
    """
    checks.at_least(0.0, kl_coef=kl_coef)
    reward = expected_reward(log_probs, rewards, language)
    if ref_log_probs is None:
        return reward
    return reward - kl_coef * divergence(log_probs, ref_log_probs, language)


def values(
    log_probs: jax.Array,
    rewards: jax.Array,
    language: Language,
    ref_log_probs: jax.Array | None = None,
    kl_coef: jax.typing.ArrayLike = 0.0,
) -> Values:
    """V, Q and A of every prefix: Q(s, v) = -β log π/π_ref(v|s) + V(sv), V(s) = Σᵥ π(v|s) Q(s, v).

    Σ_s π(s) Σᵥ ∇π(v|s) A(s, v) is the gradient of `objective`.

    Args:
      log_probs: nats [S, V].
      rewards: [N].
      language: a `Language`.
      ref_log_probs: nats [S, V], or None without the KL.
      kl_coef: β ≥ 0.

    Returns:
      `Values`; 0 for prefixes that have ended.

    Raises:
      ValueError: if a shape is wrong or β negative.

    >>> language = Language(vocab_size=2, length=1)
    >>> values(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0.0, 4.0]), language).advantages
    Array([[-3.,  1.]], dtype=float32)
    """
    checks.at_least(0.0, kl_coef=kl_coef)
    check_table(language, log_probs=log_probs)
    price = jnp.zeros_like(log_probs)
    if ref_log_probs is not None:
        check_table(language, ref_log_probs=ref_log_probs)
        price = -kl_coef * kl.log_ratio(log_probs, ref_log_probs)
        price = jnp.where(ended(language)[:, None], 0.0, price)
    v, q = _backward(log_probs, price, _on_grid(rewards, language), language)
    alive = ~ended(language)
    v, q = jnp.where(alive, v, 0.0), jnp.where(alive[:, None], q, 0.0)
    return Values(v, q, q - v[:, None])


def optimum(
    ref_log_probs: jax.Array,
    rewards: jax.Array,
    kl_coef: jax.typing.ArrayLike,
    language: Language,
) -> tuple[jax.Array, jax.Array]:
    """π* = π_ref e^(r/β) / Z, the best policy, and its objective J* = β log Z.

    Z(s) = Σᵥ π_ref(v|s) Z(sv) with Z = e^(r/β) at the end; π*(v|s) = π_ref(v|s) Z(sv) / Z(s).
    Whatever the policy, J* - J(π) = β KL(π‖π*).

    Args:
      ref_log_probs: nats [S, V].
      rewards: [N].
      kl_coef: β > 0.
      language: a `Language`.

    Returns:
      log π*, nats [S, V], and J*, a scalar.

    Raises:
      ValueError: if a shape is wrong or β not positive.

    Source: Levine (2018); Korbak et al. (2022).

    >>> language = Language(vocab_size=2, length=1)
    >>> rewards = jnp.log(jnp.array([1.0, 3.0]))
    >>> best, value = optimum(jnp.log(jnp.array([[0.5, 0.5]])), rewards, 1.0, language)
    >>> jnp.exp(best).round(2).tolist(), f"{jnp.exp(value):.2f}"
    ([[0.25, 0.75]], '2.00')
    """
    checks.positive(kl_coef=kl_coef)
    check_table(language, ref_log_probs=ref_log_probs)
    following = _on_grid(rewards, language) / kl_coef
    over, rows = ended(language), []
    for level in reversed(range(language.length)):
        here = _rows(level, language)
        joint = ref_log_probs[here] + following.reshape(-1, language.vocab_size)
        log_z = jax.nn.logsumexp(joint, axis=1)
        stop = following.reshape(-1, language.vocab_size)[:, language.stop_token or 0]
        log_z = jnp.where(over[here], stop, log_z)
        rows.append(jnp.where(over[here, None], ref_log_probs[here], joint - log_z[:, None]))
        following = log_z
    return jnp.concatenate(rows[::-1]), kl_coef * following[0]


def occupancy(log_probs: jax.Array, language: Language) -> jax.Array:
    """The probability π(s) that a sequence passes through each prefix and goes on from it.

    Args:
      log_probs: nats [S, V].
      language: a `Language`.

    Returns:
      [S]; 1 for the empty prefix, 0 for those that have ended.

    Raises:
      ValueError: if the table has another shape.

    >>> language = Language(vocab_size=2, length=2, stop_token=0)
    >>> occupancy(jnp.log(jnp.full((3, 2), 0.5)), language).tolist()
    [1.0, 0.0, 0.5]
    """
    check_table(language, log_probs=log_probs)
    probs = jnp.where(ended(language)[:, None], 0.0, jnp.exp(log_probs))
    reached = [jnp.ones(1, log_probs.dtype)]
    for level in range(language.length - 1):
        reached.append((reached[-1][:, None] * probs[_rows(level, language)]).reshape(-1))
    return jnp.where(ended(language), 0.0, jnp.concatenate(reached))


def check_table(language: Language, **tables) -> None:
    """Asks that every table is [S, V].

    Raises:
      ValueError: naming the table that is not.

    >>> check_table(Language(vocab_size=2, length=2), log_probs=jnp.zeros((3, 2)))
    """
    expected = (language.num_states, language.vocab_size)
    for name, x in tables.items():
        if jnp.shape(x) != expected:
            raise ValueError(
                f"{name} has shape {jnp.shape(x)}; expected {expected}: a row of log-probabilities "
                "for every prefix. A model that takes tokens becomes one by `table`."
            )


def check_rewards(language: Language, rewards: jax.Array) -> None:
    """Asks for one reward for every outcome, [N].

    Raises:
      ValueError: if it has another shape.

    >>> check_rewards(Language(vocab_size=2, length=2), jnp.zeros(4))
    """
    expected = (len(outcomes(language).tokens),)
    if jnp.shape(rewards) != expected:
        raise ValueError(
            f"rewards has shape {jnp.shape(rewards)}; expected {expected}: one for each of "
            "`outcomes`."
        )


def _rows(level, language):
    return slice(language.start(level), language.start(level + 1))


def _on_grid(rewards, language):
    """Rewards of outcomes put among all V^T sequences; what cannot be said earns 0."""
    check_rewards(language, rewards)
    powers = language.vocab_size ** jnp.arange(language.length)[::-1]
    code = outcomes(language).tokens @ powers
    rewards = jnp.asarray(rewards, jnp.result_type(rewards, jnp.float32))
    return jnp.zeros(language.vocab_size**language.length, rewards.dtype).at[code].set(rewards)


def _backward(log_probs, price, last, language):
    """Q = price + V of the child, V = E[Q], from the last tokens back to the first."""
    over, levels = ended(language), []
    for level in reversed(range(language.length)):
        here = _rows(level, language)
        q = price[here] + last.reshape(-1, language.vocab_size)
        # no 0 · ∞ where a token cannot be said
        said = jnp.exp(log_probs[here])
        v = jnp.sum(jnp.where(said > 0, said * jnp.where(said > 0, q, 0.0), 0.0), axis=1)
        last = jnp.where(over[here], q[:, language.stop_token or 0], v)
        levels.append((last, q))
    v, q = zip(*levels[::-1], strict=True)
    return jnp.concatenate(v), jnp.concatenate(q)
