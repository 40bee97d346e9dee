"""A small language: its prefixes and its outcomes, all complete sequences, in one fixed order."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from proxlm import _validation

__all__ = ["Language", "Outcomes", "contexts", "outcomes", "table"]

# Beyond this many sequences the sums would take long and much memory.
MAX_SEQUENCES = 2**16


@dataclasses.dataclass(frozen=True)
class Language:
    """All sequences of at most `length` tokens; hashable, so that it may be a static argument.

    Prefixes are numbered shortest first, those of one length as numbers in base V, first token
    first: the empty one is 0, "v" is 1 + v, and so on; S = 1 + V + ... + V^(T-1) of them.

    Attributes:
      vocab_size: V.
      length: T, of the longest sequence.
      stop_token: ends a sequence where it occurs, or None: all sequences have T tokens.

    Raises:
      ValueError: if a size is below 1, V^T is above 65536 or the stop token is not in the vocabulary.

    >>> Language(vocab_size=3, length=3).num_states
    13
    """

    vocab_size: int
    length: int
    stop_token: int | None = None

    def __post_init__(self):
        """Raises ValueError for a language that cannot be enumerated."""
        _validation.integer(1, "Language", vocab_size=self.vocab_size, length=self.length)
        if self.vocab_size**self.length > MAX_SEQUENCES:
            count = f"at most {MAX_SEQUENCES}, got {self.vocab_size**self.length}"
            remedy = "Take a smaller vocabulary or shorter sequences."
            raise ValueError(f"Language: vocab_size ** length must be {count}. {remedy}")
        last = self.vocab_size - 1
        _validation.integer(0, "Language", stop_token=self.stop_token)
        _validation.within(
            0, last, "Language", "It is a token of the vocabulary.", stop_token=self.stop_token
        )

    @property
    def num_states(self) -> int:
        """S, the number of prefixes shorter than T."""
        return self.start(self.length)

    def start(self, level: int) -> int:
        """The index of the first prefix of `level` tokens."""
        return sum(self.vocab_size**t for t in range(level))


class Outcomes(NamedTuple):
    """All complete sequences, NumPy arrays with a row for each of the N outcomes.

    Attributes:
      tokens: int32 [N, T]; the stop token also fills the slots after it.
      mask: bool [N, T]: tokens up to the stop token, this included.
      states: int32 [N, T]: the prefix before each token.
    """

    tokens: np.ndarray
    mask: np.ndarray
    states: np.ndarray


@functools.lru_cache(maxsize=16)
def outcomes(language: Language) -> Outcomes:
    """The outcomes of a language, in the order of the rewards.

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
    """Sequences that pass through every prefix: inputs that turn a model into a `table`, [V^(T-1), T - 1].

    >>> contexts(Language(vocab_size=2, length=3)).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    if language.length == 1:
        return np.zeros((1, 0), np.int32)
    return _all_sequences(Language(language.vocab_size, language.length - 1))[0]


@_validation.typed
def table(x: jax.Array, language: Language) -> jax.Array:
    """Selects the row of each prefix from the outputs of a causal model along `contexts`.

    Args:
      x: [V^(T-1), T, ...], at t the output after the first t tokens of a context.

    >>> table(jnp.arange(4).reshape(2, 2), Language(vocab_size=2, length=2)).tolist()
    [0, 1, 3]
    """
    vocab, length = language.vocab_size, language.length
    expected = (vocab ** (length - 1), length)
    if x.shape[:2] != expected:
        remedy = "Give one row for each of `contexts`, with one column more than they have tokens."
        raise _validation.invalid("x.shape[:2]", x.shape[:2], f"{expected}", remedy, "table")
    levels = [x[:: vocab ** (length - 1 - t), t] for t in range(length)]
    return jnp.concatenate(levels)


@functools.lru_cache(maxsize=16)
def ended(language: Language) -> np.ndarray:
    """Marks the prefixes that hold the stop token, at which no token is sampled: bool [S].

    >>> ended(Language(vocab_size=2, length=2, stop_token=0)).tolist()
    [False, True, False]
    """
    tokens, states = _all_sequences(language)
    before = np.zeros(tokens.shape, bool)
    before[:, 1:] = np.cumsum(tokens == language.stop_token, axis=1)[:, :-1] > 0
    result = np.zeros(language.num_states, bool)
    result[states] = before
    return result


def check_table(language: Language, **tables: ArrayLike) -> None:
    """Raises ValueError for a table that is not [S, V].

    >>> check_table(Language(vocab_size=2, length=2), log_probs=np.zeros((3, 2)))
    """
    expected = (language.num_states, language.vocab_size)
    for name, x in tables.items():
        if np.shape(x) != expected:
            remedy = "It has a row of log-probabilities for every prefix; a model becomes one by `table`."
            raise _validation.invalid(f"{name}.shape", np.shape(x), f"{expected}, [S, V]", remedy)


def check_rewards(language: Language, rewards: ArrayLike) -> None:
    """Raises ValueError unless there is one reward for every outcome, [N].

    >>> check_rewards(Language(vocab_size=2, length=2), np.zeros(4))
    """
    expected = (len(outcomes(language).tokens),)
    if np.shape(rewards) != expected:
        remedy = "Give one for each of `outcomes`."
        raise _validation.invalid("rewards.shape", np.shape(rewards), f"{expected}, [N]", remedy)


def _all_sequences(language):
    """Tokens [V^T, T] and the prefix before each, as numbers in base V."""
    vocab, length = language.vocab_size, language.length
    code = np.arange(vocab**length)
    digits = [code // vocab ** (length - t) for t in range(length + 1)]
    tokens = np.stack([digits[t + 1] % vocab for t in range(length)], axis=1)
    states = np.stack([language.start(t) + digits[t] for t in range(length)], axis=1)
    return tokens.astype(np.int32), states.astype(np.int32)
