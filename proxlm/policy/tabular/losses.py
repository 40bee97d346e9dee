"""The loss of a whole iteration's recipe on one group, as an estimator of a small language."""

import jax
import jax.numpy as jnp

from proxlm.policy import _experience, aggregation, kl
from proxlm.policy.advantages import group as baselines
from proxlm.policy.advantages import temporal as advantage_lib
from proxlm.policy.config import PPOConfig


def minibatch_loss(config: PPOConfig, values: jax.Array | None = None):
    """What one minibatch of that configuration would minimise, for `expected_value_and_grad` and `moments`.

    The batch is the group itself: advantages are whitened over it, weights are those of it.

    Args:
      config: a `PPOConfig`; without the loss of a critic, entropy bonus and off-policy correction.
        A greedy baseline is a number of the whole language: take it off the rewards.
      values: [S], the critic's, or None for recipes without one.

    Returns:
      (Group) -> scalar loss.

    Raises:
      ValueError: when called on a group, if its size does not suit the recipe.

    >>> from proxlm.policy import recipes

    >>> from proxlm.policy import tabular
    >>> language = tabular.Language(vocab_size=2, length=1)
    >>> loss = minibatch_loss(recipes.make("rloo", group_size=2, kl_coef=0.0))
    >>> logits, rewards = jnp.zeros((1, 2)), jnp.array([0.0, 4.0])
    >>> tabular.expected_value_and_grad(loss, logits, rewards, language, group_size=2)[1]
    Array([[ 1., -1.]], dtype=float32)
    """

    def loss(group):
        mask = group.mask
        in_loss = config.kl is not None and config.kl.placement == "loss"
        price = jnp.zeros_like(group.log_probs)
        if config.kl is not None and not in_loss:
            price = _reference_kl(group, config, jax.lax.stop_gradient)
        coef = 0.0 if config.kl is None else config.kl.coef
        score = group.rewards
        if config.length_penalty is not None:
            score = score + config.length_penalty(jnp.sum(mask, axis=1), mask.shape[1])
        shape = lambda *row: advantage_lib.shape_rewards(*row, coef)
        token_rewards = jax.vmap(shape)(score, price, mask)
        critic = None if values is None else values[group.states]
        advantages, _ = _experience.advantage(token_rewards, critic, mask, config)
        if config.group_filter is not None:
            keep = baselines.by_group(
                config.group_filter, config.group_size, group.rewards, jnp.any(mask, axis=1)
            )
            mask = mask & keep[:, None]
        tokens = config.loss(group.log_probs, group.old_log_probs, advantages, mask)
        if in_loss:
            tokens = tokens + coef * _reference_kl(group, config, lambda x: x)
        return aggregation.weighted_sum(tokens, aggregation.weights(mask, config.aggregation))

    return loss


def _reference_kl(group, config, watched):
    """The KL penalty of each token, of what `watched` lets the gradient see."""
    if config.kl.estimator == "exact":
        return kl.exact(watched(group.distribution), group.ref_distribution)
    return kl.estimator(config.kl.estimator)(watched(group.log_probs), group.ref_log_probs)
