"""A transformer for text classification: words in, one score per class out.

Its language-model head is not used. The normalised hidden states of a text's words are summed,
divided by the root of their number, and read by a linear head, so that a word that says something
adds evidence wherever it stands.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.data import text_metrics
from proxlm import lm

PADDING, RARE = 0, 1


class Vocabulary(NamedTuple):
    """Words by number; the first two stand for padding and for words seen too rarely."""

    words: tuple[str, ...]
    index: dict[str, int]


def vocabulary(texts: Sequence[str], least: int) -> Vocabulary:
    """The words that at least so many of the texts have, the commonest first.

    >>> vocabulary(["a b a", "b c"], 2).words
    ('', '?', 'b')
    """
    counts = collections.Counter(word for text in texts for word in {*text_metrics.words(text)})
    kept = sorted((w for w, n in counts.items() if n >= least), key=lambda w: (-counts[w], w))
    words = ("", "?", *kept)
    return Vocabulary(words, {word: i for i, word in enumerate(words)})


def encode(texts: Sequence[str], known: Vocabulary) -> list[np.ndarray]:
    """Word numbers of each text; one rare word where a text has none."""
    number = lambda text: [known.index.get(word, RARE) for word in text_metrics.words(text)] or [RARE]
    return [np.array(number(text), np.int32) for text in texts]


def padded(documents: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """The first `length` words of each: `{"tokens": [N, length], "mask"}`."""
    tokens = np.full((len(documents), length), PADDING, np.int32)
    for row, document in zip(tokens, documents, strict=True):
        row[: len(document[:length])] = document[:length]
    sizes = np.array([min(len(document), length) for document in documents])
    return {"tokens": tokens, "mask": np.arange(length) < sizes[:, None]}


def pieces(seed: int, documents, labels, length: int, rows: np.ndarray, drop: float):
    """Training texts for every entry of `rows`, each word left out with probability `drop`.

    Of a text longer than `length` it takes the beginning, or half the time any piece.
    """
    rng = np.random.default_rng(seed)
    found = []
    for document in (documents[row] for row in rows.ravel()):
        latest = max(0, len(document) - length)
        start = rng.integers(0, latest + 1) if rng.random() < 0.5 else 0
        piece = document[start : start + length]
        kept = rng.random(len(piece)) >= drop
        found.append(piece[kept] if kept.any() else piece)
    return padded(found, length) | {"label": np.asarray(labels, np.int32)[rows.ravel()]}


def init(key: jax.Array, config: lm.ModelConfig, num_classes: int) -> dict[str, Any]:
    """A transformer, and a head that starts at zero."""
    head = {"kernel": jnp.zeros((config.width, num_classes)), "bias": jnp.zeros(num_classes)}
    return {"lm": lm.init(key, config), "head": head}


def logits(params, batch, config: lm.ModelConfig) -> jax.Array:
    """Scores `[B, K]` of texts `{"tokens": [B, T], "mask"}`."""
    tokens, mask = batch["tokens"], batch["mask"]
    hidden = lm.encode(params["lm"], tokens, config, mask=mask).reshape(*tokens.shape, -1)
    total = jnp.sum(hidden * mask[:, :, None], axis=1) / jnp.sqrt(jnp.sum(mask, axis=1))[:, None]
    return total @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss(params, batch, config: lm.ModelConfig) -> jax.Array:
    """Mean cross-entropy, nats per text."""
    scores = logits(params, batch, config)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"]))


def judge(params, documents, length: int, config: lm.ModelConfig, batch: int = 128) -> np.ndarray:
    """Scores `[N, K]` of whole documents, cut after `length` words."""
    texts, size = padded(documents, length), len(documents)
    # Texts of like length go together, and the last batch is filled up by going round.
    order = np.argsort(texts["mask"].sum(axis=1), kind="stable")
    rows = np.resize(order, (-(-size // batch), batch))
    result = np.empty((size, params["head"]["bias"].shape[0]), np.float32)
    for row in rows:
        longest = texts["mask"][row].sum(axis=1).max()
        width = min(length, 1 << int(np.ceil(np.log2(max(longest, 8)))))
        part = {name: x[row, :width] for name, x in texts.items()}
        result[row] = jitted_logits(params, part, config=config)
    return result


def evidence(params, batch, config: lm.ModelConfig) -> jax.Array:
    """Attribution of the likeliest class's score to every word, to first order: `[B, T]`.

    Gradient times input, Σ_d x_d ∂s/∂x_d, of each word's embedding x.
    """
    table = params["lm"]["embedding"]["kernel"]
    inputs = table[batch["tokens"]]

    def score(inputs):
        rows = jnp.arange(batch["tokens"].size).reshape(batch["tokens"].shape)
        own = {**params["lm"], "embedding": {"kernel": inputs.reshape(-1, inputs.shape[-1])}}
        each = dataclasses.replace(config, vocab_size=rows.size)  # every place has an embedding of its own
        scores = logits({**params, "lm": own}, {**batch, "tokens": rows}, each)
        return jnp.sum(jnp.max(scores, axis=1))

    return jnp.sum(jax.grad(score)(inputs) * inputs, axis=-1) * batch["mask"]


def telling(params, documents, known: Vocabulary, config: lm.ModelConfig, length: int):
    """The words that added most to the class that won, on up to 2048 texts: a list a class."""
    size, num_classes = min(len(documents), 2048), params["head"]["bias"].shape[0]
    batch = padded(documents[:2048], length)
    chosen = np.resize(np.arange(size), (-(-size // 128), 128))  # the last one goes round
    pieces = [{name: x[rows] for name, x in batch.items()} for rows in chosen]
    found = np.concatenate([jitted_evidence(params, piece, config=config) for piece in pieces])
    scores = np.concatenate([jitted_logits(params, piece, config=config) for piece in pieces])
    tokens, classes = batch["tokens"], scores[:size].argmax(axis=1)
    return telling_words(tokens, found[:size], classes, known.words, num_classes)


def telling_words(
    tokens: np.ndarray,
    evidence: np.ndarray,
    classes: np.ndarray,
    words: Sequence[str],
    num_classes: int,
    count: int = 6,
    least: int = 5,
) -> list[list[str]]:
    """For each class, the words that add most to its score where it wins, seen `least` times."""
    result = []
    for label in range(num_classes):
        chosen = tokens[classes == label].ravel()
        total = np.bincount(chosen, evidence[classes == label].ravel(), minlength=len(words))
        seen = np.bincount(chosen, minlength=len(words))
        mean = np.where(seen >= least, total / np.maximum(seen, 1), -np.inf)
        mean[:2] = -np.inf  # padding, and words seen too rarely
        best = np.argsort(-mean, kind="stable")[:count]
        result.append([words[i] for i in best if np.isfinite(mean[i])])
    return result


jitted_logits = jax.jit(logits, static_argnames="config")
jitted_evidence = jax.jit(evidence, static_argnames="config")
