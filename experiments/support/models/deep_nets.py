"""Deep nets on the next character of the plays: their starts, their kinds of layer, their data."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.data import corpora, tokenization
from proxlm import losses

# Name ↦ how hidden and output kernels are drawn. All biases begin at 0, and the first layer has
# unit variance with each, so that what differs is what depth makes of it.
SCHEMES = {
    "zeros": jax.nn.initializers.zeros,
    "normal, 0.01": jax.nn.initializers.normal(0.01),
    "normal, 1": jax.nn.initializers.normal(1.0),
    "Glorot": jax.nn.initializers.glorot_uniform(),
    "He": jax.nn.initializers.he_normal(),
    "orthogonal": jax.nn.initializers.orthogonal(),
}
KINDS = ("plain", "residual", "normalised")


class Data(NamedTuple):
    """Windows of context + 1 characters, and what guessing by frequency alone would cost."""

    train: jax.Array  # [N, context + 1]
    held_out: jax.Array  # [M, context + 1]
    frequency_loss: float
    size: int  # of the alphabet


def read(folder: pathlib.Path, context: int, train: int, held_out: int, seed: int) -> Data:
    """Random windows of the first nine tenths of the plays, and of the last."""
    text = corpora.shakespeare(corpora.TINY_SHAKESPEARE, folder=folder)
    alphabet = tokenization.Characters(text)
    tokens = alphabet.encode(text)
    border, size = int(0.9 * len(tokens)), len(alphabet.alphabet)
    rng = np.random.default_rng(seed)
    cut = lambda part, count: part[
        rng.integers(0, len(part) - context, count)[:, None] + np.arange(context + 1)
    ].astype(np.int32)
    windows, judged = cut(tokens[:border], train), cut(tokens[border:], held_out)
    counts = np.bincount(tokens[:border], minlength=size) + 1.0
    cost = -np.log(counts / counts.sum())[judged[:, -1]].mean()
    return Data(jnp.asarray(windows), jnp.asarray(judged), float(cost), size)


def init(key, scheme, *, context: int, size: int, width: int, depth: int) -> dict[str, Any]:
    """Draws a net: a sum of embeddings, one a place; `depth` hidden layers; an output layer."""
    key_embedding, key_hidden, key_out = jax.random.split(key, 3)
    draw = lambda key: scheme(key, (width, width), jnp.float32)
    embedding = jax.random.normal(key_embedding, (context, size, width)) / np.sqrt(context)
    return {
        "embedding": embedding,
        "hidden": {
            "kernel": jax.vmap(draw)(jax.random.split(key_hidden, depth)),
            "bias": jnp.zeros((depth, width)),
        },
        "out": {"kernel": scheme(key_out, (width, size), jnp.float32), "bias": jnp.zeros(size)},
    }


def logits(params, contexts, kind: str = "plain"):
    """Scores of the next character, `[B, context] -> [B, size]`; layers x ↦ relu(W x + b).

    A residual net adds to x one part in `depth` of the layer's output; a normalised one divides
    what each layer reads by its root mean square.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected one of {', '.join(KINDS)}")

    def layer(x, weights):
        read = x
        if kind == "normalised":
            read = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        new = jax.nn.relu(read @ weights["kernel"] + weights["bias"][None])
        return (x + new / depth if kind == "residual" else new), None

    depth = len(params["hidden"]["bias"])
    places = jnp.arange(contexts.shape[1])[None]
    x = jnp.sum(params["embedding"][places, contexts], axis=1)
    x, _ = jax.lax.scan(layer, x, params["hidden"])
    return x @ params["out"]["kernel"] + params["out"]["bias"][None]


def loss(params, windows, kind: str = "plain"):
    """Mean negative log-likelihood of the last character of each window, in nats."""
    scores = logits(params, windows[:, :-1], kind)
    return jnp.mean(losses.next_token(scores, windows[:, -1]))
