"""From samples and rewards to what a policy learns from: advantages, returns, old values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.policy import aggregation, diagnostics, kl
from proxlm.policy.advantages import group
from proxlm.policy.advantages import temporal as advantage_lib


class Experience(NamedTuple):
    """What the minibatches are cut from, a row per response.

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
      reward: mean over responses, as the reward function gave it.
      reward_std: standard deviation over responses.
      kl: nats per response: mean of the summed k1 to the reference.
      length: mean tokens per response.
      ended: share of the responses with a stop token.
      explained_variance: of the returns, by the old values; 0 without a critic.
      invalid_rewards: how many were not finite; their rows are left out.
    """

    reward: jax.Array
    reward_std: jax.Array
    kl: jax.Array
    length: jax.Array
    ended: jax.Array
    explained_variance: jax.Array
    invalid_rewards: jax.Array


def prepare(state, samples, rewards, actor, config):
    """Per-token rewards with the KL in them, values, advantages and returns.

    Args:
      state: a `PPOState`.
      samples: of `actor.sample`; with a greedy baseline, those of `actor.greedy` after them.
      rewards: float, one for each of the samples.
      actor: as in `ppo.make_step`.
      config: a `PPOConfig`.

    Returns:
      `(Experience, Summary)`.
    """
    given = _given(rewards, samples, config)
    if config.greedy_baseline:
        samples, rewards, given = _above_greedy(samples, rewards, given, config.group_size)
    finite = jnp.isfinite(rewards)
    mask = samples.response_mask & finite[:, None]
    in_loss = config.kl is not None and config.kl.placement == "loss"
    exact = config.kl is not None and config.kl.estimator == "exact"
    scores = actor.score(state.params, samples, full=exact and not in_loss)
    old = samples if config.correction is None else scores
    k1 = penalty = jnp.zeros_like(old.log_probs)
    reference = None
    if config.kl is not None:
        reference = actor.reference(state.ref_params, samples, full=exact)
        k1 = kl.k1(old.log_probs, reference.log_probs)
        penalty = penalty if in_loss else _token_kl(config, old, scores, reference)
    token_rewards = _token_rewards(given, penalty, mask, state.kl_coef, config)
    advantages, returns = advantage(token_rewards, scores.values, mask, config)
    if returns is None and config.value is not None:
        raise _validation.invalid(
            "value", config.value, "None", "These advantages give no returns for a critic.", "PPOConfig"
        )
    kept = (reference.distribution if exact else reference.log_probs) if in_loss else None
    values = None if returns is None else scores.values
    experience = Experience(samples, mask, values, advantages, returns, kept)
    experience = _teaching(experience, rewards, scores, config)
    mean = lambda x: aggregation.masked_mean(x, finite)
    summary = Summary(
        reward=mean(rewards),
        reward_std=jnp.sqrt(aggregation.masked_var(rewards, finite)),
        kl=mean(jax.vmap(aggregation.masked_sum)(k1, mask)),
        length=mean(jnp.sum(mask, axis=1, dtype=jnp.float32)),
        ended=mean(samples.ended.astype(jnp.float32)),
        explained_variance=_explained(values, returns, mask),
        invalid_rewards=jnp.sum(~finite),
    )
    return experience, summary


def advantage(token_rewards, values, mask, config):
    """Advantages `[B, R]`, whitened if configured, and returns, or None without a critic.

    Args:
      token_rewards: `[B, R]`.
      values: `[B, R]`, or None without a critic.
      mask: bool `[B, R]`.
      config: a `PPOConfig`.

    >>> from proxlm.policy import ppo
    >>> rewards, mask = jnp.array([[1.0]]), jnp.array([[True]])
    >>> advantage(rewards, rewards - 0.5, mask, ppo.PPOConfig(whitening=None))
    (Array([[0.5]], dtype=float32), Array([[1.]], dtype=float32))
    """
    result = config.advantage(token_rewards, values, mask, config.group_size)
    advantages, returns = result if isinstance(result, tuple) else (result, None)
    if config.whitening is not None and config.whitening.advantages:
        advantages = _whiten(advantages, mask, config.whitening)
    return advantages, returns


def _teaching(experience, rewards, scores, config):
    """What the recipe leaves out and corrects, once advantages are known."""
    if config.group_filter is not None:
        valid = jnp.any(experience.mask, axis=1)
        keep = group.by_group(config.group_filter, config.group_size, rewards, valid)
        experience = experience._replace(mask=experience.mask & keep[:, None])
    if config.correction is None:
        return experience
    weights = config.correction(scores.log_probs, experience.samples.log_probs, experience.mask)
    return experience._replace(old_log_probs=scores.log_probs, correction=weights)


def _explained(values, returns, mask):
    if returns is None:
        return jnp.float32(0.0)
    return diagnostics.explained_variance(values, returns, mask)


def _token_kl(config, old, scores, reference):
    """The KL penalty of each token, for the reward."""
    if config.kl.estimator == "exact":
        return kl.exact(scores.distribution, reference.distribution)
    return kl.estimator(config.kl.estimator)(old.log_probs, reference.log_probs)


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
    shape = lambda *row: advantage_lib.shape_rewards(*row, kl_coef)
    shaped = jax.vmap(shape)(score, penalty, mask)
    if config.whitening is None or not config.whitening.rewards:
        return shaped
    return _whiten(shaped, mask, config.whitening, shift_mean=False)


def _whiten(x, mask, whitening, **options):
    """Whitening over the whole batch, by the configured convention."""
    return advantage_lib.whiten(x, mask, ddof=whitening.ddof, epsilon=whitening.epsilon, **options)
