"""From samples and rewards to what a policy learns from: advantages, returns, old values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm.policy import advantages as advantage_lib
from proxlm.policy import aggregation, diagnostics, kl


class Experience(NamedTuple):
    """What the minibatches are cut from, a row per response.

    Attributes:
      samples: as the actor sampled them; its log_probs are those of the old policy.
      mask: bool `[B, R]`: the response tokens that count.
      values: float32 `[B, R]`, of the old critic.
      advantages: float32 `[B, R]`.
      returns: float32 `[B, R]`.
      reference: log-probs under the reference, `[B, R]`, or `[B, R, V]` for the exact KL in the
        loss; None where the loss has no KL.
    """

    samples: Any
    mask: jax.Array
    values: jax.Array
    advantages: jax.Array
    returns: jax.Array
    reference: jax.Array | None


class Summary(NamedTuple):
    """Scalars about what was sampled, before any update.

    Attributes:
      reward: mean over responses, as the reward function gave it.
      reward_std: standard deviation over responses.
      kl: nats per response: mean of the summed k1 to the reference.
      length: mean tokens per response.
      ended: share of the responses with a stop token.
      explained_variance: of the returns, by the old values.
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
      samples: of `actor.sample`.
      rewards: float `[B]`.
      actor: as in `ppo.make_step`.
      config: a `PPOConfig`.

    Returns:
      `(Experience, Summary)`.
    """
    finite = jnp.isfinite(rewards)
    mask = samples.response_mask & finite[:, None]
    in_loss = config.kl_placement == "loss"
    exact = config.kl_estimator == "exact"
    scores = actor.score(state.params, samples, full=exact and not in_loss)
    reference = actor.reference(state.ref_params, samples, full=exact)
    k1 = kl.k1(samples.log_probs, reference.log_probs)
    penalty = jnp.zeros_like(k1) if in_loss else _token_kl(config, samples, scores, reference)
    token_rewards = _token_rewards(rewards, samples, penalty, mask, state.kl_coef, config)
    gae = lambda *row: advantage_lib.gae(*row, config.discount, config.gae_lambda)
    advantages, returns = jax.vmap(gae)(token_rewards, scores.values, mask)
    if config.whiten_advantages:
        advantages = _whiten(advantages, mask, config)
    kept = (reference.distribution if exact else reference.log_probs) if in_loss else None
    experience = Experience(samples, mask, scores.values, advantages, returns, kept)
    mean = lambda x: aggregation.masked_mean(x, finite)
    summary = Summary(
        reward=mean(rewards),
        reward_std=jnp.sqrt(aggregation.masked_var(rewards, finite)),
        kl=mean(jax.vmap(aggregation.masked_sum)(k1, mask)),
        length=mean(jnp.sum(mask, axis=1, dtype=jnp.float32)),
        ended=mean(samples.ended.astype(jnp.float32)),
        explained_variance=diagnostics.explained_variance(scores.values, returns, mask),
        invalid_rewards=jnp.sum(~finite),
    )
    return experience, summary


def _token_kl(config, samples, scores, reference):
    """The KL penalty of each token, for the reward."""
    if config.kl_estimator == "exact":
        return kl.exact(scores.distribution, reference.distribution)
    return kl.estimator(config.kl_estimator)(samples.log_probs, reference.log_probs)


def _token_rewards(rewards, samples, penalty, mask, kl_coef, config):
    """−β·KL at every token, plus the score at the last one."""
    score = jnp.where(jnp.isfinite(rewards), rewards, 0.0)
    if config.missing_eos_penalty is not None:
        score = advantage_lib.missing_eos(score, samples.ended, config.missing_eos_penalty)
    shape = lambda *row: advantage_lib.shape_rewards(*row, kl_coef)
    shaped = jax.vmap(shape)(score, penalty, mask)
    return _whiten(shaped, mask, config, shift_mean=False) if config.whiten_rewards else shaped


def _whiten(x, mask, config, **options):
    """Whitening over the whole batch, by the configured convention."""
    return advantage_lib.whiten(
        x, mask, ddof=config.whiten_ddof, epsilon=config.whiten_epsilon, **options
    )
