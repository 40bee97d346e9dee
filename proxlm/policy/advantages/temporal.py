"""Rewards, advantages and returns of one sequence of tokens.

A mask marks the tokens the policy chose. It may have holes (the output of a tool, an observation),
and what lies in a hole or behind the end may hold anything: it is never read.
"""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, aggregation


def gae(
    rewards: jax.typing.ArrayLike,
    values: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    discount: float = 1.0,
    gae_lambda: float = 0.95,
    *,
    holes: str = "skip",
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates of one sequence, and the returns the critic regresses on.

    δₜ = rₜ + γ Vₜ₊₁ - Vₜ,  Aₜ = δₜ + γ λ Aₜ₊₁,  Rₜ = Aₜ + Vₜ, where t + 1 is the next *valid* token
    and V and A are 0 after the last one: a sequence cut at its maximum length counts as ended.

    Args:
      rewards: [T].
      values: [T], the critic's value of the state before each token.
      mask: bool [T].
      discount: γ in [0, 1].
      gae_lambda: λ in [0, 1].
      holes: "skip" steps over a hole as if its tokens did not exist; "zero" walks through it as
        through tokens of reward 0 and value 0 (OpenRLHF's convention), which discounts by each.

    Returns:
      Advantages [T] and returns [T], not whitened, 0 where masked.

    Raises:
      ValueError: on arrays that are not [T], a mask that is not boolean, γ or λ outside [0, 1], or
        an unknown convention.

    Source: Schulman et al. (2015); skipping holes as verl, tunix and NeMo-RL do.

    >>> rewards, values = jnp.array([0.0, jnp.nan, 1.0]), jnp.array([0.5, jnp.nan, 0.5])
    >>> gae(rewards, values, jnp.array([True, False, True]), gae_lambda=0.5)
    (Array([0.25, 0.  , 0.5 ], dtype=float32), Array([0.75, 0.  , 1.  ], dtype=float32))
    """
    _validation.one_of(("skip", "zero"), holes=holes)
    _validation.one_sequence(mask=mask)
    _validation.within(0.0, 1.0, discount=discount, gae_lambda=gae_lambda)
    rewards = aggregation.select(rewards, mask, "rewards")
    values = aggregation.select(values, mask, "values")
    counts = jnp.ones_like(mask) if holes == "zero" else mask

    def step_back(following, token):
        next_value, next_advantage = following
        reward, value, count = token
        delta = reward + discount * next_value - value
        advantage = delta + discount * gae_lambda * next_advantage
        here = (jnp.where(count, value, next_value), jnp.where(count, advantage, next_advantage))
        return here, advantage

    zero = jnp.zeros((), jnp.result_type(rewards, values, discount, gae_lambda))
    tokens = (rewards.astype(zero.dtype), values.astype(zero.dtype), counts)
    _, advantages = jax.lax.scan(step_back, (zero, zero), tokens, reverse=True)
    advantages = jnp.where(mask, advantages, 0.0)
    return advantages, advantages + values


def whiten(
    x: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    *,
    shift_mean: bool = True,
    ddof: int = 0,
    epsilon: float = 1e-8,
    epsilon_inside: bool = True,
) -> jax.Array:
    """(x - μ) / √(σ² + ε) over every valid entry of x; with `shift_mean=False`, + μ.

    The scope is the array it is given: a minibatch, or the whole rollout. Peers differ: ddof 0 in
    OpenAI's and OpenRLHF's code, 1 in TRL, verl and tunix.

    Args:
      x: any shape.
      mask: bool, the shape of x.
      shift_mean: False keeps the mean, as rewards want it.
      ddof: 0 divides the variance by n, 1 by n - 1.
      epsilon: above 0.
      epsilon_inside: False divides by σ + ε instead.

    Returns:
      The shape of x, 0 where masked; finite also for a single valid entry, whose deviation is 0.

    Raises:
      ValueError: if the shapes differ, the mask is not boolean, or ε is not positive.

    Source: Ziegler et al. (2019), `whiten` of lm-human-preferences.

    >>> whiten(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)
    """
    _validation.positive(epsilon=epsilon)
    x = aggregation.select(x, mask)
    mean = aggregation.masked_mean(x, mask)
    variance = aggregation.masked_var(x, mask, ddof=ddof)
    if epsilon_inside:
        scale = jax.lax.rsqrt(variance + epsilon)
    else:
        # the square root has no finite slope at 0, so a constant x takes the other branch
        spread = variance > 0
        scale = 1.0 / (jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0.0) + epsilon)
    whitened = (x - mean) * scale + (0.0 if shift_mean else mean)
    return jnp.where(mask, whitened, 0.0)


def place_score(score: jax.typing.ArrayLike, mask: jax.typing.ArrayLike, *, place: str = "last") -> jax.Array:
    """The reward of a sequence that is judged once: its score at the last valid token, 0 elsewhere.

    The last valid token is the one that ended the sequence, or the last before it was cut.

    Args:
      score: a scalar of any number type; it is not rounded.
      mask: bool [T]. Without a valid token the score has no place and is dropped.
      place: "last", or "after": one slot later where there is one, on padding, as TRL 1.12's PPO
        has it (issue 3750); its advantages then need a mask that is one token longer.

    Returns:
      Rewards [T].

    Raises:
      ValueError: if the score is not a scalar, the mask not a boolean vector or the place unknown;
        use jax.vmap for batches.

    Source: Ziegler et al. (2019).

    >>> place_score(0.7, jnp.array([True, True, False]))
    Array([0. , 0.7, 0. ], dtype=float32)
    """
    _validation.one_of(("last", "after"), place=place)
    _validation.boolean(mask=mask)
    _validation.one_sequence(mask=mask)
    if jnp.ndim(score) != 0:
        raise ValueError(
            f"score has shape {jnp.shape(score)}; expected a scalar, the score of one sequence. "
            "Use jax.vmap for a batch."
        )
    mask = jnp.asarray(mask)
    is_last = mask & (jnp.cumsum(mask[::-1])[::-1] == 1)
    if place == "after":
        is_last = jnp.append(False, is_last[:-1]).at[-1].max(is_last[-1])
    return aggregation.select(score, is_last, "score")


def shape_rewards(
    score: jax.typing.ArrayLike,
    kl: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    kl_coef: jax.typing.ArrayLike,
) -> jax.Array:
    """rₜ = -β klₜ at every valid token, plus the score at the last one.

    Args:
      score: a scalar.
      kl: nats [T], one sampled estimate per token; k1 is the one whose policy gradient is right.
      mask: bool [T].
      kl_coef: β ≥ 0, reward per nat.

    Returns:
      Rewards [T], 0 where masked. No gradient is stopped here.

    Raises:
      ValueError: if the shapes differ, the mask is not boolean, or β is negative.

    Source: Ziegler et al. (2019).

    >>> kl = jnp.array([0.5, -0.5, jnp.nan])
    >>> shape_rewards(1.0, kl, jnp.array([True, True, False]), kl_coef=0.5)
    Array([-0.25,  1.25,  0.  ], dtype=float32)
    """
    _validation.at_least(0.0, kl_coef=kl_coef)
    return place_score(score, mask) - kl_coef * aggregation.select(kl, mask, "kl")


def missing_eos(
    score: jax.typing.ArrayLike,
    ended: jax.typing.ArrayLike,
    penalty: jax.typing.ArrayLike,
    mode: str = "subtract",
) -> jax.Array:
    """Lowers the score of a sequence that was cut before it ended itself.

    Args:
      score: any shape.
      ended: bool, the shape of score: whether the end-of-sequence token was sampled.
      penalty: at least 0.
      mode: "subtract" gives score - penalty (TRL); "replace" gives -penalty whatever the score
        (OpenAI with 1, EasyLM with 10).

    Returns:
      The scores, float32.

    Raises:
      ValueError: if the shapes differ, `ended` is not boolean, the penalty is negative or the mode
        unknown.

    >>> missing_eos(jnp.array([2.0, 2.0]), jnp.array([True, False]), penalty=0.5)
    Array([2. , 1.5], dtype=float32)
    """
    _validation.one_of(("subtract", "replace"), mode=mode)
    _validation.boolean(ended=ended)
    _validation.same_shape(score=score, ended=ended)
    _validation.at_least(0.0, penalty=penalty)
    score = jnp.asarray(score, jnp.result_type(score, jnp.float32))
    base = score if mode == "subtract" else jnp.zeros_like(score)
    return jnp.where(ended, score, base - penalty)
