"""From what a reward gives to one score a response: shapes, names, weights, and what was not judged.

One convention holds for all of them: NaN, an infinity, a number beyond ±1e12, and None in lists of a host
reward, mean *not judged*. What one of several rewards did not judge adds nothing to the others; what none
judged is left out of loss and baselines.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy.advantages import group

__all__ = ["MAX_REWARD", "Judgement", "as_arrays", "check_names", "groups_vary", "judge"]

# Squares of larger ones, summed over a batch and the parameters, could overflow float32.
MAX_REWARD = 1e12


class Judgement(NamedTuple):
    """The rewards of a batch, weighted and summed.

    Attributes:
      total: `[B]`, the weighted sum as it was given, of whole responses; NaN where none judged.
      score: `[B]`, the part of it that belongs to a response as a whole, 0 where not judged.
      per_token: `[B, R]`, the part that belongs to its tokens, or None.
      means: name -> mean over the responses that this reward judged; empty for a reward without name.
    """

    total: jax.Array
    score: jax.Array
    per_token: jax.Array | None
    means: dict[str, jax.Array]


def as_arrays(rewards: Any, mask: Any, library: Any) -> Any:
    """Rewards as arrays of floats, `[B]` or `[B, R]`, or a dict of these; ValueError for anything else.

    The mask `[B, R]` is that of the responses. On the host, lists may hold None, and those of the tokens
    of a response may be as long as it is.

    >>> as_arrays([1, None], np.ones((2, 3), bool), np).tolist()
    [1.0, nan]
    """
    if isinstance(rewards, Mapping):
        for name in rewards:
            if not (isinstance(name, str) and name.isidentifier()):
                raise _validation.invalid("a name of the rewards", name, "a word, as in 'correct'")
        return {name: _array(x, mask, library, f"reward {name!r}") for name, x in rewards.items()}
    return _array(rewards, mask, library, "reward")


def groups_vary(total: jax.Array, group_size: int) -> jax.Array:
    """Whether the judged rewards `[B]` of each group differ, bool `[B/G]`; NaN is not judged.

    >>> groups_vary(jnp.array([1.0, 1.0, 0.0, 1.0, jnp.nan, 1.0]), 2).tolist()
    [False, True, False]
    """
    judged = jnp.isfinite(total)
    extreme = lambda reduce, fill: reduce(jnp.where(judged, total, fill).reshape(-1, group_size), axis=1)
    return extreme(jnp.max, -jnp.inf) > extreme(jnp.min, jnp.inf)


def judge(rewards: Any, mask: jax.Array, config: PPOConfig) -> Judgement:
    """Weighs and sums the rewards of responses with a mask `[B, R]`.

    >>> judge(jnp.array([1.0, jnp.nan]), jnp.ones((2, 3), bool), PPOConfig()).total.tolist()
    [1.0, nan]
    """
    named = isinstance(rewards, Mapping)
    parts = {name: _known(x, mask) for name, x in (rewards if named else {"": rewards}).items()}
    weights = _weights(tuple(parts) if named else (), config)
    weigh = lambda name, x: x if weights is None else weights[name] * x
    whole = {name: x if x.ndim == 1 else jnp.sum(x, axis=1) for name, (x, _) in parts.items()}
    judged = jnp.any(jnp.stack([known for _, known in parts.values()]), axis=0)
    total = jnp.where(judged, sum(weigh(name, x) for name, x in whole.items()), jnp.nan)
    means = {name: _mean(whole[name], known) for name, (_, known) in parts.items() if named}
    nothing = jnp.zeros(mask.shape[0])
    if config.reward_normalisation is not None:
        each = functools.partial(group.by_group, config.reward_normalisation, config.group_size)
        scores = (weigh(name, each(whole[name], known)) for name, (_, known) in parts.items())
        return Judgement(total, sum(scores, nothing), None, means)
    of_rank = lambda rank: [weigh(name, x) for name, (x, _) in parts.items() if x.ndim == rank]
    score = sum(of_rank(1), nothing)
    per_token = sum(of_rank(2), jnp.zeros(mask.shape)) if of_rank(2) else None
    return Judgement(total, score, per_token, means)


def check_names(names: tuple[str, ...], config: PPOConfig, function: str = "ppo") -> None:
    """Raises ValueError unless the weights of a configuration are those of rewards with these names.

    >>> check_names(("correct",), PPOConfig())
    """
    weights = config.reward_weights
    if weights is not None and set(weights) != set(names):
        listed = ", ".join(map(repr, names)) if names else "a reward without a name"
        remedy = "Weigh each by its name." if names else "Give the rewards as {name: reward}."
        given = _validation.Verbatim(", ".join(map(repr, weights)) or "{}")
        raise _validation.invalid("reward_weights", given, f"those of {listed}", remedy, function)


def _weights(names, config):
    check_names(names, config)
    return config.reward_weights


def _mean(x, valid):
    """The mean over what is valid, NaN where nothing is."""
    count = jnp.sum(valid)
    return jnp.where(count > 0, jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(count, 1), jnp.nan)


def _known(x, mask):
    """Numbers, 0 where there is none, and which responses they judge."""
    known = jnp.abs(x) <= MAX_REWARD
    known = known if x.ndim == 1 else known & mask
    return jnp.where(known, x, 0.0), known if x.ndim == 1 else jnp.any(known, axis=1)


def _array(rewards, mask, library, label):
    shape = mask.shape
    expected = f"one number per response, of shape ({shape[0]},), or per token, of shape {shape}"
    if hasattr(rewards, "__await__"):
        remedy = "Let policy.rewards.concurrent wait for it."
        raise _validation.invalid(label, rewards, f"{expected}, not a coroutine", remedy)
    try:
        array = library.asarray(_padded(rewards, mask) if library is np else rewards)
        if jnp.iscomplexobj(array):
            raise TypeError("complex")
        array = library.asarray(array, jnp.result_type(array, jnp.float32))
    except (TypeError, ValueError) as error:
        remedy = "Return a list of floats, an array, or a dict of these."
        given = _validation.Verbatim(f"a {type(rewards).__name__}")
        raise _validation.invalid(label, given, expected, remedy) from error
    if array.shape not in (shape[:1], shape):
        remedy = "A greedy baseline adds a row per prompt to those of the samples."
        given = _validation.Verbatim(f"shape {array.shape}")
        raise _validation.invalid(label, given, expected, remedy)
    return array


def _padded(rewards, mask):
    """Lists with None as arrays with NaN; a row as long as its response is filled up."""
    if not isinstance(rewards, list | tuple):
        return rewards
    if len(rewards) == len(mask) and all(isinstance(row, list | tuple) for row in rewards):
        lengths = np.sum(mask, axis=1)
        if all(len(row) == length for row, length in zip(rewards, lengths, strict=True)):
            rewards = [[*row, *[None] * (mask.shape[1] - len(row))] for row in rewards]
    has_none = any(x is None for row in rewards for x in (row if isinstance(row, list | tuple) else [row]))
    return np.asarray(rewards, float) if has_none else rewards
