"""The key-value cache: a pair of `[B, H_kv, S, d]` for each layer, in a list or stacked `[L, ...]`.

Heads stand before positions, so that reading it is one contiguous matrix product per head. Where
the layers are a list, or all of them one step of the layer loop, the cache is a list and grows. A
deep model's layers are scanned, so that they compile once and are not copied: its cache is stacked
and has all of its columns from the start, of which a step reads the first.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm.lm import _attention, _block, _config, _forward, _layer_kernels, _places, _segments, _views
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._places import Places
from proxlm.lm._views import View


class LayerCache(NamedTuple):
    """Rotated keys and values of one layer, `[B, H_kv, S, d]`, or of all; columns not yet written are 0."""

    key: jax.Array
    value: jax.Array


Cache = list[LayerCache] | LayerCache
"""A list of layers, or all of them stacked."""

T = TypeVar("T")


def prefill(
    params: Params, tokens: jax.Array, mask: jax.Array | None, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """Runs a prompt `[B, P]`, padded on the left; gives the last column's hidden states and the cache.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> filled = jax.jit(prefill, static_argnames="config")
    >>> hidden, cache = filled(params, jnp.zeros((3, 5), int), None, config=config)
    >>> hidden.shape, len(cache), cache[0].key.shape
    ((3, 8), 2, (3, 2, 5, 4))
    """
    batch, length = tokens.shape
    step = jax.jit(lambda x, block, view: fill(block, x, config, (batch, length), view))  # traced once
    views, index = _views.of_layers(None, mask, length, config)
    x = _forward.embed(params, tokens, config, _views.count(mask, length))
    if is_scanned(params, config):
        x, cache = _forward.scan_layers(step, params, x, views, config)
    else:
        cache = []
        for block, kind in zip(blocks_of(params), index, strict=True):
            x, layer = step(x, block, views[kind])
            cache.append(layer)
    last = x.reshape(batch, length, -1)[:, -1]
    return _forward.final_norm(params, last, config), cache


def decode(
    params: Params,
    tokens: jax.Array,
    cache: Cache,
    column: ArrayLike,
    place: Places,
    valid: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, Cache]:
    """Runs one more token of every row, `[B]`, against the cache, and adds it there.

    Args:
      params: of `lm.init`; in a loop that does not scan them, unstack their blocks before it, or
        they are copied inside.
      column: scalar: where in the cache this token goes, the same for all rows.
      valid: bool `[B or 1, S]`: the columns that hold tokens, or will; a stacked cache may have more.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> filled = jax.jit(prefill, static_argnames="config")
    >>> _, cache = filled(params, jnp.zeros((3, 5), int), None, config=config)
    >>> place = _places.at_step(_places.places(None, 5, 3, config), 0)
    >>> args = grow(cache, 8), 5, place, jnp.ones((1, 8), bool), config
    >>> jax.eval_shape(lambda: decode(params, jnp.ones(3, int), *args)[0]).shape
    (3, 8)
    """
    x = _forward.embed(params, tokens, config, place.positions)
    kinds, _ = _config.layer_kinds(config)
    views = [
        View(_places.visible_columns(valid, column, kind.window), turn)
        for kind, turn in zip(kinds, place.turns, strict=True)
    ]
    x, cache = _through_layers(params, x, cache, column, views, config)
    return _forward.final_norm(params, x, config), cache


def append(
    params: Params, tokens: jax.Array, cache: Cache, mask: jax.Array, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """Runs K more columns of every row, `[B, K]`, at once; gives the last hidden states and the cache.

    Args:
      cache: of S columns, of which these are the last.
      mask: bool `[B, S]`, False where a column holds no token.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> filled = jax.jit(prefill, static_argnames="config")
    >>> _, cache = filled(params, jnp.zeros((3, 5), int), None, config=config)
    >>> tokens, mask = jnp.zeros((3, 2), int), jnp.ones((3, 7), bool)
    >>> jax.eval_shape(lambda: append(params, tokens, grow(cache, 7), mask, config)[0]).shape
    (3, 8)
    """
    column = mask.shape[1] - tokens.shape[1]
    own = lambda x: x[:, :, column:]
    views, _ = _views.of_layers(None, mask, mask.shape[1], config)
    views = [View(own(view.visible), jax.tree.map(own, view.turn)) for view in views]
    x = _forward.embed(params, tokens, config, _views.count(mask, mask.shape[1])[:, column:])
    x, cache = _through_layers(params, x, cache, column, views, config)
    return _forward.final_norm(params, x.reshape(*tokens.shape, -1)[:, -1], config), cache


def _through_layers(params, x, cache, column, views, config):
    """All layers on the columns from `column` on, `[B·K, D]`, which are added to the cache."""
    if isinstance(cache, LayerCache):
        return _extend_all(params["blocks"], x, cache, column, views, config)
    new_cache, step = [], jax.jit(functools.partial(extend, config=config))
    for block, old, kind in zip(blocks_of(params), cache, _config.layer_kinds(config)[1], strict=True):
        x, layer = step(block, x, old, column, views[kind])
        new_cache.append(layer)
    return x, new_cache


def _extend_all(blocks, x, cache, column, views, config):
    """All layers of `decode` or `append` in a loop, the cache in its carry, where it is written in place."""
    view_of = _views.picker(views, config)
    batch, columns = cache.key.shape[1], views[0].visible.shape[-1]
    shape = (1, *cache.key.shape[1:3], columns, cache.key.shape[-1])

    def body(part, first, layer, carry):
        x, cache = carry
        block, view = _layer_kernels.of_layer(part, layer - first), view_of(layer)
        query, key, value = _block.project(block, x, config, (batch, len(x) // batch), view.turn)
        write = lambda buffer, new: jax.lax.dynamic_update_slice(buffer, new[None], (layer, 0, 0, column, 0))
        cache = LayerCache(write(cache.key, key), write(cache.value, value))
        read = lambda buffer: jax.lax.dynamic_slice(buffer, (layer, 0, 0, 0, 0), shape)[0]
        return _block.finish(block, x, query, read(cache.key), read(cache.value), view.visible, config), cache

    carry, first, unroll = (x, cache), 0, _config.layers_in_a_step(config)
    for part in _segments.parts_of(blocks):
        last = first + _segments.depth(part)
        step = functools.partial(body, part, first)
        carry = jax.lax.fori_loop(first, last, step, carry, unroll=min(unroll, last - first))
        first = last
    return carry


def fill(
    block: Params, x: jax.Array, config: ModelConfig, shape: tuple[int, int], view: View
) -> tuple[jax.Array, LayerCache]:
    """One layer of `prefill`: the residual stream `[B·P, D]` after it, and its cache.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> views, _ = _views.of_layers(None, None, 5, config)
    >>> x, layer = jax.eval_shape(lambda: fill(block, jnp.ones((15, 8)), config, (3, 5), views[0]))
    >>> x.shape, layer.key.shape
    ((15, 8), (3, 2, 5, 4))
    """
    query, key, value = _block.project(block, x, config, shape, view.turn)
    x = _block.finish(block, x, query, key, value, view.visible, config, _attention.attend_by_blocks)
    return x, LayerCache(key, value)


def extend(
    block: Params, x: jax.Array, layer: LayerCache, column: ArrayLike, view: View, config: ModelConfig
) -> tuple[jax.Array, LayerCache]:
    """One layer of `decode` or `append`: the residual stream `[B·K, D]` after it, and its cache.

    The cache of one row may come without the axis of rows: XLA writes it in place, where it copies
    `[1, H_kv, S, d]` at every token.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> empty = LayerCache(jnp.zeros((3, 2, 5, 4)), jnp.zeros((3, 2, 5, 4)))
    >>> view = View(_places.visible_columns(jnp.ones((1, 5), bool), 0), None)
    >>> jax.eval_shape(lambda: extend(block, jnp.ones((3, 8)), empty, 0, view, config)[0]).shape
    (3, 8)
    """
    batch = len(with_rows(layer).key)
    query, key, value = _block.project(block, x, config, (batch, len(x) // batch), view.turn)
    start = (0, 0, column, 0)[-layer.key.ndim :]
    write = lambda buffer, new: jax.lax.dynamic_update_slice(
        buffer, new.reshape(new.shape[-buffer.ndim :]), start
    )
    layer = LayerCache(write(layer.key, key), write(layer.value, value))
    return _block.finish(block, x, query, *with_rows(layer), view.visible, config), layer


def with_rows(cache: T) -> T:
    """The cache with an axis of rows, of which there is one where it has none.

    >>> with_rows(LayerCache(jnp.zeros((2, 4, 3)), jnp.zeros((1, 2, 4, 3)))).key.shape
    (1, 2, 4, 3)
    """
    return jax.tree.map(lambda x: x[None] if x.ndim == 3 else x, cache)


def grow(cache: Any, length: int) -> Any:
    """Appends empty columns to a list of layers, or to all of them stacked, until S = `length`.

    >>> cache = [LayerCache(jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 3, 4)))]
    >>> grow(cache, 7)[0].value.shape
    (1, 2, 7, 4)
    """
    extend = lambda x: jnp.pad(x, (*((0, 0),) * (x.ndim - 2), (0, length - x.shape[-2]), (0, 0)))
    return jax.tree.map(extend, cache)


def is_scanned(params: Params, config: ModelConfig) -> bool:
    """Whether the layers are scanned: stacked, and more of them than the layer loop unrolls.

    >>> is_scanned({"blocks": {}}, ModelConfig(vocab_size=16, num_layers=30))
    True
    """
    return isinstance(params["blocks"], Mapping) and _config.layers_in_a_step(config) < config.num_layers


def blocks_of(params: Params) -> Sequence[Params]:
    """The layers as a list, stacked or not.

    >>> len(blocks_of({"blocks": {"w": jnp.zeros((3, 2))}}))
    3
    """
    blocks = params["blocks"]
    if isinstance(blocks, list | tuple):
        return blocks
    return [layer for part in _segments.parts_of(blocks) for layer in _segments.layers_of(part)]
