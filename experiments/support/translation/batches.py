"""Verse pairs as rows of tokens: source, end tokens up to a fixed column, target, end tokens.

The source is filled up by the end token, seen like any other, which is also what separates it from
the target. So the j-th token of the target always stands as far behind the j-th of the source,
and a decoder-only model finds the two side by side.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from experiments.support.data import tokenization
from experiments.support.translation import bibles, chrf

# Whole books, so that no verse is judged whose neighbours were learnt: Judges, Ruth, Ecclesiastes,
# Jonah, Acts, James. Others for the curves and for choosing settings: Esther, Daniel, Micah,
# Revelation.
HELD_OUT = (7, 8, 21, 32, 44, 59)
DEVELOPMENT = (17, 27, 33, 66)


class Part(NamedTuple):
    """Some of the verses."""

    verses: list[bibles.Verse]
    rows: np.ndarray  # [N, 2·(longest + 1)]
    references: np.ndarray  # [N, L], the characters of the targets


class Corpus(NamedTuple):
    """The tokenizer and the three parts of the verses."""

    tokenizer: tokenizers.Tokenizer
    table: np.ndarray  # [V, C], the characters of each token
    longest: int
    train: Part
    development: Part
    held_out: Part


def read(verses: list[bibles.Verse], vocab_size: int, longest: int, most: int = 0) -> Corpus:
    """Learns the tokenizer, drops verses with more than `longest` tokens, makes the parts.

    `most` limits how many verses of each part are looked at; 0 is all.
    """
    kinds = ["train", "development", "held out"]
    groups = [[verse for verse in verses if kind_of(verse.book) == kind][: most or None] for kind in kinds]
    texts = (text for verse in groups[0] for text in verse[1:])
    tokenizer = tokenization.train_bpe(texts, vocab_size)
    table = chrf.characters(tokenizer)
    short = [_short(tokenizer, group, longest) for group in groups]
    for kind, (kept, _) in zip(kinds, short, strict=True):
        if not kept:
            raise ValueError(
                f"longest={longest}: no verse of the {kind} books is that short; give more tokens"
            )
    spelt = [_spell(rows[:, longest + 1 :], table) for _, rows in short]
    length = max(np.count_nonzero(characters, axis=1).max() for characters in spelt)
    parts = [Part(*part, characters[:, :length]) for part, characters in zip(short, spelt, strict=True)]
    return Corpus(tokenizer, table, longest, *parts)


def kind_of(book: int) -> str:
    """The part that a book belongs to.

    >>> kind_of(1), kind_of(8)
    ('train', 'held out')
    """
    if book in HELD_OUT:
        return "held out"
    return "development" if book in DEVELOPMENT else "train"


def sources(rows: Any) -> jax.Array:
    """The first half of the rows: `[N, longest + 1]`."""
    return rows[:, : rows.shape[1] // 2]


def targets(rows: Any) -> tuple[jax.Array, jax.Array]:
    """The second half, and which of it is to be written: up to the first end token, with it.

    >>> targets(jnp.array([[7, 0, 0, 8, 0, 0]]))[1].tolist()
    [[True, True, False]]
    """
    tokens = rows[:, rows.shape[1] // 2 :]
    ends = tokens == tokenization.END
    return tokens, jnp.cumsum(ends, axis=1) - ends == 0


def reward(tokens: Any, mask: Any, references: Any, table: Any):
    """Sentence chrF in [0, 1] of translations `[B, R]` against references `[B, L]`: `[B]`.

    A translation may be half as long again as the longest reference; what exceeds that is cut.
    """
    length = 3 * references.shape[1] // 2
    spell = jax.vmap(lambda tokens, mask: chrf.spell(tokens, mask, table, length))
    return jax.vmap(chrf.score)(spell(tokens, mask), references)


def texts(corpus: Corpus, tokens: jax.Array, mask: jax.Array) -> list[str]:
    """Translations `[N, R]` as text."""
    decoded = tokenization.decode(corpus.tokenizer, np.asarray(tokens), np.asarray(mask))
    return [text.strip() for text in decoded]


def _short(tokenizer, verses, longest):
    """The verses of at most `longest` tokens on either side, and their rows."""
    encoded = [tokenization.encode(tokenizer, [verse[side] for verse in verses]) for side in (1, 2)]
    kept = [i for i, pair in enumerate(zip(*encoded, strict=True)) if max(map(len, pair)) <= longest + 2]
    rows = np.full((len(kept), 2, longest + 1), tokenization.END, np.int32)
    for row, i in enumerate(kept):
        for side, tokens in enumerate((encoded[0][i], encoded[1][i])):
            rows[row, side, : len(tokens) - 2] = tokens[1:-1]
    return [verses[i] for i in kept], rows.reshape(len(kept), 2 * (longest + 1))


def _spell(tokens, table):
    """`chrf.spell` of many rows, in NumPy and without a bound on the length."""
    points = table[tokens].reshape(len(tokens), -1)
    order = np.argsort(points == 0, axis=1, kind="stable")
    return np.take_along_axis(points, order, axis=1)
