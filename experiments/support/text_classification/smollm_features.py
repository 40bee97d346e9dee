"""Hidden states of SmolLM2 for words, cached between runs, and the tokens that it reads of texts."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.models import smollm
from experiments.support.run import files, stages
from proxlm import lm

BEFORE = 0.02  # standard deviation of an embedding that has learnt nothing
LONGEST_WORD = 8  # tokens, the end of a text before it included


def vectors_of(words: Sequence[str], run, config, data: pathlib.Path) -> jax.Array:
    """Vectors of a vocabulary's words, its first two left at zero: `[V, width]`."""
    settings = {"words": words, "layers": config.vector_layers}

    def compute(folder):
        _save(folder / "vectors.npy", states_of_words(words[2:], config.vector_layers, data))

    stage = stages.stage(run, "word-vectors", settings, compute)
    vectors = np.load(stage.path / "vectors.npy")
    parts = principal(vectors, config.width, BEFORE)
    return jnp.asarray(np.concatenate([np.zeros((2, config.width)), parts]), jnp.float32)


def states_of_words(names: Sequence[str], num_layers: int, data: pathlib.Path) -> np.ndarray:
    """Hidden states `[N, D]` after so many layers, each word alone after the end of a text."""
    model = smollm.load(data)
    params, config = smollm.first_layers(model, num_layers, LONGEST_WORD)
    rows = tokens(model, [f" {name}" for name in names], LONGEST_WORD)
    return smollm.mean_states(params, rows, config)


def tokens(model: lm.Pretrained, names: Sequence[str], longest: int) -> list[list[int]]:
    """The first tokens of each text, the end of another one before them."""
    tokenizer: Any = model.tokenizer
    encodings = tokenizer.encode_batch([*names])
    return [[model.stops[0], *encoding.ids][:longest] for encoding in encodings]


def _save(path, array):
    with files.replacing(path) as file:
        np.save(file, array)


def principal(vectors: np.ndarray, width: int, scale: float) -> np.ndarray:
    """Their principal components, each with this standard deviation: `[N, D]` -> `[N, width]`."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    parts = centred @ axes[:, -width:]
    return scale * parts / (parts.std(axis=0) + 1e-9)
