"""Words and texts as the first layers of SmolLM2 see them: vectors for smaller models to read."""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.models import smollm
from experiments.support.run import runs, tables
from proxlm import lm

LONGEST_WORD = 8  # tokens, the end of a text before it included
PART = 2048  # texts that a kill may lose


def words(names: Sequence[str], num_layers: int, data: pathlib.Path) -> np.ndarray:
    """Hidden states `[N, D]` after so many layers, each word alone after the end of a text."""
    model = smollm.load(data)
    params, config = smollm.first_layers(model, num_layers, LONGEST_WORD)
    rows = tokens(model, [f" {name}" for name in names], LONGEST_WORD)
    return states(params, rows, config)


def texts(
    names: Sequence[str], num_layers: int, longest: int, folder: pathlib.Path, data: pathlib.Path
) -> np.ndarray:
    """Hidden states `[N, D]` after so many layers, of the first tokens of each text.

    They are kept in the folder part by part, so that what was killed goes on from there.
    """
    model = smollm.load(data)
    params, config = smollm.first_layers(model, num_layers, longest)
    rows = tokens(model, names, longest)
    parts = []
    with tables.progress(-(-len(rows) // PART), "SmolLM2 reads") as show:
        for start in range(0, len(rows), PART):
            path = folder / f"texts-{start}.npy"
            if not path.exists():
                found = states(params, rows[start : start + PART], config, batch=64)
                with runs.replacing(path) as file:
                    np.save(file, found)
            parts.append(np.load(path))
            show(texts=min(start + PART, len(rows)))
    return np.concatenate(parts)


def tokens(model: smollm.SmolLM, names: Sequence[str], longest: int) -> list[list[int]]:
    """The first tokens of each text, the end of another one before them."""
    encodings = model.tokenizer.encode_batch([*names])
    return [[model.stops[0], *encoding.ids][:longest] for encoding in encodings]


def states(params, rows: Sequence[Sequence[int]], config, batch: int = 256) -> np.ndarray:
    """The mean over each row's tokens but the first, `[N, D]`; rows of like length together.

    Every token's state is scaled to mean square 1 before.
    """
    sizes = np.array([len(row) for row in rows])
    order = np.argsort(sizes, kind="stable")
    result = np.empty((len(rows), config.width), np.float32)
    for chosen in np.resize(order, (-(-len(rows) // batch), batch)):
        # Few lengths, since each is compiled; what is read in vain is under a tenth.
        length = min(config.max_length, -(-sizes[chosen].max() // 4) * 4)
        batch_tokens = np.zeros((batch, length), np.int32)
        for line, i in zip(batch_tokens, chosen, strict=True):
            line[: sizes[i]] = rows[i]
        mask = np.arange(length) < sizes[chosen][:, None]
        result[chosen] = _means(params, batch_tokens, mask, config=config)
    return result


@functools.partial(jax.jit, static_argnames="config")
def _means(params, tokens, mask, config):
    last = lm.hidden_states(params, tokens, config, mask=mask)[-1].reshape(*tokens.shape, -1)
    last = last * jax.lax.rsqrt(jnp.mean(jnp.square(last), axis=-1, keepdims=True) + 1e-6)
    weights = mask.at[:, 0].set(False)[:, :, None]
    return jnp.sum(last * weights, axis=1) / jnp.sum(weights, axis=1)


def principal(vectors: np.ndarray, width: int, scale: float) -> np.ndarray:
    """Their principal components, each with this standard deviation: `[N, D]` -> `[N, width]`."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    parts = centred @ axes[:, -width:]
    return scale * parts / (parts.std(axis=0) + 1e-9)
