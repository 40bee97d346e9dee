"""Hidden states of SmolLM2 for words and texts, cached between runs, and a linear head on them."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.models import smollm
from experiments.support.run import files, stages
from proxlm import lm, penalties, solvers

BEFORE = 0.02  # standard deviation of an embedding that has learnt nothing
LONGEST_WORD = 8  # tokens, the end of a text before it included
PART = 2048  # texts that a kill may lose


def vectors_of(words: Sequence[str], run, config, data: pathlib.Path) -> jax.Array:
    """Vectors of a vocabulary's words, its first two left at zero: `[V, width]`."""
    settings = {"words": words, "layers": config.vector_layers}

    def compute(folder):
        _save(folder / "vectors.npy", states_of_words(words[2:], config.vector_layers, data))

    stage = stages.stage(run, "word-vectors", settings, compute)
    vectors = np.load(stage.path / "vectors.npy")
    parts = principal(vectors, config.width, BEFORE)
    return jnp.asarray(np.concatenate([np.zeros((2, config.width)), parts]), jnp.float32)


def states_of(texts, run, read: int, config, data: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Text ↦ its vector, computed once for the texts, in whatever order they come."""
    names = sorted({*texts})
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    settings = {"layers": config.state_layers, "read": read, "texts": digest}

    def compute(folder):
        _save(folder / "states.npy", states_of_texts(names, config.state_layers, read, folder, data))

    stage = stages.stage(run, "states", settings, compute)
    return dict(zip(names, np.load(stage.path / "states.npy"), strict=True))


class Head(NamedTuple):
    """The chosen ridge penalty, and the scores `[N, K]` of validation and held-out texts."""

    strength: float
    validation: np.ndarray
    held_out: np.ndarray


def head(parts: Sequence[np.ndarray], labels: Sequence[np.ndarray], num_classes, count) -> Head:
    """Of a path of so many ridge penalties, the head that makes the validation labels likeliest.

    Args:
        parts: vectors `[N, D]` of texts for training, validation and judging.
        labels: of the first two.
        num_classes: K.
        count: ridge penalties, from 0.1 down to 1e-4.
    """
    mean, spread = parts[0].mean(axis=0), parts[0].std(axis=0) + 1e-3
    train, *others = ((part - mean) / spread for part in parts)
    strengths = np.geomspace(0.1, 1e-4, count).astype(np.float32)
    path = jax.device_get(heads(train, np.asarray(labels[0]), strengths, num_classes))
    scores = [np.einsum("nd,sdk->snk", x, path["kernel"]) + path["bias"][:, None] for x in others]
    likelihood = -optax.softmax_cross_entropy_with_integer_labels(
        jnp.asarray(scores[0]), jnp.asarray(labels[1])[None]
    ).mean(axis=1)
    best = int(jnp.argmax(likelihood))
    return Head(float(strengths[best]), scores[0][best], scores[1][best])


@functools.partial(jax.jit, static_argnames="num_classes")
def heads(features, labels, strengths, num_classes: int):
    """Linear heads `{"kernel": [S, D, K], "bias": [S, K]}`, one for each ridge penalty."""

    def loss(params):
        scores = features @ params["kernel"] + params["bias"][None]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))

    start = {"kernel": jnp.zeros((features.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    ridge = lambda strength: penalties.masked(penalties.squared_l2(strength), {"kernel": True, "bias": False})
    return solvers.path(
        loss, start, ridge, strengths, tolerance=1e-4, max_iterations=500, implicit=False
    ).params


def states_of_words(names: Sequence[str], num_layers: int, data: pathlib.Path) -> np.ndarray:
    """Hidden states `[N, D]` after so many layers, each word alone after the end of a text."""
    model = smollm.load(data)
    params, config = smollm.first_layers(model, num_layers, LONGEST_WORD)
    rows = tokens(model, [f" {name}" for name in names], LONGEST_WORD)
    return smollm.mean_states(params, rows, config)


def states_of_texts(
    names: Sequence[str], num_layers: int, longest: int, folder: pathlib.Path, data: pathlib.Path
) -> np.ndarray:
    """Hidden states `[N, D]` after so many layers, of the first tokens of each text.

    Written to the folder part by part, so that a run that was killed resumes after the last one.
    """
    model = smollm.load(data)
    params, config = smollm.first_layers(model, num_layers, longest)
    rows = tokens(model, names, longest)
    return smollm.states_by_parts(params, rows, config, folder, PART, batch=64)


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
