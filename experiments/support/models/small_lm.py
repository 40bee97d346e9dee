"""A small language model of characters, which the experiments on penalties and policies start from."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.data import corpora, tokenization
from experiments.support.models import language_model
from experiments.support.run import supervised
from proxlm import lm
from proxlm.penalties.groups import grouping

B2 = 0.99
# A neuron: a column of gate and one of up, with a row of down.
NEURONS = grouping.linked({"gate_up/kernel": (0, 3), "down/kernel": (0, 1)})
LAST = 0.05  # of the learning rate, at the end of what follows the start


class Text(NamedTuple):
    """Shakespeare in windows, the last tenth held out.

    Attributes:
      alphabet: its characters.
      cut: `(seed, [steps, batch]) -> [steps, batch, T + 1]`, random windows to learn from.
      held_out: `[judged, T + 1]`.
    """

    alphabet: tokenization.Characters
    cut: Callable[..., np.ndarray]
    held_out: np.ndarray


def shakespeare(folder: pathlib.Path, context: int, judged: int) -> Text:
    """Reads it, and draws the windows on which models are judged."""
    text = corpora.shakespeare(corpora.TINY_SHAKESPEARE, folder=folder)
    alphabet = tokenization.Characters(text)
    tokens = alphabet.encode(text)
    border = int(0.9 * len(tokens))
    cut = functools.partial(tokenization.random_windows, tokens[:border], context)
    held_out = tokenization.random_windows(tokens[border:], context, 1, (judged,))
    return Text(alphabet, cut, held_out)


def shape(config, alphabet) -> lm.ModelConfig:
    """The model that the fields of an experiment's config describe."""
    return _shape(config, len(alphabet.alphabet))


def check_shape(config) -> None:
    """Raises ValueError where the fields of an experiment's config describe no model."""
    _shape(config, 2)


def median_size(params):
    """The median over neurons of the root mean square of their weights."""
    mlp = params["blocks"]["mlp"]
    gate_up, down = jnp.square(mlp["gate_up"]["kernel"]), jnp.square(mlp["down"]["kernel"])
    squares = (jnp.sum(gate_up, axis=(1, 2)) + jnp.sum(down, axis=2)) / (3 * down.shape[2])
    return jnp.sqrt(jnp.median(squares))


def _shape(config, size: int) -> lm.ModelConfig:
    return lm.ModelConfig(
        size,
        num_layers=config.num_layers,
        width=config.width,
        num_heads=config.num_heads,
        hidden_width=config.hidden_width,
        max_length=config.context,
    )


def learn(run, name: str, seed: int, windows, model: lm.ModelConfig, config, evaluate, last: float = 0.1):
    """Trains a model by Adam on windows `[steps, batch, T + 1]`; returns its params."""
    steps, batch = windows.shape[:2]
    schedule = language_model.ramp(config.learning_rate, steps, warmup=0.1, last=last)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=B2))
    return supervised.fit(
        run,
        name,
        functools.partial(language_model.loss, config=model),
        optimizer,
        lm.init(jax.random.key(seed), model),
        windows.reshape(-1, windows.shape[2]),
        np.arange(steps * batch, dtype=np.int32).reshape(steps, batch),
        folder=run.path / "fit" / name.replace(" ", "-"),
        config=config,
        chunk=chunk_of(steps, 10),
        evaluate_every=10,
        evaluate=evaluate,
    ).params


def chunk_of(steps: int, parts: int) -> int:
    """Steps in a chunk: all steps over `parts` where that divides them, else all of them."""
    return steps // parts if steps % parts == 0 else steps
