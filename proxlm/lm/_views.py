"""Views of attention in each kind of layer: its mask over keys, and the angles by which it rotates."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm.lm import _config, _rope
from proxlm.lm._config import LayerKind, ModelConfig

Turn = tuple[jax.Array, jax.Array]
"""Cosines and sines of rotary angles."""


class View(NamedTuple):
    """The mask and the angles of attention in the layers of one kind.

    Attributes:
      visible: bool `[B or 1, 1, T, S]`: which keys a query may see; or a `GroupMask`.
      turn: cosines and sines of the angles of the positions, each `[B or 1, 1, T, r/2]`; None
        where nothing rotates.
    """

    visible: Any
    turn: Turn | None


def of_layers(
    positions: jax.Array | None,
    mask: jax.Array | None,
    length: int,
    config: ModelConfig,
    segments: jax.Array | None = None,
) -> tuple[list[View], tuple[int, ...]]:
    """The view of each kind of layer, and the index of every layer's kind.

    >>> views, index = of_layers(None, None, 5, ModelConfig(vocab_size=16, num_layers=2))
    >>> len(views), index
    (1, (0, 0))
    """
    kinds, index = _config.layer_kinds(config)
    turn = lambda kind: angles(positions, mask, length, config, kind, segments)
    visible = lambda kind: visibility(mask, length, kind.window)
    if segments is not None:
        same = segments[:, None, :, None] == segments[:, None, None, :]
        visible = lambda kind: visibility(None, length, kind.window) & same
    return [View(visible(kind), turn(kind)) for kind in kinds], index


def stack(views: Sequence[View]) -> View:
    """Views in one, stacked along a new first axis; where nothing rotates, by an angle of 0.

    >>> view = View(jnp.ones((1, 1, 3, 3), bool), (jnp.ones((1, 1, 3, 2)), jnp.ones((1, 1, 3, 2))))
    >>> stack([view, view._replace(turn=None)]).turn[1][1].max().item()
    0.0
    """
    like = next((view.turn for view in views if view.turn is not None), None)
    if like is not None:
        rest = jnp.ones_like(like[0]), jnp.zeros_like(like[1])
        views = [view if view.turn is not None else view._replace(turn=rest) for view in views]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *views)


def picker(views: Sequence[View], config: ModelConfig) -> Callable[[ArrayLike], View]:
    """A function from a layer, which may be traced, to its view.

    >>> picker([View(jnp.ones((1, 1, 3, 3), bool), None)], ModelConfig(vocab_size=16))(2).turn is None
    True
    """
    if len(views) == 1:
        return lambda layer: views[0]
    together, index = stack(views), jnp.array(_config.layer_kinds(config)[1])
    pick = lambda x, layer: jax.lax.dynamic_index_in_dim(x, index[layer], 0, False)
    return lambda layer: jax.tree.map(lambda x: pick(x, layer), together)


def visibility(mask: jax.Array | None, length: int, window: int | None = None) -> jax.Array:
    """The attention mask: a query sees the valid keys up to itself, in its window: `[B or 1, 1, T, T]`.

    The window counts valid columns, the query's own among them; None is all.

    >>> visibility(None, 3, window=2)[0, 0].tolist()
    [[True, False, False], [True, True, False], [False, True, True]]
    """
    causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if window is not None and window < length:
        place = count(mask, length)
        causal &= (place[:, :, None] - place[:, None, :] < window)[:, None]
    return causal if mask is None else causal & mask[:, None, None, :]


def angles(
    positions: jax.Array | None,
    mask: jax.Array | None,
    length: int,
    config: ModelConfig,
    kind: LayerKind,
    segments: jax.Array | None = None,
) -> Turn | None:
    """Cosines and sines `[B or 1, 1, T, r/2]` of the given or counted positions, or None.

    >>> config = ModelConfig(vocab_size=16, width=8, num_heads=2)
    >>> angles(None, None, 5, config, LayerKind(None, "all"))[0].shape
    (1, 1, 5, 2)
    """
    if kind.rope is None:
        return None
    if config.rope_scaling is not None and config.rope_scaling.by_length and positions is None:
        positions = count(mask, length, segments)
    if positions is not None:
        return _rope.rotation(positions[:, None], config, kind)
    # XLA fuses what it can into every rotation of every head and layer. Cosines would be computed anew
    # in each, up to a sixth of an update; a table is looked up, be it by all of its numbers in turn.
    cos, sin = _rope.rotation(jnp.arange(length), config, kind)
    look_up = lambda table: jnp.take(table, count(mask, length, segments)[:, None], axis=0, mode="clip")
    return look_up(cos), look_up(sin)


def count(mask: jax.Array | None, length: int, segments: jax.Array | None = None) -> jax.Array:
    """Positions `[B or 1, T]`: the number of valid tokens before each, in its segment.

    >>> count(jnp.array([[False, True, True]]), 3).tolist(), count(None, 3).tolist()
    ([[-1, 0, 1]], [[0, 1, 2]])
    >>> count(None, 5, jnp.array([[7, 7, 2, 2, 2]])).tolist()
    [[0, 1, 0, 1, 2]]
    """
    if segments is not None:
        begins = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
        return jnp.arange(length)[None] - jax.lax.cummax(
            jnp.where(begins, jnp.arange(length)[None], 0), axis=1
        )
    return jnp.arange(length)[None] if mask is None else jnp.cumsum(mask, axis=1) - 1
