"""A gold reward of texts, and a proxy: a reward model learnt from comparisons by gold alone.

The gold reward is a fixed function of the text: the taste of a random network, and how fluent a
second language model finds it. Both are in units of their spread over the language model's texts,
so that gold has mean 0 there. Taste alone would not show over-optimisation: far from the data a
random network ends anywhere. Fluency falls there, as people's judgement does.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.support.models import reward_model
from proxlm import _validation, lm
from proxlm.policy.losses import preference

FLUENCY = 0.7  # of it for one of taste
TASTE_SCALE = 0.1  # of the random weights: half of the taste's variance is that of single letters
SHARPNESS = 2.0  # log-odds of a preference per unit of gold
PIECE = 1024  # texts at a time


class Gold(NamedTuple):
    """Taste, and mean and spread over the language model's texts of taste and of fluency."""

    taste: Any
    mean: jax.Array  # [2]
    spread: jax.Array  # [2]


class Proxy(NamedTuple):
    """A reward model, and mean and spread of what it says of the language model's texts."""

    params: Any
    mean: jax.Array
    spread: jax.Array


def check_texts(context: int, **counts: int) -> None:
    """Refuses texts without a letter, and counts that are not whole pieces."""
    _validation.at_least(2, remedy="A text is a line break and a letter at least.", context=context)
    for name, count in counts.items():
        if count > PIECE and count % PIECE:
            raise _validation.invalid(name, count, f"a multiple of {PIECE} where above it")


def taste_of(model: lm.ModelConfig) -> lm.ModelConfig:
    """The shape of the random network."""
    return dataclasses.replace(model, lm_head=False, value_head=True, init_scale=TASTE_SCALE)


def samples(key, params, model: lm.ModelConfig, first: int, length: int, count: int):
    """Texts of `length` characters after the first, `[count, 1 + length]`."""
    prompts = jnp.full((min(PIECE, count), 1), first)
    draw = lambda key: lm.sample(key, params, prompts, model, length).tokens
    keys = jax.random.split(key, count // len(prompts))
    return jax.lax.map(draw, keys).reshape(count, 1 + length)


def in_pieces(fn, tokens):
    """`fn` of so many texts at a time, `[..., B]`."""
    pieces = tokens.reshape(-1, min(PIECE, len(tokens)), tokens.shape[1])
    return jnp.concatenate([*jax.lax.map(fn, pieces)], axis=-1)


def parts(taste, judge, tokens, model: lm.ModelConfig):
    """Taste and fluency of texts, `[2, B]`: the sum of a network's values, nats per character."""
    liked = reward_model.score(taste, tokens, jnp.ones(tokens.shape, bool), taste_of(model))
    return jnp.stack([liked, jnp.mean(lm.score(judge, tokens, model).log_probs, axis=1)])


def make(key, judge, pool, model: lm.ModelConfig) -> Gold:
    """A gold reward whose unit is its spread over the texts of the pool."""
    key_body, key_head = jax.random.split(key)
    taste = lm.init(key_body, taste_of(model))
    taste["value"] = jax.tree.map(lambda x: jax.random.normal(key_head, x.shape), taste["value"])
    found = in_pieces(lambda tokens: parts(taste, judge, tokens, model), pool)
    return Gold(taste, jnp.mean(found, axis=1), jnp.std(found, axis=1))


def score(gold: Gold, judge, tokens, model: lm.ModelConfig):
    """Gold of texts, `[B]`."""
    found = parts(gold.taste, judge, tokens, model)
    taste, fluency = (found - gold.mean[:, None]) / gold.spread[:, None]
    return (taste + FLUENCY * fluency) / (1 + FLUENCY**2) ** 0.5


def compare(key, pairs, gold):
    """Draws a preference for each pair: `(chosen, rejected)`, each `[N, T]`.

    P(first) = σ(s (g₁ - g₂)), the model of Bradley and Terry, with pairs `[N, 2, T]` and gold
    `[N, 2]`.
    """
    odds = SHARPNESS * (gold[:, 0] - gold[:, 1])
    first = jax.random.uniform(key, odds.shape) < jax.nn.sigmoid(odds)
    pick = lambda first: jnp.where(first[:, None], pairs[:, 0], pairs[:, 1])
    return pick(first), pick(~first)


def loss(params, batch, model: lm.ModelConfig):
    """Mean Bradley-Terry loss of a batch of `compare`."""
    chosen, rejected = batch
    tokens = jnp.concatenate([chosen, rejected])
    rewards = reward_model.score(params, tokens, jnp.ones(tokens.shape, bool), model)
    return jnp.mean(preference.bradley_terry(*jnp.split(rewards, 2)))


def proxy(params, pool, model: lm.ModelConfig) -> Proxy:
    """A learnt reward model as a reward, in units of its spread over the texts of the pool."""
    whole = jnp.ones((min(PIECE, len(pool)), pool.shape[1]), bool)
    said = in_pieces(lambda tokens: reward_model.score(params, tokens, whole, model), pool)
    return Proxy(params, jnp.mean(said), jnp.std(said))


def reward(proxy: Proxy, tokens, model: lm.ModelConfig):
    """Proxy rewards of texts, `[B]`."""
    said = reward_model.score(proxy.params, tokens, jnp.ones(tokens.shape, bool), model)
    return (said - proxy.mean) / proxy.spread
