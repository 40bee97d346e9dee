"""Turns of a policy with a tool between them: whatever the model, and whether the tool is pure or Python."""

from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation, sharding
from proxlm._decoding.records import Prompts, Samples, Turns
from proxlm._decoding.rows import align, texts

__all__ = ["extended", "joined", "num_columns", "play", "text_tool"]


def num_columns(num_tokens: int, turns: Turns | None) -> int:
    """R, the columns of a response of turns of `num_tokens` each.

    >>> num_columns(3, Turns(lambda turn, samples: turn, num_outputs=4)), num_columns(3, None)
    (10, 3)
    """
    return (
        num_tokens if turns is None else num_tokens + (turns.num_turns - 1) * (num_tokens + turns.num_outputs)
    )


def play(
    key: jax.Array,
    turns: Turns,
    start: Callable[[jax.Array], Any],
    go_on: Callable[..., Any],
    num_tokens: int,
) -> Any:
    """The rollout after all turns: `start(key)`, then `go_on(key, rollout, outputs, output_mask)`.

    Args:
      key: a typed key, or `[B]` of them; consumed.
    """
    split = lambda key: jax.random.split(key, turns.num_turns)
    keys = split(key) if key.ndim == 0 else jax.vmap(split, out_axes=1)(key)
    rollout = start(keys[0])
    for i in range(1, turns.num_turns):
        rollout = go_on(keys[i], rollout, *_outputs(turns, rollout.samples, num_tokens))
    return rollout


def extended(
    samples: Samples, alive: jax.Array, outputs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens and mask `[B, T + K]` with the tool's outputs, moved to the right, and the rows that go on.

    >>> mask, alive = jnp.ones((1, 2), bool), jnp.array([True])
    >>> samples = Samples(jnp.array([[4, 5]]), mask, None, mask, alive)
    >>> extended(samples, alive, jnp.array([[7, 0]]), jnp.array([[True, False]]))[0].tolist()
    [[4, 5, 0, 7]]
    """
    mask = mask & alive[:, None]
    outputs, mask = align(jnp.where(mask, outputs, 0), mask)
    tokens = jnp.concatenate([samples.tokens, outputs.astype(jnp.int32)], axis=1)
    return tokens, jnp.concatenate([samples.mask, mask], axis=1), jnp.any(mask, axis=1)


def joined(old: Samples, alive: jax.Array, new: Samples) -> Samples:
    """The samples of all turns, of those before and of the last one, whose prompts hold the others."""
    hole = jnp.zeros((len(alive), new.tokens.shape[1] - old.tokens.shape[1] - new.log_probs.shape[1]), bool)
    return new._replace(
        log_probs=jnp.concatenate([old.log_probs, hole.astype(jnp.float32), new.log_probs], axis=1),
        response_mask=jnp.concatenate([old.response_mask, hole, new.response_mask], axis=1),
        ended=jnp.where(alive, new.ended, old.ended),
    )


def _outputs(turns, samples, num_tokens):
    """The answer of the tool to the last turn: tokens and mask `[B, K]`."""
    seen = sharding.own_rows(samples) if turns.on_host else samples
    turn = Prompts(seen.tokens[:, -num_tokens:], seen.response_mask[:, -num_tokens:])
    given = turns.tool(turn, seen)
    if turns.on_host:
        return sharding.of_rows(_padded(given, len(seen.tokens), turns.num_outputs), samples.tokens)
    shape = (len(samples.tokens), turns.num_outputs)
    mask = getattr(given, "mask", None)
    shapes = [jnp.shape(x) for x in (getattr(given, "tokens", None), mask) if x is not None]
    if not hasattr(given, "tokens") or shapes != [shape] * len(shapes):
        expected = f"Prompts with tokens and mask of shape {shape}, or tokens alone"
        kind = _validation.Verbatim(f"a {type(given).__name__} of shapes {shapes}")
        raise _validation.invalid("the output of the tool", kind, expected, "", "Turns")
    return given.tokens, jnp.ones(shape, bool) if mask is None else mask


def _padded(rows, batch, width):
    """Lists of token ids, or None, as arrays; longer ones lose their end."""
    is_row = lambda row: row is None or (isinstance(row, Sequence | np.ndarray) and not isinstance(row, str))
    if not isinstance(rows, Sequence) or len(rows) != batch or not all(map(is_row, rows)):
        given = _validation.Verbatim(
            f"a {type(rows).__name__}" + (f" of {len(rows)}" if hasattr(rows, "__len__") else "")
        )
        expected = f"a list of {batch} lists of token ids, or None, one for each row"
        raise _validation.invalid("the output of the tool", given, expected, "", "Turns")
    tokens, mask = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
    for i, row in enumerate(rows):
        cut = [] if row is None else list(row)[:width]
        tokens[i, : len(cut)], mask[i, : len(cut)] = cut, True
    return tokens, mask


def text_tool(
    fn: Callable[[str], str | None],
    decode: Callable[[list[int]], str],
    encode: Callable[[str], Sequence[int]],
    workers: int = 1,
) -> Callable[[Prompts, Samples], list[Sequence[int] | None]]:
    """A tool of texts for `Turns(..., on_host=True)`: `fn(text of the turn)` -> text, or None for no call.

    Args:
      decode: token ids -> text.
      encode: text -> token ids, without special ones.
      workers: how many texts are answered at the same time, in threads.

    Raises:
      ValueError: if an argument is invalid.

    >>> tool = text_tool(str.upper, lambda ids: "".join(map(chr, ids)), lambda text: [*map(ord, text)])
    >>> turn = Prompts(np.array([[97, 98]]), np.array([[True, False]]))
    >>> tool(turn, None)
    [[65]]
    """
    _validation.a_function("text_tool", fn=fn)
    _validation.a_function("text_tool", decode=decode)
    _validation.a_function("text_tool", encode=encode)
    _validation.to_int(1, "text_tool", workers=workers)

    def tool(turn, samples):
        with futures.ThreadPoolExecutor(workers) as pool:
            said = list(pool.map(fn, texts(decode, turn.tokens, turn.mask)))
        return [None if text is None else encode(text) for text in said]

    return tool
