"""Text to integers and back, and documents to windows of a fixed length."""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

# Stands before every document. No document is followed by it yet, so a model hardly ever stops.
END = 0


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Learns a byte-level BPE: any text can be encoded, and decoding gives it back."""
    smallest = 1 + len(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size}: expected at least {smallest}, the bytes and the end token"
        )
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
    """Encodes every text, its white space reduced to single blanks: END, then its tokens."""
    encodings = tokenizer.encode_batch([tidy(text) for text in texts])
    return [np.array([END, *encoding.ids], np.int32) for encoding in encodings]


def decode(tokenizer: tokenizers.Tokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    """Decodes the unmasked tokens of each row; END is left out."""
    rows = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
    return tokenizer.decode_batch(rows)


def windows(documents: Sequence[np.ndarray], length: int, most: int | None = None) -> np.ndarray:
    """Cuts documents into rows of length + 1 tokens, inputs and targets together.

    The remainder of a document is dropped; `most` keeps only so many windows of each.
    """
    rows = [
        document[start : start + length + 1]
        for document in documents
        for start in range(0, len(document) - length, length)[:most]
    ]
    if not rows:
        raise ValueError(
            f"no document has length + 1 = {length + 1} tokens: give longer texts, or a shorter "
            "window"
        )
    return np.stack(rows)


class Characters:
    """One token per distinct character of a text."""

    def __init__(self, text: str):
        self.alphabet = sorted(set(text))
        self._index = {character: i for i, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> np.ndarray:
        """Integers `[len(text)]`; ValueError for a character that is not in the alphabet."""
        try:
            return np.fromiter((self._index[c] for c in text), np.int32, len(text))
        except KeyError as error:
            raise ValueError(
                f"the character {error.args[0]!r} does not occur in the training text: leave it out"
            ) from None

    def decode(self, tokens: np.ndarray) -> str:
        """The characters of integers `[T]`."""
        return "".join(self.alphabet[token] for token in np.asarray(tokens).tolist())


def tidy(text: str) -> str:
    """Reduces white space to single blanks."""
    return " ".join(text.split())
