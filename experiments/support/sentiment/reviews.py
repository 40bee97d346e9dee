"""Film reviews as tokens: those the models of `experiments.sentiment` learn from, and held out."""

import pathlib
from typing import NamedTuple

import numpy as np
import tokenizers

from experiments.support.data import corpora, tokenization

# Reviews that the tokenizer is learnt from: more change it little.
TOKENIZED = 5000


class Reviews(NamedTuple):
    """Encoded reviews and their labels, those the models learn from and those held out."""

    tokenizer: tokenizers.Tokenizer
    train: list
    train_labels: np.ndarray
    held_out: list
    held_out_labels: np.ndarray
    split: corpora.Split


def read(data: pathlib.Path, seed: int, vocab_size: int, documents: int = 0) -> Reviews:
    """Splits the reviews, learns the tokenizer from the first of them, encodes all.

    `documents` limits how many are read of each part; 0 reads all.
    """
    split = corpora.split(corpora.movie_reviews(data), seed)
    if documents:
        split = corpora.Split(split.train[:documents], split.held_out[:documents])
    texts = (review.text for review in split.train[:TOKENIZED])
    tokenizer = tokenization.train_bpe(texts, vocab_size)
    encoded = [tokenization.encode(tokenizer, [review.text for review in part]) for part in split]
    labels = [np.array([review.label for review in part]) for part in split]
    return Reviews(tokenizer, encoded[0], labels[0], encoded[1], labels[1], split)
