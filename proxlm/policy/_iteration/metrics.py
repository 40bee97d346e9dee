"""The scalars that an iteration reports: of what was sampled, and of the updates."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.policy import aggregation, kl, protocols
from proxlm.policy._iteration import judging

__all__ = ["Metrics", "join", "of_rewards", "summarise"]


class Metrics(NamedTuple):
    """Scalars of one iteration: what was sampled, the coefficient, and means over the updates done.

    Where rewards have names, a field `reward_<name>` follows for each: its mean over what it judged.

    Attributes:
      reward: mean of the valid rewards, as the reward function gave them, weighted and summed if there
        are several; NaN without one, and where the policy that sampled was not finite.
      reward_std: their standard deviation.
      kl: nats per response: mean of the summed k1 to the reference; NaN without a reference.
      kl_k3: the same by k3, which has another bias and another noise.
      length: mean tokens per response, of all responses.
      length_ended: of those with a stop token; 0 without any, as the next two.
      length_above: of those with a reward above the batch's mean.
      length_below: of the other valid ones.
      ended: share of the responses with a stop token, of all responses.
      explained_variance: of the returns, by the old values; 0 without a critic.
      invalid_rewards: how many responses no reward judged: not finite, or too large for float32's
        squares; their rows are left out of loss and baselines.
      groups_without_spread: share of the groups whose valid rewards are all equal, which teach
        nothing when they are compared; 0 for groups of one.
      kl_coef: β of this iteration.
      policy_loss: clipped surrogate, aggregated.
      value_loss: clipped, a mean over tokens.
      entropy: nats per token.
      approx_kl: nats per token from the sampling policy (k3).
      clip_fraction_low: share of the tokens whose ratio is below the bound of the loss; NaN for a
        loss that does not clip the ratio.
      clip_fraction_high: share of those above its bound; NaN likewise.
      ratio_min: the smallest ratio of the iteration.
      ratio_max: the largest.
      first_ratio_error: max |ρ − 1| on the first minibatch; not about 0 means a mismatch between
        sampling and scoring.
      effective_sample_size: in (0, 1].
      grad_norm: global, before the optimizer sees the gradient.
      num_updates: optimizer steps taken.
      finite: bool, whether the parameters after the iteration and its losses are finite.
    """

    reward: jax.Array
    reward_std: jax.Array
    kl: jax.Array
    kl_k3: jax.Array
    length: jax.Array
    length_ended: jax.Array
    length_above: jax.Array
    length_below: jax.Array
    ended: jax.Array
    explained_variance: jax.Array
    invalid_rewards: jax.Array
    groups_without_spread: jax.Array
    kl_coef: jax.Array
    policy_loss: jax.Array
    value_loss: jax.Array
    entropy: jax.Array
    approx_kl: jax.Array
    clip_fraction_low: jax.Array
    clip_fraction_high: jax.Array
    ratio_min: jax.Array
    ratio_max: jax.Array
    first_ratio_error: jax.Array
    effective_sample_size: jax.Array
    grad_norm: jax.Array
    num_updates: jax.Array
    finite: jax.Array


def join(scalars: dict[str, jax.Array]) -> Any:
    """The metrics of an iteration; numbers that `Metrics` has no field for follow in further ones."""
    named = tuple(name for name in scalars if name not in Metrics._fields)
    return _with_fields(named)(**scalars) if named else Metrics(**scalars)


def of_rewards(means: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A number `reward_<name>` for each named reward, sorted; ValueError for one that is taken.

    >>> list(of_rewards({"right": 1.0, "brief": 0.5}))
    ['reward_brief', 'reward_right']
    """
    named = {f"reward_{name}": mean for name, mean in sorted(means.items())}
    if taken := sorted(set(named) & set(Metrics._fields)):
        remedy = f"The metrics have a {taken[0]} of their own: give it another name."
        raise _validation.invalid("reward", taken[0].removeprefix("reward_"), "a new name", remedy)
    return named


@functools.cache
def _with_fields(names: tuple[str, ...]) -> Any:
    """The type of metrics with further fields; the same one for the same names, as scans need it."""
    fields: Any = [(name, jax.Array) for name in (*Metrics._fields, *names)]
    return NamedTuple("Metrics", fields)


def summarise(
    samples: protocols.Samples,
    rewards: jax.Array,
    sound: jax.Array,
    log_ratio: jax.Array | None,
    explained_variance: jax.Array,
    group_size: int,
    means: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    """Scalars of samples with rewards `[B]`, NaN where not judged, and log-ratios k1 `[B, R]` or None.

    Without `sound` parameters the rewards mean nothing.
    """
    valid, mask = jnp.isfinite(rewards), samples.response_mask
    lengths = jnp.sum(mask, axis=1, dtype=jnp.float32)
    known = sound & jnp.any(valid)
    mean, variance = aggregation.masked_mean(rewards, valid), aggregation.masked_var(rewards, valid)
    above = valid & (rewards > mean)
    over = lambda rows: aggregation.masked_mean(lengths, rows)
    scalars = dict(
        reward=jnp.where(known, mean, jnp.nan),
        reward_std=jnp.where(known, jnp.sqrt(variance), jnp.nan),
        kl=jnp.float32(jnp.nan) if log_ratio is None else _mean_of_sums(log_ratio, mask),
        kl_k3=jnp.float32(jnp.nan) if log_ratio is None else _mean_of_sums(kl.k3(log_ratio, 0.0), mask),
        length=jnp.mean(lengths),
        length_ended=over(samples.ended),
        length_above=over(above),
        length_below=over(valid & ~above),
        ended=jnp.mean(samples.ended.astype(jnp.float32)),
        explained_variance=explained_variance,
        invalid_rewards=jnp.sum(~valid),
        groups_without_spread=_without_spread(rewards, group_size),
    )
    return scalars | of_rewards(means)


def _without_spread(rewards, group_size):
    """The share of groups whose valid rewards are all equal."""
    if group_size < 2:
        return jnp.float32(0.0)
    return jnp.mean(~judging.groups_vary(rewards, group_size), dtype=jnp.float32)


def _mean_of_sums(x, mask):
    """The mean over responses of the sum over their tokens."""
    return jnp.mean(jax.vmap(aggregation.masked_sum)(x, mask))
