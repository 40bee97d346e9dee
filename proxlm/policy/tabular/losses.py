"""The loss that a `PPOConfig` minimises on one group, as an estimator on a small language."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.policy import aggregation, kl
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._finite import scaled
from proxlm.policy.advantages import group as baselines
from proxlm.policy.advantages import temporal as advantage_lib
from proxlm.policy.tabular.estimators import Group

__all__ = ["minibatch_loss"]


@_validation.typed
def minibatch_loss(config: PPOConfig, values: jax.Array | None = None) -> Callable[[Group], jax.Array]:
    """The loss of one minibatch under a configuration, for `expected_value_and_grad` and `moments`.

    The batch is the group: advantages are whitened over it, and the weights of tokens are those of its mask.

    Args:
      config: a `PPOConfig`; the loss of a critic, the entropy bonus and the off-policy correction are left
        out. A greedy baseline is one number for the whole language: subtract it from the rewards. A group
        filter sees as ended what is shorter than the longest.
      values: [S], of the critic, or None for recipes without one.

    >>> from proxlm.policy import recipes, tabular
    >>> loss = minibatch_loss(recipes.make("rloo", group_size=2, kl_coef=0.0))
    >>> rewards, language = jnp.array([0.0, 4.0]), tabular.Language(vocab_size=2, length=1)
    >>> exact = lambda x: tabular.expected_value_and_grad(loss, x, rewards, language, group_size=2)
    >>> jax.jit(exact)(jnp.zeros((1, 2)))[1]
    Array([[ 1., -1.]], dtype=float32)
    """

    def loss(group):
        mask = group.mask
        in_loss = config.kl is not None and config.kl.placement == "loss"
        penalty = jnp.zeros_like(group.log_probs)
        if config.kl is not None and not in_loss:
            penalty = _reference_kl(group, config, jax.lax.stop_gradient)
        coef = 0.0 if config.kl is None else config.kl.coef
        score = group.rewards
        if config.reward_normalisation is not None:
            rows = score, jnp.isfinite(score)
            score = baselines.by_group(config.reward_normalisation, config.group_size, *rows)
        if config.length_penalty is not None:
            score = score + config.length_penalty(jnp.sum(mask, axis=1), mask.shape[1])
        shape = lambda score, penalty, mask: advantage_lib.shape_rewards(score, penalty, mask, coef)
        token_rewards = jax.vmap(shape)(score, penalty, mask)
        critic = None if values is None else values[group.states]
        advantages, _ = config.estimate(token_rewards, critic, mask)
        if config.group_filter is not None:
            lengths = jnp.sum(mask, axis=1)
            rows = group.rewards, lengths > 0, lengths < mask.shape[1], lengths
            keep = baselines.by_group(config.group_filter, config.group_size, *rows)
            mask = mask & keep[:, None]
        tokens = config.loss(group.log_probs, group.old_log_probs, advantages, mask)
        if in_loss:
            tokens = tokens + scaled(coef, _reference_kl(group, config, lambda x: x))
        return aggregation.weighted_sum(tokens, aggregation.weights(mask, config.aggregation))

    return loss


def _reference_kl(group, config, watched):
    """The KL penalty of each token, of what `watched` lets the gradient see."""
    if config.kl.estimator == "exact":
        return kl.exact(watched(group.distribution), group.ref_distribution)
    return kl.estimator(config.kl.estimator)(watched(group.log_probs), group.ref_log_probs)
