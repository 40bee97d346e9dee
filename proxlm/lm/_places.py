"""Positions of the tokens after a prompt, and the columns of the cache that each may see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm.lm import _config, _rope
from proxlm.lm._config import ModelConfig
from proxlm.lm._views import Turn


class Places(NamedTuple):
    """Positions of response tokens, one row for each of the R tokens; or those of one token.

    Attributes:
      positions: integers `[R, B or 1]`; of one token `[B or 1]`.
      turns: for each kind of layer, cosines and sines `[R, B or 1, 1, 1, r/2]`, or None.
    """

    positions: jax.Array
    turns: list[Turn | None]


def places(prompt_mask: jax.Array | None, length: int, num_tokens: int, config: ModelConfig) -> Places:
    """The positions of the tokens after a prompt.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, width=8, num_heads=2)
    >>> places(None, 5, 3, config).turns[0][0].shape
    (3, 1, 1, 1, 2)
    """
    before = jnp.array([length]) if prompt_mask is None else jnp.sum(prompt_mask, axis=1)
    positions = before[None] + jnp.arange(num_tokens)[:, None]
    kinds, _ = _config.layer_kinds(config)
    turns = [None if kind.rope is None else _turns(positions, config, kind) for kind in kinds]
    return Places(positions, turns)


def _turns(positions, config, kind):
    rotation = lambda positions: _rope.rotation(positions[..., None, None], config, kind)
    if config.rope_scaling is not None and config.rope_scaling.by_length:
        return jax.vmap(rotation)(positions)  # each step by its own length
    return rotation(positions)


def at_step(places: Places, i: ArrayLike) -> Places:
    """The place of response token i.

    >>> at_step(places(None, 5, 3, ModelConfig(vocab_size=16)), 2).positions.tolist()
    [7]
    """
    return jax.tree.map(lambda part: jax.lax.dynamic_index_in_dim(part, i, keepdims=False), places)


def valid_columns(prompt_mask: jax.Array | None, length: int, total: int) -> jax.Array:
    """Bool `[B or 1, S]`: the prompt's valid columns and all of the response's.

    >>> valid_columns(jnp.array([[False, True]]), 2, 4).tolist()
    [[False, True, True, True]]
    """
    if prompt_mask is None:
        return jnp.ones((1, total), bool)
    return jnp.pad(prompt_mask, ((0, 0), (0, total - length)), constant_values=True)


def visible_columns(valid: jax.Array, column: ArrayLike, window: int | None = None) -> jax.Array:
    """Bool `[B or 1, 1, 1, S]`: the valid columns up to the token's own, as many as its window holds.

    >>> visible_columns(jnp.ones((1, 5), bool), 3, window=2)[0, 0, 0].tolist()
    [False, False, True, True, False]
    """
    columns = jax.lax.broadcasted_iota(jnp.int32, valid.shape, 1)
    visible = valid & (columns <= column)
    if window is not None:
        visible &= jnp.cumsum(visible[:, ::-1], axis=1)[:, ::-1] <= window
    return visible[:, None, None, :]
