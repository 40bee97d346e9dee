"""Text to integers and back, and documents to windows of a fixed length."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from experiments.support import Refusal
from proxlm import _validation

# Stands before and after every document: a model starts from it, and stops by it.
END = 0
SMALLEST = 257  # vocabulary of a byte-level BPE: the bytes and the end token


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Learns a byte-level BPE: any text can be encoded, and decoding gives it back."""
    _validation.at_least(SMALLEST, remedy="Those are the bytes and the end token.", vocab_size=vocab_size)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(tidy, texts), trainer)
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes every text, its white space reduced to single blanks: its tokens between two END."""
    encodings = tokenizer.encode_batch([tidy(text) for text in texts])
    return [np.array([END, *encoding.ids, END], np.int32) for encoding in encodings]


def decode(tokenizer: tokenizers.Tokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    """Decodes the unmasked tokens of each row; END is left out."""
    rows = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
    return tokenizer.decode_batch(rows)


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[N, P]`, each row at the right end, and their mask."""
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = [[0] * (longest - len(row)) + list(row) for row in rows]
    return np.array(tokens, np.int32), np.arange(longest) >= longest - lengths[:, None]


def windows(documents: Sequence[np.ndarray], length: int, most: int | None = None) -> np.ndarray:
    """Cuts documents into rows of length + 1 tokens, inputs and targets together.

    Documents stand in one line, one END between two. Windows start where a document does and go
    on to its end, the last one into the next document; `most` keeps only so many of each.
    """
    if not documents:
        raise Refusal("documents is empty: give at least one")
    line = np.concatenate([document[:-1] for document in documents] + [documents[-1][-1:]])
    begins = np.cumsum([0] + [len(document) - 1 for document in documents])
    starts = [
        start
        for begin, end in itertools.pairwise(begins.tolist())
        for start in range(begin, end, length)[:most]
        if start + length < len(line)
    ]
    if not starts:
        raise Refusal(
            f"documents have {len(line)} tokens in all: expected length + 1 = {length + 1} at "
            "least; give more text, or a shorter window"
        )
    return line[np.array(starts)[:, None] + np.arange(length + 1)]


def random_windows(tokens: np.ndarray, length: int, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Windows of length + 1 tokens from random places, `[*shape, length + 1]`."""
    starts = np.random.default_rng(seed).integers(0, len(tokens) - length, shape, dtype=np.int32)
    return tokens[starts[..., None] + np.arange(length + 1)]


def openings(documents: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, list[int]]:
    """END and the first `length` tokens of the documents that have so many, and which those are.

    The END after a document is not one of its tokens, so that no opening holds it.
    """
    kept = [i for i, document in enumerate(documents) if len(document) - 2 >= length]
    if not kept:
        longest = max((len(document) - 2 for document in documents), default=0)
        raise Refusal(
            f"no document has {length} tokens, the longest of {len(documents)} has {longest}: give "
            "longer documents, or ask for shorter openings"
        )
    return np.stack([documents[i][: 1 + length] for i in kept]), kept


class Characters:
    """One token per distinct character of a text."""

    def __init__(self, text: str):
        self.alphabet = sorted(set(text))
        self._index = {character: i for i, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> np.ndarray:
        """Integers `[len(text)]`; Refusal for a character that is not in the alphabet."""
        try:
            return np.fromiter((self._index[c] for c in text), np.int32, len(text))
        except KeyError as error:
            raise Refusal(
                f"the character {error.args[0]!r} does not occur in the training text: leave it out"
            ) from None

    def decode(self, tokens: np.ndarray) -> str:
        """The characters of integers `[T]`."""
        return "".join(self.alphabet[token] for token in np.asarray(tokens).tolist())


def tidy(text: str) -> str:
    """Reduces white space to single blanks."""
    return " ".join(text.split())
