"""From samples and rewards to what a policy learns from: advantages, returns, old values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.policy import diagnostics, protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._iteration import checks, grouping, judging, metrics, reference
from proxlm.policy.advantages import temporal as advantage_lib

__all__ = ["Experience", "all_finite", "prepare"]


class Experience(NamedTuple):
    """The data that minibatches are cut from, a row per response.

    Attributes:
      samples: as the actor sampled them; its log_probs are those of the sampler.
      mask: bool `[B, R]`: the response tokens that count.
      values: float32 `[B, R]`, of the old critic, or None.
      advantages: float32 `[B, R]`.
      returns: float32 `[B, R]`, or None where no critic is to learn.
      reference: log-probs under the reference, `[B, R]`, or for the exact KL in the loss what
        `GroupedActor.compare` is to know of it, `[B, R, ...]`; None where the loss has no KL.
      old_log_probs: `[B, R]`, of the old policy scored anew; None where they are the sampler's.
      correction: weights `[B, R]` of the old policy over the sampler, or None.
    """

    samples: Any
    mask: jax.Array
    values: jax.Array | None
    advantages: jax.Array
    returns: jax.Array | None
    reference: Any
    old_log_probs: jax.Array | None = None
    correction: jax.Array | None = None


def prepare(
    state: Any, samples: protocols.Samples, rewards: Any, actor: protocols.Actor, config: PPOConfig
) -> tuple[Experience, dict[str, jax.Array]]:
    """Per-token rewards with the KL in them, values, advantages and returns.

    With a greedy baseline the samples of `actor.greedy` come after those of `actor.sample`.
    """
    # as many rows at a time as in the update
    slices = 1 if config.num_microbatches == 1 else config.num_minibatches * config.num_microbatches
    actor = grouping.grouped(actor, config.group_size, slices)
    judged = judging.judge(rewards, samples.response_mask, config)
    given = _given(judged, samples, config)
    rewards, per_token = judged.total, judged.per_token
    if config.greedy_baseline:
        samples, rewards, given, per_token = _above_greedy(samples, judged, given, config.group_size)
    checks.check_batch(samples.tokens.shape[0], config)
    mask = samples.response_mask & jnp.isfinite(rewards)[:, None]
    scores, compared = reference.compare(state, samples, actor, config)
    token_rewards = _token_rewards(given, per_token, compared.penalty, mask, state.kl_coef, config)
    if config.bootstrap:
        token_rewards = token_rewards + _bootstrapped(state.params, samples, mask, actor, config)
    discounts = getattr(samples, "discounts", None)
    advantages, returns = config.estimate(token_rewards, scores.values, mask, discounts)
    if returns is None and config.value is not None:
        remedy = "These advantages give no returns for a critic."
        raise _validation.invalid("value", config.value, "None", remedy, "PPOConfig")
    values = None if returns is None else scores.values
    experience = Experience(samples, mask, values, advantages, returns, compared.for_loss)
    experience = _teaching(experience, rewards, scores, config)
    summary = metrics.summarise(
        samples,
        rewards,
        _is_sound(state.params, samples, scores),
        compared.k1,
        _explained(values, returns, mask),
        config.group_size,
        judged.means,
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


def _bootstrapped(params, samples, mask, actor, config):
    """γ V after the last token of each response that was cut, at that token: as if it were a reward."""
    discount = config.advantage.settings.get("discount", 1.0)
    beyond = jnp.where(samples.ended, 0.0, discount * actor.final_values(params, samples))
    placed = jax.vmap(advantage_lib.place_score)(beyond, mask)
    discounts = getattr(samples, "discounts", None)
    return placed if discounts is None else placed * jnp.where(mask, discounts, 0.0)


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
    # a maximum keeps NaN; a fused `all` of each leaf took three times as long to compile
    return jnp.all(jnp.isfinite(jnp.array([jnp.max(jnp.abs(x), initial=0.0) for x in leaves])))


def _given(judged, samples, config):
    """The score of each response: its reward, without what its length or a missing end costs."""
    score, mask = judged.score, samples.response_mask
    if config.length_penalty is not None:
        score = score + config.length_penalty(jnp.sum(mask, axis=1), mask.shape[1])
    if config.missing_eos_penalty is not None:
        score = advantage_lib.missing_eos(score, samples.ended, config.missing_eos_penalty)
    return score


def _above_greedy(samples, judged, score, group_size):
    """The samples without the greedy answers at their end, scored by what they are above them.

    A reward that is not finite spoils those of its whole group.
    """
    rewards, per_token = judged.total, judged.per_token
    batch = rewards.shape[0] // (group_size + 1) * group_size
    own = lambda x: x[:batch]
    greedy = lambda x: jnp.repeat(x[batch:], group_size)
    spoilt = jnp.where(jnp.isfinite(greedy(rewards)), own(rewards), greedy(rewards))
    baseline = score if per_token is None else score + jnp.sum(per_token, axis=1)
    above = own(score) - greedy(baseline)
    return jax.tree.map(own, samples), spoilt, above, None if per_token is None else own(per_token)


def _token_rewards(score, per_token, penalty, mask, kl_coef, config):
    """−β·KL at every token and its own reward, plus the score at the last one."""
    shaped = jax.vmap(advantage_lib.shape_rewards, (0, 0, 0, None))(score, penalty, mask, kl_coef)
    if per_token is not None:
        shaped = shaped + jnp.where(mask, per_token, 0.0)
    if config.whitening is None or not config.whitening.rewards:
        return shaped
    return config.whitening(shaped, mask, shift_mean=False)
