"""Rewards, advantages and returns of one sequence of tokens [T].

A mask marks the tokens that the policy chose. It may have holes (the output of a tool, an observation).
Masked slots may hold anything: they are not read, and the results [T] are 0 there. A discount γ and a λ lie
in [0, 1]. All raise ValueError if shapes differ, a mask is not boolean or a setting is out of range.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy._finite import Number, scaled

__all__ = ["gae", "missing_eos", "place_score", "shape_rewards", "whiten"]


@_validation.typed
def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike,
    discount: Number = 1.0,
    gae_lambda: Number = 0.95,
    *,
    holes: str = "skip",
    discounts: ArrayLike | None = None,
    final_value: Number = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates of one sequence, and the returns that its critic is trained on.

    δₜ = rₜ + γ Vₜ₊₁ - Vₜ,  Aₜ = δₜ + γ λ Aₜ₊₁,  Rₜ = Aₜ + Vₜ, where t + 1 is the next *valid* token
    and A is 0 after the last one; and V too, so that a sequence cut at its maximum length counts as
    ended, unless its final value is given.

    Args:
      values: [T], the critic's value of the state before each token.
      holes: "skip" leaves the tokens of a hole out; "zero" counts them as tokens of reward 0 and value 0
        (OpenRLHF's convention), each of which discounts.
      discounts: [T], factors of γ from each step to the next: 0 where an episode of classic control ends
        inside of the row, so that nothing after it counts; None is 1 everywhere.
      final_value: V after the last token, by which a sequence that was cut is bootstrapped.

    Source: Schulman et al. (2015); skipping holes as verl, tunix and NeMo-RL do.

    >>> rewards, values = jnp.array([0.0, jnp.nan, 1.0]), jnp.array([0.5, jnp.nan, 0.5])
    >>> gae(rewards, values, jnp.array([True, False, True]), gae_lambda=0.5)
    (Array([0.25, 0.  , 0.5 ], dtype=float32), Array([0.75, 0.  , 1.  ], dtype=float32))
    >>> done, steps = jnp.array([1.0, 0.0, 1.0]), jnp.ones(3, bool)
    >>> gae(jnp.ones(3), jnp.zeros(3), steps, gae_lambda=1.0, discounts=done, final_value=4.0)[0].tolist()
    [2.0, 1.0, 5.0]
    """
    _validation.one_of(("skip", "zero"), "gae", holes=holes)
    _validation.one_sequence("gae", mask=mask)
    _validation.scalar("gae", discount=discount, gae_lambda=gae_lambda, final_value=final_value)
    _validation.within(0, 1, "gae", discount=discount, gae_lambda=gae_lambda)
    rewards = aggregation.select(rewards, mask, "rewards")
    values = aggregation.select(values, mask, "values")
    counts = jnp.ones_like(mask) if holes == "zero" else mask
    discounts = jnp.ones(jnp.shape(mask)) if discounts is None else jnp.asarray(discounts)
    _validation.same_shape("gae", mask=mask, discounts=discounts)
    _validation.within(0, 1, "gae", discounts=discounts)

    def step_back(following, token):
        next_value, next_advantage = following
        reward, value, count, factor = token
        gamma = discount * factor
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        here = (jnp.where(count, value, next_value), jnp.where(count, advantage, next_advantage))
        return here, advantage

    zero = jnp.zeros_like(rewards + values, jnp.result_type(rewards, values, discount, gae_lambda), shape=())
    tokens = (rewards.astype(zero.dtype), values.astype(zero.dtype), counts, discounts.astype(zero.dtype))
    _, advantages = jax.lax.scan(step_back, (zero + final_value, zero), tokens, reverse=True)
    advantages = jnp.where(mask, advantages, 0.0)
    return advantages, advantages + values


