"""Advantages of a whole batch, from its rewards per token, in the form that a recipe takes.

Each is a function

    (rewards, values, mask, group_size, **settings) -> (advantages, returns)

of rewards [B, T]; values [B, T] of a critic, or None without one; a mask, bool [B, T]; and the number of
responses to each prompt, which lie side by side. The results are [B, T], 0 where masked; returns are None
where no critic is trained. Settings are those of the function of one sequence or group. All raise ValueError
if the batch does not divide into groups or a setting is out of range. Advantages of your own are a function
of the same arguments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy._finite import Number
from proxlm.policy.advantages import group, returns
from proxlm.policy.advantages.temporal import gae

__all__ = [
    "batch_scaled_advantages",
    "check_critic",
    "gae_advantages",
    "group_advantages",
    "length_adaptive_advantages",
    "length_weighted_advantages",
    "reward_to_go_advantages",
]

Estimate = tuple[jax.Array, jax.Array | None]


@_validation.typed
def gae_advantages(
    rewards: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    group_size: int = 1,
    discount: Number = 1.0,
    gae_lambda: Number = 0.95,
    holes: str = "skip",
    discounts: jax.Array | None = None,
) -> Estimate:
    """Generalised advantage estimates and their returns, as `gae`; the size of groups is not read.

    >>> rewards, values, mask = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    >>> gae_advantages(rewards, values, mask, gae_lambda=0.5)[0].tolist()
    [[1.5, 1.0]]
    """
    values = _rows("gae_advantages", mask, rewards=rewards, values=check_critic(values))
    one = lambda reward, value, valid, factors: gae(
        reward, value, valid, discount, gae_lambda, holes=holes, discounts=factors
    )
    return jax.vmap(one)(rewards, values, mask, discounts)


@_validation.typed
def length_adaptive_advantages(
    rewards: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    group_size: int = 1,
    alpha: Number = 0.05,
    critic_lambda: Number = 1.0,
) -> Estimate:
    """VAPO's advantages: λ = 1 - 1/(α l) for the policy, another λ in [0, 1] for the critic; γ = 1.

    Source: Yue et al. (2025).

    >>> rewards, values, mask = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    >>> length_adaptive_advantages(rewards, values, mask, alpha=1.0)[0].tolist()
    [[1.5, 1.0]]
    """
    values = _rows("length_adaptive_advantages", mask, rewards=rewards, values=check_critic(values))
    _validation.within(0, 1, "length_adaptive_advantages", critic_lambda=critic_lambda)
    one = lambda reward, value, valid, gae_lambda: returns.decoupled_gae(
        reward, value, valid, 1.0, gae_lambda, critic_lambda
    )
    return jax.vmap(one)(rewards, values, mask, returns.adaptive_lambda(mask, alpha))


@_validation.typed
def group_advantages(
    rewards: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    group_size: int,
    baseline: Callable[..., jax.Array] = group.leave_one_out,
) -> Estimate:
    """The advantage of a sequence among those of its group, at each of its tokens.

    The reward of a sequence is the sum over its valid tokens; one without a valid token leaves its group.

    Args:
      baseline: (rewards [G], valid [G]) -> advantages [G], as in `group`.

    >>> rewards, mask = jnp.array([[0.0, 1.0], [3.0, 0.0]]), jnp.ones((2, 2), bool)
    >>> group_advantages(rewards, None, mask, group_size=2)[0].tolist()
    [[-2.0, -2.0], [2.0, 2.0]]
    """
    scores, valid = _scores(rewards, mask)
    return returns.over_tokens(group.by_group(baseline, group_size, scores, valid), mask), None


@_validation.typed
def batch_scaled_advantages(
    rewards: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    group_size: int,
    epsilon: Number = 1e-4,
    ddof: int = 1,
) -> Estimate:
    """As `group_advantages`, against the mean of the group, in units of the deviation over the batch.

    Source: Liu et al. (2025), tricks or traps; TRL's `scale_rewards="batch"`.

    >>> rewards, mask = jnp.array([[0.0, 1.0], [3.0, 0.0]]), jnp.ones((2, 2), bool)
    >>> batch_scaled_advantages(rewards, None, mask, group_size=2, epsilon=1.0, ddof=0)[0].tolist()
    [[-0.5, -0.5], [0.5, 0.5]]
    """
    scores, valid = _scores(rewards, mask)
    per_sequence = group.batch_scaled(scores, group_size, valid, epsilon, ddof)
    return returns.over_tokens(per_sequence, mask), None


@_validation.typed
def length_weighted_advantages(
    rewards: jax.Array, values: jax.Array | None, mask: jax.Array, group_size: int
) -> Estimate:
    """OPO's advantages, as `group_advantages` against the mean reward weighted by lengths.

    Source: Hao et al. (2025).

    >>> rewards, mask = jnp.array([[4.0, 0.0], [0.0, 0.0]]), jnp.array([[True] * 2, [True] * 2])
    >>> length_weighted_advantages(rewards, None, mask, group_size=2)[0].tolist()
    [[2.0, 2.0], [-2.0, -2.0]]
    """
    scores, valid = _scores(rewards, mask)
    lengths = jnp.sum(mask, axis=1)
    per_sequence = group.by_group(group.length_weighted, group_size, scores, lengths, valid)
    return returns.over_tokens(per_sequence, mask), None


@_validation.typed
def reward_to_go_advantages(
    rewards: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    group_size: int = 1,
    discount: Number = 1.0,
    discounts: jax.Array | None = None,
) -> Estimate:
    """REINFORCE's advantages: the reward still to come, without a baseline; the size of groups is not read.

    >>> reward_to_go_advantages(jnp.array([[0.5, 1.0]]), None, jnp.ones((1, 2), bool))[0].tolist()
    [[1.5, 1.0]]
    """
    _rows("reward_to_go_advantages", mask, rewards=rewards)
    one = lambda reward, valid, factors: returns.reward_to_go(reward, valid, discount, discounts=factors)
    return jax.vmap(one)(rewards, mask, discounts), None


@_validation.typed
def check_critic(values: jax.Array | None) -> jax.Array:
    """Gives the values of a critic, or raises ValueError where there are none.

    >>> check_critic(jnp.zeros((1, 2))).shape
    (1, 2)
    """
    if values is None:
        remedy = (
            "These advantages need a critic: give the actor one (a policy with value_head=True, or a critic "
            "of its own), or take a recipe without."
        )
        raise _validation.invalid("values", values, "an array [B, T]", remedy)
    return values


def _rows(function, mask, **arrays):
    """The last array; ValueError unless all are of one shape [B, T]."""
    for name, array in {"mask": mask, **arrays}.items():
        if jnp.ndim(array) != 2 or jnp.shape(array) != jnp.shape(mask):
            expected = "[B, T], the shape of mask"
            remedy = "Add an axis to one sequence: x[None]."
            raise _validation.invalid(f"{name}.shape", jnp.shape(array), expected, remedy, function)
    return array


def _scores(rewards, mask):
    _rows("advantages", mask, rewards=rewards)
    rewards = aggregation.select(rewards, mask, "rewards")
    return jnp.sum(rewards, axis=1), jnp.any(mask, axis=1)
