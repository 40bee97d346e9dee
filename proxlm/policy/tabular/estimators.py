"""Exact mean and variance of an estimator, by summing over every outcome or group of outcomes.

An estimator is any loss of sampled sequences, `(Group) -> scalar`. Its gradient in a training step is a
random vector; here are the mean of that vector and its variance, without sampling.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.policy.tabular.exact import outcome_log_probs
from proxlm.policy.tabular.language import Language, check_rewards, check_table, outcomes

__all__ = ["Group", "Moments", "expected_value_and_grad", "groups", "moments"]

# 27 outcomes in groups of 4 are 27,405 multisets
MAX_GROUPS = 2**18


class Group(NamedTuple):
    """G independently sampled sequences, the argument of an estimator.

    Attributes:
      log_probs: nats [G, T], of the policy that learns; gradient flows into these.
      distribution: nats [G, T, V], of the same.
      old_log_probs: nats [G, T], of the policy that sampled.
      ref_log_probs: nats [G, T], of the reference.
      ref_distribution: nats [G, T, V], of the same.
      rewards: [G].
      tokens: int [G, T].
      mask: bool [G, T].
      states: int [G, T], the prefix before each token, the row of a table.
    """

    log_probs: jax.Array
    distribution: jax.Array
    old_log_probs: jax.Array
    ref_log_probs: jax.Array
    ref_distribution: jax.Array
    rewards: jax.Array
    tokens: jax.Array
    mask: jax.Array
    states: jax.Array


class Moments(NamedTuple):
    """Mean and variance of an estimator.

    Attributes:
      value: E[loss], a scalar.
      gradient: E[∇loss], a pytree like the parameters.
      variance: E‖∇loss - E[∇loss]‖², a scalar: the trace of the covariance.
    """

    value: jax.Array
    gradient: Any
    variance: jax.Array


@_validation.typed
def expected_value_and_grad(
    estimator: Callable[[Group], jax.Array],
    params: Any,
    rewards: jax.Array,
    language: Language,
    *,
    policy: Callable[[Any], jax.Array] = jax.nn.log_softmax,
    group_size: int = 1,
    old_log_probs: jax.Array | None = None,
    ref_log_probs: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """E[loss] and E[∇loss] over every group: Σ_g π_old(g) ∇loss(g).

    Args:
      estimator: (Group) -> scalar; the order of a group's sequences must not matter to it.
      params: of the policy, by default logits [S, V].
      policy: (params) -> log-probabilities [S, V].
      group_size: G, sequences in a `Group`.
      old_log_probs: nats [S, V], of the policy that samples; None is the policy itself.
      ref_log_probs: nats [S, V], of the reference; None is the policy that samples.

    >>> language = Language(vocab_size=2, length=1)
    >>> reinforce = lambda group: -jnp.sum(group.log_probs * group.rewards[:, None])
    >>> expected_value_and_grad(reinforce, jnp.zeros((1, 2)), jnp.array([0.0, 4.0]), language)[1]
    Array([[ 1., -1.]], dtype=float32)
    """

    def mean(params):
        losses, weights = _losses(estimator, policy(params), tables, language, group_size)
        return jnp.sum(losses * weights)

    tables = _tables(policy(params), rewards, language, old_log_probs, ref_log_probs)
    return jax.value_and_grad(mean)(params)


@_validation.typed
def moments(
    estimator: Callable[[Group], jax.Array],
    params: Any,
    rewards: jax.Array,
    language: Language,
    *,
    policy: Callable[[Any], jax.Array] = jax.nn.log_softmax,
    group_size: int = 1,
    old_log_probs: jax.Array | None = None,
    ref_log_probs: jax.Array | None = None,
) -> Moments:
    """Mean and variance of an estimator's gradient; a backward pass for each group.

    >>> language = Language(vocab_size=2, length=1)
    >>> reinforce = lambda group: -jnp.sum(group.log_probs * group.rewards[:, None])
    >>> moments(reinforce, jnp.zeros((1, 2)), jnp.array([0.0, 4.0]), language).variance
    Array(2., dtype=float32)
    """
    log_probs, pull_back = jax.vjp(policy, params)
    value, mean = expected_value_and_grad(
        estimator,
        params,
        rewards,
        language,
        policy=policy,
        group_size=group_size,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
    )
    tables = _tables(log_probs, rewards, language, old_log_probs, ref_log_probs)

    def distance(row):
        loss = lambda log_probs: estimator(_group(log_probs, tables, language, row))
        gradient = pull_back(jax.grad(loss)(log_probs))[0]
        squares = jax.tree.map(lambda x, m: jnp.sum(jnp.square(x - m)), gradient, mean)
        return sum(jax.tree.leaves(squares))

    # one number a group comes out of the loop, so that large policies need no more memory
    distances = jax.lax.map(distance, groups(language, group_size)[0], batch_size=256)
    return Moments(value, mean, jnp.sum(distances * _weights(tables, language, group_size)))


@functools.lru_cache(maxsize=16)
@_validation.typed
def groups(language: Language, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every multiset of G outcomes, and the number of orders in which it can be drawn: [M, G] and [M].

    >>> members, counts = groups(Language(vocab_size=2, length=1), 2)
    >>> members.tolist(), counts.tolist()
    ([[0, 0], [0, 1], [1, 1]], [1.0, 2.0, 1.0])
    """
    _validation.integer(1, "groups", group_size=group_size)
    size = len(outcomes(language).tokens)
    total = math.comb(size + group_size - 1, group_size)
    if total > MAX_GROUPS:
        remedy = f"There are {total} groups: take smaller ones or a smaller language."
        expected = f"so small that {size} outcomes form at most {MAX_GROUPS} groups"
        raise _validation.invalid("group_size", group_size, expected, remedy, "groups")
    members = np.array(list(itertools.combinations_with_replacement(range(size), group_size)))
    repeats = np.ones(total)
    run = np.ones(total)
    for i in range(1, group_size):
        run = np.where(members[:, i] == members[:, i - 1], run + 1, 1)
        repeats *= run
    return members.astype(np.int32), math.factorial(group_size) / repeats


def _tables(log_probs, rewards, language, old_log_probs, ref_log_probs):
    """Rewards, old policy and reference: defaults filled in, without gradient."""
    check_rewards(language, rewards)
    old = jax.lax.stop_gradient(log_probs) if old_log_probs is None else old_log_probs
    ref = old if ref_log_probs is None else ref_log_probs
    check_table(language, log_probs=log_probs, old_log_probs=old, ref_log_probs=ref)
    return rewards, old, ref


def _losses(estimator, log_probs, tables, language, group_size):
    """The loss of every group and the probability of drawing it."""
    one = lambda row: estimator(_group(log_probs, tables, language, row))
    losses = jax.vmap(one)(groups(language, group_size)[0])
    return losses, _weights(tables, language, group_size)


def _weights(tables, language, group_size):
    members, counts = groups(language, group_size)
    log_probs = outcome_log_probs(tables[1], language)
    return jnp.exp(jnp.sum(log_probs[members], axis=1)) * jnp.asarray(counts, log_probs.dtype)


def _group(log_probs, tables, language, row):
    """The sequences of indices `row`, int [G], as a `Group`."""
    rewards, old, ref = tables
    tokens, mask, states = (jnp.asarray(x)[row] for x in outcomes(language))
    sampled = lambda table: table[states, tokens]
    return Group(
        sampled(log_probs),
        log_probs[states],
        sampled(old),
        sampled(ref),
        ref[states],
        rewards[row],
        tokens,
        mask,
        states,
    )
