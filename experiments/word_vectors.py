"""Words as the first layers of SmolLM2 see them: vectors for a small model to start from."""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import smollm
from proxlm import lm

LONGEST = 8  # tokens of a word, the end of a text before it included


def words(names: Sequence[str], num_layers: int, data: pathlib.Path) -> np.ndarray:
    """Hidden states `[N, D]` after so many layers, each word alone after the end of a text.

    A word of several tokens gets their mean; every state is scaled to mean square 1 before.
    """
    model = smollm.load(data)
    blocks = jax.tree.map(lambda x: x[:num_layers], model.params["blocks"])
    params = {**model.params, "blocks": blocks}
    config = lm.ModelConfig(
        model.config.vocab_size, num_layers=num_layers, width=model.config.width,
        num_heads=model.config.num_heads, num_kv_heads=model.config.num_kv_heads,
        hidden_width=model.config.hidden_width, rope_theta=model.config.rope_theta,
        norm_epsilon=model.config.norm_epsilon, max_length=LONGEST,
    )  # fmt: skip
    encodings = model.tokenizer.encode_batch([f" {name}" for name in names])
    rows = [[model.stops[0], *encoding.ids][:LONGEST] for encoding in encodings]
    return states(params, rows, config)


def states(params, rows: Sequence[Sequence[int]], config, batch: int = 256) -> np.ndarray:
    """The mean over each row's tokens but the first, `[N, D]`; rows of like length together."""
    sizes = np.array([len(row) for row in rows])
    order = np.argsort(sizes, kind="stable")
    result = np.empty((len(rows), config.width), np.float32)
    for chosen in np.resize(order, (-(-len(rows) // batch), batch)):
        length = sizes[chosen].max()
        tokens = np.zeros((batch, length), np.int32)
        for line, i in zip(tokens, chosen, strict=True):
            line[: sizes[i]] = rows[i]
        mask = np.arange(length) < sizes[chosen][:, None]
        result[chosen] = _means(params, tokens, mask, config=config)
    return result


@functools.partial(jax.jit, static_argnames="config")
def _means(params, tokens, mask, config):
    last = lm.states(params, tokens, config, mask=mask)[-1].reshape(*tokens.shape, -1)
    last = last * jax.lax.rsqrt(jnp.mean(jnp.square(last), axis=-1, keepdims=True) + 1e-6)
    weights = mask.at[:, 0].set(False)[:, :, None]
    return jnp.sum(last * weights, axis=1) / jnp.sum(weights, axis=1)


def principal(vectors: np.ndarray, width: int, scale: float) -> np.ndarray:
    """Their principal components, each with this standard deviation: `[N, D]` -> `[N, width]`."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    parts = centred @ axes[:, -width:]
    return scale * parts / (parts.std(axis=0) + 1e-9)
