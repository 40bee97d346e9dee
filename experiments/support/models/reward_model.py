"""Stage (b): a reward model, the same transformer with a scalar head, learnt from labels.

The head says how much each token, read in its context, speaks for "positive"; the score of a text
is the sum. The label is predicted after every token, so texts of every length have been seen, and
the score of a prefix is its value: the critic of PPO starts as a copy.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.data import text_metrics, tokenization
from proxlm import lm

# Log-odds per unit of the head: small, so that the sum over a text starts out calm.
UNIT = 0.25


def from_language_model(params, config: lm.ModelConfig, num_layers: int):
    """A scalar head on the first layers of a language model: `(params, config)`."""
    config = dataclasses.replace(config, num_layers=num_layers, lm_head=False, value_head=True)
    # Jitted, so that of a whole model's initial parameters only the head's are computed.
    head = jax.jit(lambda key: lm.init(key, config)["value"])(jax.random.key(0))
    blocks = jax.tree.map(lambda x: x[:num_layers], params["blocks"])
    kept = {name: params[name] for name in ("embedding", "norm")}
    return kept | {"blocks": blocks, "value": head}, config


def snippets(seed: int, documents, labels, length: int, count: int):
    """Labelled pieces of documents: `{"tokens": [count, 1 + length], "mask", "label"}`.

    Each starts anywhere in a document drawn uniformly, one in four at its beginning. Its end may
    be the document's, with the END after it, which a reward model is to know too.
    """
    rng = np.random.default_rng(seed)
    tokens = np.full((count, 1 + length), tokenization.END, np.int32)
    mask = np.zeros((count, 1 + length), bool)
    chosen = rng.integers(0, len(documents), count)
    for i, which in enumerate(chosen):
        document = documents[which]
        latest = max(0, len(document) - 1 - length)
        start = 1 + (0 if rng.random() < 0.25 else rng.integers(0, latest + 1))
        piece = document[start : start + length]
        tokens[i, 1 : 1 + len(piece)] = piece
        mask[i, : 1 + len(piece)] = True
    return {"tokens": tokens, "mask": mask, "label": np.asarray(labels, np.float32)[chosen]}


def openings(documents, labels, length: int):
    """The first `length` tokens of every document that has so many, in the form of `snippets`."""
    tokens, kept = tokenization.openings(documents, length)
    label = np.asarray(labels, np.float32)[kept]
    return {"tokens": tokens, "mask": np.ones(tokens.shape, bool), "label": label}


def log_odds(params, tokens, mask, config: lm.ModelConfig):
    """Log-odds of "positive" after every token, `[B, T]`."""
    hidden = lm.encode(params, tokens, config, mask=mask)
    evidence = lm.values(params, hidden, config).reshape(tokens.shape)
    return UNIT * jnp.cumsum(jnp.where(mask, evidence, 0.0), axis=1)


def score(params, tokens, mask, config: lm.ModelConfig):
    """Log-odds of "positive" after each row's last valid token, `[B]`."""
    columns = jax.lax.broadcasted_iota(jnp.int32, mask.shape, 1)
    last = jnp.max(jnp.where(mask, columns, 0), axis=1, keepdims=True)
    return jnp.take_along_axis(log_odds(params, tokens, mask, config), last, axis=1)[:, 0]


def loss(params, batch, config: lm.ModelConfig, skip: int = 8):
    """Mean logistic loss after every valid token but the first `skip`, which say too little."""
    odds = log_odds(params, batch["tokens"], batch["mask"], config)
    labels = jnp.broadcast_to(batch["label"][:, None], odds.shape)
    columns = jax.lax.broadcasted_iota(jnp.int32, odds.shape, 1)
    weights = batch["mask"] & (columns >= skip)
    return jnp.sum(optax.losses.sigmoid_binary_cross_entropy(odds, labels) * weights) / jnp.maximum(
        jnp.sum(weights), 1
    )


def judge(params, texts, config: lm.ModelConfig, batch: int = 128) -> np.ndarray:
    """Log-odds of each of the texts of `openings` or `snippets`, `[N]`, a batch at a time."""
    size = len(texts["label"])
    # The last batch is filled up by going round, so that all are of one shape.
    rows = np.resize(np.arange(size), (-(-size // batch), batch))
    tokens, mask = texts["tokens"], texts["mask"]
    odds = [_jitted_score(params, tokens[row], mask[row], config=config) for row in rows]
    return np.concatenate(odds)[:size]


def accuracy(params, held_out, model: lm.ModelConfig) -> dict[str, float]:
    """Share of the held-out texts that a reward model classifies correctly."""
    return {"accuracy": text_metrics.accuracy(judge(params, held_out, model), held_out["label"])}


_jitted_score = jax.jit(score, static_argnames="config")
