"""A text as the set of its phrases, a few neighbouring words or marks, read by a linear model.

What few texts have says more, so a phrase counts ln(N / texts that have it), and all phrases of a
text together count 1: Σ w² = 1 (Salton and Buckley 1988). Pairs of words make such a model hard
to beat where there are thousands of texts (Wang and Manning 2012).
"""

import collections
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from proxlm import penalties, transforms

NONE = 0  # the number that stands for no phrase
_PIECE = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


class Known(NamedTuple):
    """Phrases by number, the first of them none; how much each counts, `[V]`."""

    names: tuple[str, ...]
    index: dict[str, int]
    weights: np.ndarray


def of(text: str, longest: int) -> set[str]:
    """The phrases of a text of up to so many words or marks, each once; "<" and ">" are its ends.

    >>> sorted(of("So, so!", 2))
    ['!', '! >', ',', ', so', '<', '< so', '>', 'so', 'so !', 'so ,']
    """
    pieces = ["<", *_PIECE.findall(text.lower()), ">"]
    sizes = range(1, longest + 1)
    return {" ".join(pieces[i : i + n]) for n in sizes for i in range(len(pieces) - n + 1)}


def known(texts: Sequence[str], longest: int, least: int) -> Known:
    """The phrases that at least `least` of the texts have, the commonest first."""
    counts = collections.Counter(phrase for text in texts for phrase in of(text, longest))
    kept = sorted((p for p, n in counts.items() if n >= least), key=lambda p: (-counts[p], p))
    rarity = [np.log(len(texts) / counts[phrase]) for phrase in kept]
    names = ("", *kept)
    index = {phrase: i for i, phrase in enumerate(names)}
    return Known(names, index, np.array([0.0, *rarity], np.float32))


def bags(texts: Sequence[str], index: dict, longest: int, size: int, seed: int = 0) -> np.ndarray:
    """Phrase numbers `[N, size]` of each text, a random part of them where there are more."""
    rng = np.random.default_rng(seed)
    result = np.full((len(texts), size), NONE, np.int32)
    for row, text in zip(result, texts, strict=True):
        found = sorted(index[phrase] for phrase in of(text, longest) if phrase in index)
        chosen = found if len(found) <= size else rng.permutation(found)[:size]
        row[: len(chosen)] = chosen
    return result


def init(size: int, num_classes: int) -> dict[str, jax.Array]:
    """Everything at zero."""
    return {"kernel": jnp.zeros((size, num_classes)), "bias": jnp.zeros(num_classes)}


def logits(params, bag: jax.Array, weights: jax.Array) -> jax.Array:
    """Scores `[B, K]` of bags `[B, T]`, with what every phrase counts, `[V]`."""
    own = weights[bag]
    own = own * jax.lax.rsqrt(jnp.sum(jnp.square(own), axis=1, keepdims=True) + 1e-9)
    return jnp.einsum("bt,btk->bk", own, params["kernel"][bag]) + params["bias"][None]


def loss(params, batch, weights: jax.Array) -> jax.Array:
    """Mean cross-entropy of `{"bag": [B, T], "label": [B]}`, nats per text."""
    scores = logits(params, batch["bag"], weights)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"]))


def chain(learning_rate: float, strength: float) -> optax.GradientTransformation:
    """Follows the proximally regularised leader: a phrase that is not worth its norm gets zeros."""
    # As gradients are at most 1/B here, AdaGrad's own constant has to be far below 1.
    leader = transforms.ftrl_proximal(learning_rate, penalties.group_lasso(strength, axis=-1), beta=1e-3)
    return optax.partition({"kernel": leader, "bias": optax.adam(1e-2)}, {"kernel": "kernel", "bias": "bias"})


def judge(params, bag: np.ndarray, weights: np.ndarray, batch: int = 256) -> np.ndarray:
    """Scores `[N, K]`."""
    starts = range(0, len(bag), batch)
    return np.concatenate([_logits(params, bag[i : i + batch], weights) for i in starts])


def telling(params: Any, bag: np.ndarray, known: Known, count: int = 5, least: int = 5) -> list[list[str]]:
    """For each class, the phrases that speak most for it where at least so many texts have them.

    A phrase's weight in a class is compared with its mean over classes.
    """
    kernel = np.asarray(params["kernel"]) * known.weights[:, None]
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    seen = np.bincount(bag[bag != NONE], minlength=len(known.names)) >= least
    result = []
    for column in np.where(seen[:, None], kernel, 0.0).T:
        best = np.argsort(-column, kind="stable")[:count]
        result.append([known.names[i] for i in best if column[i] > 0])
    return result


def kept(params: Any) -> int:
    """Phrases, or words, whose row of the kernel is not all zero."""
    return int(np.count_nonzero(np.any(np.asarray(params["kernel"]), axis=1)))


_logits = jax.jit(logits)
