"""Advantages of a whole batch, from its token rewards: what a recipe asks for.

Each is `(rewards [B, T], values [B, T] or None, mask [B, T], group_size) -> (advantages, returns)`;
returns are None where no critic is to learn.  The sequences of one prompt lie side by side. One of
your own is a function of the same arguments.
"""

import jax
import jax.numpy as jnp

from proxlm.policy import aggregation
from proxlm.policy.advantages import group, returns
from proxlm.policy.advantages import temporal as advantage_lib


def gae_advantages(rewards, values, mask, group_size=1, discount=1.0, gae_lambda=0.95, holes="skip"):
    """Generalised advantage estimates and their returns.

    Args:
      rewards: [B, T].
      values: [B, T], of a critic.
      mask: bool [B, T].
      group_size: not used.
      discount: γ.
      gae_lambda: λ.
      holes: as in `gae`.

    Returns:
      Advantages and returns, [B, T] each.

    Raises:
      ValueError: without a critic, and as `gae`.

    >>> rewards, values, mask = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    >>> gae_advantages(rewards, values, mask, gae_lambda=0.5)[0].tolist()
    [[1.5, 1.0]]
    """
    check_critic(values)
    one = lambda *row: advantage_lib.gae(*row, discount, gae_lambda, holes=holes)
    return jax.vmap(one)(rewards, values, mask)


def length_adaptive_advantages(rewards, values, mask, group_size=1, alpha=0.05, critic_lambda=1.0):
    """VAPO: λ = 1 - 1/(α l) for the policy, another λ for the critic; γ = 1.

    Args:
      rewards: [B, T].
      values: [B, T], of a critic.
      mask: bool [B, T].
      group_size: not used.
      alpha: as in `returns.adaptive_lambda`.
      critic_lambda: λ of the returns.

    Returns:
      Advantages and returns, [B, T] each.

    Raises:
      ValueError: without a critic, and as `returns.decoupled_gae`.

    Source: Yue et al. (2025).

    >>> rewards, values, mask = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    >>> length_adaptive_advantages(rewards, values, mask, alpha=1.0)[0].tolist()
    [[1.5, 1.0]]
    """
    check_critic(values)
    one = lambda reward, value, valid, gae_lambda: returns.decoupled_gae(
        reward, value, valid, 1.0, gae_lambda, critic_lambda
    )
    return jax.vmap(one)(rewards, values, mask, returns.adaptive_lambda(mask, alpha))


def group_advantages(rewards, values, mask, group_size, baseline=group.leave_one_out):
    """Every token has the advantage of its sequence among those of its group.

    Args:
      rewards: [B, T]; a sequence is worth their sum over its valid tokens.
      values: not used.
      mask: bool [B, T]; a sequence without a valid token leaves its group.
      group_size: G, at least 2.
      baseline: (rewards [G], valid [G]) -> advantages [G].

    Returns:
      Advantages [B, T] and None.

    Raises:
      ValueError: if the batch does not divide into groups.

    >>> rewards, mask = jnp.array([[0.0, 1.0], [3.0, 0.0]]), jnp.ones((2, 2), bool)
    >>> group_advantages(rewards, None, mask, group_size=2)[0].tolist()
    [[-2.0, -2.0], [2.0, 2.0]]
    """
    scores, valid = _scores(rewards, mask)
    return returns.over_tokens(group.by_group(baseline, group_size, scores, valid), mask), None


def batch_scaled_advantages(rewards, values, mask, group_size, epsilon=1e-4, ddof=1):
    """As `group_advantages`, against the mean of the group, in units of the deviation over the batch.

    Args:
      rewards: [B, T].
      values: not used.
      mask: bool [B, T].
      group_size: G, at least 2.
      epsilon: as in `group.batch_scaled`.
      ddof: as in `group.batch_scaled`.

    Returns:
      Advantages [B, T] and None.

    Raises:
      ValueError: if the batch does not divide into groups.

    Source: Liu et al. (2025), tricks or traps; TRL's `scale_rewards="batch"`.

    >>> rewards, mask = jnp.array([[0.0, 1.0], [3.0, 0.0]]), jnp.ones((2, 2), bool)
    >>> batch_scaled_advantages(rewards, None, mask, group_size=2, epsilon=1.0, ddof=0)[0].tolist()
    [[-0.5, -0.5], [0.5, 0.5]]
    """
    scores, valid = _scores(rewards, mask)
    per_sequence = group.batch_scaled(scores, group_size, valid, epsilon, ddof)
    return returns.over_tokens(per_sequence, mask), None


def length_weighted_advantages(rewards, values, mask, group_size):
    """OPO: against the mean reward of the group, weighed by lengths.

    Args:
      rewards: [B, T].
      values: not used.
      mask: bool [B, T].
      group_size: G, at least 2.

    Returns:
      Advantages [B, T] and None.

    Raises:
      ValueError: if the batch does not divide into groups.

    Source: Hao et al. (2025).

    >>> rewards, mask = jnp.array([[4.0, 0.0], [0.0, 0.0]]), jnp.array([[True] * 2, [True] * 2])
    >>> length_weighted_advantages(rewards, None, mask, group_size=2)[0].tolist()
    [[2.0, 2.0], [-2.0, -2.0]]
    """
    scores, valid = _scores(rewards, mask)
    lengths = jnp.sum(mask, axis=1)
    per_sequence = group.by_group(group.length_weighted, group_size, scores, lengths, valid)
    return returns.over_tokens(per_sequence, mask), None


def reward_to_go_advantages(rewards, values, mask, group_size=1, discount=1.0):
    """REINFORCE: the reward still to come, without a baseline.

    Args:
      rewards: [B, T].
      values: not used.
      mask: bool [B, T].
      group_size: not used.
      discount: γ.

    Returns:
      Advantages [B, T] and None.

    Raises:
      ValueError: as `returns.reward_to_go`.

    >>> reward_to_go_advantages(jnp.array([[0.5, 1.0]]), None, jnp.ones((1, 2), bool))[0].tolist()
    [[1.5, 1.0]]
    """
    one = lambda *row: returns.reward_to_go(*row, discount)
    return jax.vmap(one)(rewards, mask), None


def check_critic(values) -> None:
    """Asks for values.

    Raises:
      ValueError: saying how to come by them.

    >>> check_critic(jnp.zeros((1, 2)))
    """
    if values is None:
        raise ValueError(
            "values is None, but these advantages need a critic: give the actor one (a policy with "
            "value_head=True, or a critic of its own), or take a recipe without."
        )


def _scores(rewards, mask):
    rewards = aggregation.select(rewards, mask, "rewards")
    return jnp.sum(rewards, axis=1), jnp.any(mask, axis=1)
