"""The past of a row, as far as bans and penalties on its tokens depend on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm._decoding.config import SamplingConfig

__all__ = ["History", "add", "at_start", "before", "first_columns", "in_turn", "of_rows"]


class History(NamedTuple):
    """The past of tokens that are drawn or scored.

    Attributes:
      seen: bool `[N, V]`: the row has this token before; None where nothing asks for it.
      index: integers `[N]` or a scalar: how many tokens of the response, or of its turn, stand before.
    """

    seen: jax.Array | None
    index: jax.Array


def first_columns(tokens: jax.Array, mask: jax.Array | None, vocab_size: int) -> jax.Array:
    """The first column of each token of the vocabulary, `[B, T]` -> integers `[B, V]`; T where there is none.

    >>> first_columns(jnp.array([[2, 0, 2]]), None, 3).tolist()
    [[1, 3, 0]]
    """
    batch, length = tokens.shape
    columns = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
    columns = columns if mask is None else jnp.where(mask, columns, length)
    nowhere = jnp.full((batch, vocab_size), length)
    return nowhere.at[jnp.arange(batch)[:, None], tokens].min(columns, mode="drop")


def at_start(
    tokens: jax.Array, mask: jax.Array | None, vocab_size: int, sampling: SamplingConfig
) -> jax.Array | None:
    """The tokens seen in prompts, bool `[B, V]`, or None where the settings do not ask.

    >>> at_start(jnp.array([[2, 0, 2]]), None, 4, SamplingConfig(repetition_penalty=1.2)).tolist()
    [[True, False, True, False]]
    """
    if sampling.repetition_penalty is None:
        return None
    return first_columns(tokens, mask, vocab_size) < tokens.shape[1]


def add(seen: jax.Array | None, tokens: jax.Array) -> jax.Array | None:
    """The tokens seen with one more in each row.

    >>> add(jnp.zeros((1, 3), bool), jnp.array([1])).tolist()
    [[False, True, False]]
    """
    return seen if seen is None else seen.at[jnp.arange(len(tokens)), tokens].set(True)


def of_rows(
    tokens: jax.Array, mask: jax.Array | None, vocab_size: int, sampling: SamplingConfig
) -> jax.Array | None:
    """The `first_columns` of rows that are scored, for `before`; None where the settings do not ask."""
    return None if sampling.repetition_penalty is None else first_columns(tokens, mask, vocab_size)


def before(first: jax.Array | None, rows: jax.Array, columns: jax.Array, index: jax.Array) -> History:
    """The past of tokens at rows and columns `[N]`, with an index `[N]` each.

    >>> before(jnp.array([[1, 3, 0]]), jnp.array([0]), jnp.array([1]), jnp.array([0])).seen.tolist()
    [[False, False, True]]
    """
    return History(None if first is None else first[rows] < columns[:, None], index)


def in_turn(response_mask: jax.Array) -> jax.Array:
    """The place of each token in its own turn, `[B, R]`, from 0 on: a turn is a run of True.

    >>> in_turn(jnp.array([[True, True, False, True, True]]))[0].tolist()
    [0, 1, -1, 0, 1]
    """
    columns = jnp.broadcast_to(jnp.arange(response_mask.shape[1])[None], response_mask.shape)
    holes = jnp.where(response_mask, -1, columns)
    return columns - jax.lax.cummax(holes, axis=1) - 1
