"""From samples and rewards to what a policy learns from: advantages, returns, old values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.policy import aggregation, diagnostics, protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._iteration import reference
from proxlm.policy.advantages import temporal as advantage_lib


class Experience(NamedTuple):
    """The data that minibatches are cut from, a row per response.

    Attributes:
      samples: as the actor sampled them; its log_probs are those of the sampler.
      mask: bool `[B, R]`: the response tokens that count.
      values: float32 `[B, R]`, of the old critic, or None.
      advantages: float32 `[B, R]`.
      returns: float32 `[B, R]`, or None where no critic is to learn.
      reference: log-probs under the reference, `[B, R]`, or `[B, R, V]` for the exact KL in the
        loss; None where the loss has no KL.
      old_log_probs: `[B, R]`, of the old policy scored anew; None where they are the sampler's.
      correction: weights `[B, R]` of the old policy over the sampler, or None.
    """

    samples: Any
    mask: jax.Array
    values: jax.Array | None
    advantages: jax.Array
    returns: jax.Array | None
    reference: jax.Array | None
    old_log_probs: jax.Array | None = None
    correction: jax.Array | None = None


class Summary(NamedTuple):
    """Scalars about what was sampled, before any update.

    Attributes:
      reward: mean of the valid rewards, as the reward function gave them; NaN without one, and where
        the policy that sampled was not finite.
      reward_std: their standard deviation.
      kl: nats per response: mean of the summed k1 to the reference; NaN without a reference.
      length: mean tokens per response, of all responses.
      ended: share of the responses with a stop token, of all responses.
      explained_variance: of the returns, by the old values; 0 without a critic.
      invalid_rewards: how many were not finite or too large for float32's squares; their rows are
        left out of loss and baselines.
    """

    reward: jax.Array
    reward_std: jax.Array
    kl: jax.Array
    length: jax.Array
    ended: jax.Array
    explained_variance: jax.Array
    invalid_rewards: jax.Array


# Squares of larger ones, summed over a batch and the parameters, could overflow float32.
MAX_REWARD = 1e12


def prepare(
    state: Any, samples: protocols.Samples, rewards: jax.Array, actor: protocols.Actor, config: PPOConfig
) -> tuple[Experience, Summary]:
    """Per-token rewards with the KL in them, values, advantages and returns.

    With a greedy baseline the samples of `actor.greedy` come after those of `actor.sample`.
    """
    rewards = jnp.where(jnp.abs(rewards) <= MAX_REWARD, rewards, jnp.nan)
    given = _given(rewards, samples, config)
    if config.greedy_baseline:
        samples, rewards, given = _above_greedy(samples, rewards, given, config.group_size)
    valid = jnp.isfinite(rewards)
    mask = samples.response_mask & valid[:, None]
    scores = actor.score(state.params, samples, full=reference.needs_distribution(actor, config))
    old = samples if config.correction is None else scores
    compared = reference.compare(state, samples, old, scores, actor, config)
    token_rewards = _token_rewards(given, compared.penalty, mask, state.kl_coef, config)
    advantages, returns = config.estimate(token_rewards, scores.values, mask)
    if returns is None and config.value is not None:
        remedy = "These advantages give no returns for a critic."
        raise _validation.invalid("value", config.value, "None", remedy, "PPOConfig")
    values = None if returns is None else scores.values
    experience = Experience(samples, mask, values, advantages, returns, compared.for_loss)
    experience = _teaching(experience, rewards, scores, config)
    summary = Summary(
        *_reward_moments(rewards, valid, _is_sound(state.params, samples, scores)),
        kl=_mean_of_sums(compared.k1, samples.response_mask) if config.kl else jnp.float32(jnp.nan),
        length=jnp.mean(jnp.sum(samples.response_mask, axis=1, dtype=jnp.float32)),
        ended=jnp.mean(samples.ended.astype(jnp.float32)),
        explained_variance=_explained(values, returns, mask),
        invalid_rewards=jnp.sum(~valid),
    )
    return experience, summary


def _teaching(experience, rewards, scores, config):
    """Filters groups and corrects for another sampler, once advantages are known."""
    if config.group_filter is not None:
        samples, size = experience.samples, config.group_size
        lengths = jnp.sum(samples.response_mask, axis=1)
        rows = rewards, jnp.any(experience.mask, axis=1), samples.ended, lengths
        keep = jax.vmap(config.group_filter)(*(x.reshape(-1, size) for x in rows)).reshape(-1)
        experience = experience._replace(mask=experience.mask & keep[:, None])
    if config.correction is None:
        return experience
    weights = config.correction(scores.log_probs, experience.samples.log_probs, experience.mask)
    return experience._replace(old_log_probs=scores.log_probs, correction=weights)


def _explained(values, returns, mask):
    if returns is None:
        return jnp.float32(0.0)
    return diagnostics.explained_variance(values, returns, mask)


def _is_sound(params, samples, scores):
    """Whether the policy that sampled was finite: its parameters, and what it says of its samples."""
    said = jnp.where(samples.response_mask, samples.log_probs + scores.log_probs, 0.0)
    return all_finite(params) & ~jnp.any(jnp.isnan(said))


def all_finite(tree: optax.Params) -> jax.Array:
    """Whether every number of a pytree is finite, a bool scalar.

    >>> all_finite({"w": jnp.array([1.0, jnp.inf])}).item()
    False
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves], bool))


def _reward_moments(rewards, valid, sound):
    """Mean and deviation of the valid rewards, NaN where they mean nothing."""
    known = sound & jnp.any(valid)
    moments = aggregation.masked_mean(rewards, valid), jnp.sqrt(aggregation.masked_var(rewards, valid))
    return tuple(jnp.where(known, x, jnp.nan) for x in moments)


def _mean_of_sums(x, mask):
    """The mean over responses of the sum over their tokens."""
    return jnp.mean(jax.vmap(aggregation.masked_sum)(x, mask))


def _given(rewards, samples, config):
    """The score of each response: its reward, without what its length or a missing end costs."""
    score, mask = jnp.where(jnp.isfinite(rewards), rewards, 0.0), samples.response_mask
    if config.length_penalty is not None:
        score = score + config.length_penalty(jnp.sum(mask, axis=1), mask.shape[1])
    if config.missing_eos_penalty is not None:
        score = advantage_lib.missing_eos(score, samples.ended, config.missing_eos_penalty)
    return score


def _above_greedy(samples, rewards, score, group_size):
    """The samples without the greedy answers at their end, scored by what they are above them.

    A reward that is not finite spoils those of its whole group.
    """
    batch = rewards.shape[0] // (group_size + 1) * group_size
    own = lambda x: x[:batch]
    greedy = lambda x: jnp.repeat(x[batch:], group_size)
    spoilt = jnp.where(jnp.isfinite(greedy(rewards)), own(rewards), greedy(rewards))
    return jax.tree.map(own, samples), spoilt, own(score) - greedy(score)


def _token_rewards(score, penalty, mask, kl_coef, config):
    """−β·KL at every token, plus the score at the last one."""
    shaped = jax.vmap(advantage_lib.shape_rewards, (0, 0, 0, None))(score, penalty, mask, kl_coef)
    if config.whitening is None or not config.whitening.rewards:
        return shaped
    return config.whitening(shaped, mask, shift_mean=False)
