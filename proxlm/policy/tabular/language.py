"""What can be said: the prefixes and the outcomes of a small language, in one fixed order."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np

# beyond this many sequences the tables no longer fit the word small
MAX_SEQUENCES = 2**16


@dataclasses.dataclass(frozen=True)
class Language:
    """All sequences of at most `length` tokens; hashable, so that it may be a static argument.

    Prefixes are numbered shortest first, those of one length as numbers in base V, first token
    first: the empty one is 0, "v" is 1 + v, and so on; S = 1 + V + ... + V^(T-1) of them.

    Attributes:
      vocab_size: V.
      length: T, of the longest sequence.
      stop_token: ends a sequence where it is said, or None: all sequences have T tokens.

    Raises:
      ValueError: if a size is below 1, V^T above 65536 or the stop token not in the vocabulary.

    >>> Language(vocab_size=3, length=3).num_states
    13
    """

    vocab_size: int
    length: int
    stop_token: int | None = None

    def __post_init__(self):
        """Refuses what cannot be enumerated."""
        for name in ("vocab_size", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.vocab_size**self.length > MAX_SEQUENCES:
            raise ValueError(
                f"vocab_size={self.vocab_size} and length={self.length} give "
                f"{self.vocab_size**self.length} sequences; expected at most {MAX_SEQUENCES}. "
                "Take a smaller vocabulary or shorter sequences."
            )
        if self.stop_token is not None and not 0 <= self.stop_token < self.vocab_size:
            raise ValueError(
                f"stop_token is {self.stop_token}; expected None or a token from 0 to {self.vocab_size - 1}."
            )

    @property
    def num_states(self) -> int:
        """S, the number of prefixes shorter than T."""
        return self.start(self.length)

    def start(self, level: int) -> int:
        """The number of the first prefix of `level` tokens."""
        return sum(self.vocab_size**t for t in range(level))


class Outcomes(NamedTuple):
    """Everything that can be said, NumPy arrays, a row for each of the N outcomes.

    Attributes:
      tokens: int32 [N, T]; the stop token also fills what lies behind it.
      mask: bool [N, T]: tokens up to the stop token, this included.
      states: int32 [N, T]: the prefix before each token.
    """

    tokens: np.ndarray
    mask: np.ndarray
    states: np.ndarray


@functools.lru_cache(maxsize=16)
def outcomes(language: Language) -> Outcomes:
    """The outcomes of a language, in the order in which rewards are given.

    Args:
      language: a `Language`.

    Returns:
      `Outcomes`; N = V^T without a stop token.

    >>> outcomes(Language(vocab_size=2, length=2, stop_token=0)).tokens.tolist()
    [[0, 0], [1, 0], [1, 1]]
    """
    tokens, states = _all_sequences(language)
    mask = np.ones(tokens.shape, bool)
    if language.stop_token is not None:
        stopped = np.cumsum(tokens == language.stop_token, axis=1)
        mask[:, 1:] = stopped[:, :-1] == 0
        kept = np.all(mask | (tokens == language.stop_token), axis=1)
        tokens, mask, states = tokens[kept], mask[kept], states[kept]
    for array in (tokens, mask, states):
        array.setflags(write=False)
    return Outcomes(tokens, mask, states)


def contexts(language: Language) -> np.ndarray:
    """Sequences that pass through every prefix: what a model is asked, to become a table.

    Args:
      language: a `Language`.

    Returns:
      int32 [V^(T-1), T - 1].

    >>> contexts(Language(vocab_size=2, length=3)).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    if language.length == 1:
        return np.zeros((1, 0), np.int32)
    return _all_sequences(Language(language.vocab_size, language.length - 1))[0]


def table(x: jax.Array, language: Language) -> jax.Array:
    """Picks the row of each prefix from what a causal model says along `contexts`.

    Args:
      x: [V^(T-1), T, ...], at t what follows the first t tokens of a context.
      language: a `Language`.

    Returns:
      [S, ...]; log-probabilities of every prefix, if x holds log-probabilities.

    Raises:
      ValueError: if x has another shape.

    >>> import jax.numpy as jnp
    >>> table(jnp.arange(4).reshape(2, 2), Language(vocab_size=2, length=2)).tolist()
    [0, 1, 3]
    """
    vocab, length = language.vocab_size, language.length
    if x.shape[:2] != (vocab ** (length - 1), length):
        raise ValueError(
            f"x has shape {x.shape}; expected ({vocab ** (length - 1)}, {length}, ...): one row "
            "for each of `contexts`, and one column more than they have tokens."
        )
    levels = [x[:: vocab ** (length - 1 - t), t] for t in range(length)]
    return jax.numpy.concatenate(levels)


@functools.lru_cache(maxsize=16)
def ended(language: Language) -> np.ndarray:
    """Which prefixes hold the stop token and are never left: bool [S].

    >>> ended(Language(vocab_size=2, length=2, stop_token=0)).tolist()
    [False, True, False]
    """
    tokens, states = _all_sequences(language)
    before = np.zeros(tokens.shape, bool)
    before[:, 1:] = np.cumsum(tokens == language.stop_token, axis=1)[:, :-1] > 0
    result = np.zeros(language.num_states, bool)
    result[states] = before
    return result


def check_table(language: Language, **tables) -> None:
    """Asks that every table is [S, V].

    Raises:
      ValueError: naming the table that is not.

    >>> check_table(Language(vocab_size=2, length=2), log_probs=np.zeros((3, 2)))
    """
    expected = (language.num_states, language.vocab_size)
    for name, x in tables.items():
        if np.shape(x) != expected:
            raise ValueError(
                f"{name} has shape {np.shape(x)}; expected {expected}: a row of log-probabilities "
                "for every prefix. A model that takes tokens becomes one by `table`."
            )


def check_rewards(language: Language, rewards: jax.Array) -> None:
    """Asks for one reward for every outcome, [N].

    Raises:
      ValueError: if it has another shape.

    >>> check_rewards(Language(vocab_size=2, length=2), np.zeros(4))
    """
    expected = (len(outcomes(language).tokens),)
    if np.shape(rewards) != expected:
        raise ValueError(
            f"rewards has shape {np.shape(rewards)}; expected {expected}: one for each of `outcomes`."
        )


def _all_sequences(language):
    """Tokens [V^T, T] and the prefix before each, as numbers in base V."""
    vocab, length = language.vocab_size, language.length
    code = np.arange(vocab**length)
    digits = [code // vocab ** (length - t) for t in range(length + 1)]
    tokens = np.stack([digits[t + 1] % vocab for t in range(length)], axis=1)
    states = np.stack([language.start(t) + digits[t] for t in range(length)], axis=1)
    return tokens.astype(np.int32), states.astype(np.int32)
