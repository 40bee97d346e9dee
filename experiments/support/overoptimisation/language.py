"""The language models and policies of `overoptimisation` and `mirror_lm`, learnt from Shakespeare."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.support.models import small_lm
from experiments.support.run import configs, supervised
from proxlm import lm

BATCH = 32
PARTS = 4  # pieces in which a stage is saved


@dataclasses.dataclass(frozen=True)
class Config(small_lm.Config):
    """The fields that both experiments have."""

    width: int = configs.field(48, smoke=16)  # of the residual stream
    hidden_width: int = configs.field(128, smoke=24)  # neurons of an MLP
    context: int = configs.field(25, smoke=9)  # characters of a text, the line break before it included
    lm_steps: int = configs.field(800, smoke=40)  # of each language model
    learning_rate: float = 4e-3  # of the language models
    rollouts: int = configs.field(64, smoke=16)  # texts of an iteration
    seeds: int = configs.field(5, smoke=2)  # golds, each with policies of its own


class Language(NamedTuple):
    """The reference, the judge of fluency, their shape, and the token of a line break."""

    params: Any
    judge: Any
    model: lm.ModelConfig
    first: int


def learn(run, config: Config) -> Language:
    """Trains the reference and the judge."""
    plays = small_lm.shakespeare(run, config, judged=512)

    def learn_one(name, seed):
        return small_lm.learn(run, name, seed, plays.cut(seed, (config.lm_steps, BATCH)), plays)

    params = learn_one("language model", config.seed + 2)
    judge = learn_one("judge of fluency", config.seed + 3)
    return Language(params, judge, plays.model, int(plays.alphabet.encode("\n")[0]))


def policy(language: Language, config: Config):
    """A policy that is the reference with a value head of zeros: its actor, params and prompts."""
    model = dataclasses.replace(language.model, value_head=True)
    head = jax.tree.map(jnp.zeros_like, lm.init(jax.random.key(0), model)["value"])
    prompts = lm.Prompts(jnp.full((config.rollouts, 1), language.first))
    return lm.make_actor(model, config.context - 1), {"policy": language.params | {"value": head}}, prompts


def run_lanes(
    run, name: str, step: Callable, states: Any, lanes: Sequence[Any], axes: Sequence, steps: int, key
) -> Any:
    """Steps of every lane and seed in one vmap, each logged; returns the states, `[lanes, seeds]`.

    `step(state, key, *own) -> (state, numbers)`, where an entry of `own` is that of `lanes` at the lane
    and the seed, or at one of them: `axes` says for each entry on which of the two it lies, as (0, 0),
    (0, None) or (None, 0).
    """
    chunk, shape = steps // PARTS, jax.tree.leaves(states)[0].shape[:2]

    def one(state, key, *own):
        return jax.lax.scan(lambda state, key: step(state, key, *own), state, jax.random.split(key, chunk))

    over_seeds = jax.vmap(one, (0, 0, *(seed for _, seed in axes)))
    over_lanes = jax.vmap(over_seeds, (0, 0, *(lane for lane, _ in axes)))

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(states, key, lanes):
        states, found = over_lanes(states, jax.random.split(key, shape), *lanes)
        return states, [jax.tree.map(lambda x, i=i: x[:, :, i], found) for i in range(chunk)]

    run_chunk = lambda states, key: advance(states, key, lanes)
    return supervised.run_resumable(run, name, run_chunk, states, PARTS, chunk, key=key, every=1)


def copies(tree, shape: tuple[int, ...]):
    """Copies of every leaf along new axes in front."""
    return jax.tree.map(lambda x: jnp.tile(x, (*shape, *(1,) * jnp.ndim(x))), tree)