@_validation.typed
def whiten(
    x: ArrayLike,
    mask: ArrayLike,
    *,
    shift_mean: bool = True,
    ddof: int = 0,
    epsilon: Number = 1e-8,
    epsilon_inside: bool = True,
) -> jax.Array:
    """Whitens all valid entries of x, (x - μ) / √(σ² + ε); with `shift_mean=False`, adds μ again.

    Mean and variance are those of the array given: of a minibatch, or of the whole rollout. Conventions
    differ: ddof is 0 in OpenAI's and OpenRLHF's code, 1 in TRL, verl and tunix.

    Args:
      shift_mean: False keeps the mean, as for rewards.
      ddof: 0 divides the variance by n, 1 by n - 1.
      epsilon: ε > 0.
      epsilon_inside: False divides by σ + ε instead.

    Returns:
      The shape of x, 0 where masked. Equal entries give exactly 0 (their mean, if it is kept).

    Source: Ziegler et al. (2019), `whiten` of lm-human-preferences.

    >>> whiten(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)
    """
    _validation.positive("whiten", epsilon=epsilon)
    _validation.finite("whiten", epsilon=epsilon)
    deviation = aggregation.masked_deviation(x, mask)
    whitened = deviation / aggregation.masked_scale(deviation, mask, ddof, epsilon, epsilon_inside)
    if shift_mean:
        return whitened
    return jnp.where(mask, whitened + aggregation.masked_mean(x, mask), 0.0)


@_validation.typed
def place_score(score: Number, mask: ArrayLike, *, place: str = "last") -> jax.Array:
    """Rewards per token of a sequence that has one score: the score at its last valid token, 0 elsewhere.

    The last valid token is the one that ended the sequence, or the last before it was cut.

    Args:
      score: a scalar of any number type; it is not rounded.
      mask: bool [T]. Without a valid token the score is dropped.
      place: "last", or "after": one slot later where there is one, on padding, as in TRL 1.12's PPO (issue
        3750); its advantages then need a mask that is one token longer.

    Source: Ziegler et al. (2019).

    >>> place_score(0.7, jnp.array([True, True, False]))
    Array([0. , 0.7, 0. ], dtype=float32)
    """
    _validation.one_of(("last", "after"), "place_score", place=place)
    _validation.boolean("place_score", mask=mask)
    _validation.one_sequence("place_score", mask=mask)
    _validation.scalar("place_score", "It is of one sequence: use jax.vmap for a batch.", score=score)
    mask = jnp.asarray(mask)
    is_last = mask & (jnp.cumsum(mask[::-1])[::-1] == 1)
    if place == "after" and mask.size:
        is_last = jnp.append(False, is_last[:-1]).at[-1].max(is_last[-1])
    return aggregation.select(score, is_last, "score")


@_validation.typed
def shape_rewards(score: Number, kl: ArrayLike, mask: ArrayLike, kl_coef: Number) -> jax.Array:
    """Rewards per token with a KL penalty: rₜ = -β klₜ at every valid token, plus the score at the last one.

    Args:
      kl: nats [T], one estimate per token; with k1 the policy gradient is that of the KL of sequences.
      kl_coef: β ≥ 0, reward per nat; 0 gives 0 even where the KL is infinite.

    Source: Ziegler et al. (2019).

    >>> kl = jnp.array([0.5, -0.5, jnp.nan])
    >>> shape_rewards(1.0, kl, jnp.array([True, True, False]), kl_coef=0.5)
    Array([-0.25,  1.25,  0.  ], dtype=float32)
    """
    _validation.at_least(0, "shape_rewards", kl_coef=kl_coef)
    _validation.finite("shape_rewards", kl_coef=kl_coef)
    return place_score(score, mask) - scaled(kl_coef, aggregation.select(kl, mask, "kl"))


@_validation.typed
def missing_eos(score: ArrayLike, ended: ArrayLike, penalty: Number, mode: str = "subtract") -> jax.Array:
    """Lowers the score of a sequence that was cut before its end-of-sequence token.

    Args:
      ended: bool, the shape of score: True where the end-of-sequence token was sampled.
      mode: "subtract" gives score - penalty (TRL); "replace" gives -penalty whatever the score
        (OpenAI with 1, EasyLM with 10).

    >>> missing_eos(jnp.array([2.0, 2.0]), jnp.array([True, False]), penalty=0.5)
    Array([2. , 1.5], dtype=float32)
    """
    _validation.one_of(("subtract", "replace"), "missing_eos", mode=mode)
    _validation.boolean("missing_eos", ended=ended)
    _validation.same_shape("missing_eos", score=score, ended=ended)
    _validation.at_least(0, "missing_eos", penalty=penalty)
    _validation.finite("missing_eos", penalty=penalty)
    (score,) = _validation.floats(score)
    base = score if mode == "subtract" else jnp.zeros_like(score)
    return jnp.where(ended, score, base - penalty)
