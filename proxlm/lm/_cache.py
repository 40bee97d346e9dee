"""The key-value cache: one pair of `[B, H_kv, S, d]` per layer, in a list, never stacked.

Heads stand before positions, so that reading it is one contiguous matrix product per head; a
stacked cache would be copied whole at every token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm.lm import _forward, _layers, _model


class LayerCache(NamedTuple):
    """Rotated keys and values of one layer, `[B, H_kv, S, d]`; columns not yet written are 0."""

    key: jax.Array
    value: jax.Array


def prefill(params, tokens, mask, config):
    """Runs a prompt and keeps its keys and values.

    Args:
      params: of `lm.init`.
      tokens: integers `[B, P]`, every row's last token in the last column.
      mask: bool `[B, P]`, or None when nothing is padding.
      config: a `ModelConfig`.

    Returns:
      `(hidden, cache)`: the normalised hidden state of the last column, `[B, D]`, and a list of
      `LayerCache` with S = P.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> hidden, cache = prefill(params, jnp.zeros((3, 5), int), None, config)
    >>> hidden.shape, len(cache), cache[0].key.shape
    ((3, 8), 2, (3, 2, 5, 4))
    """
    batch, length = tokens.shape
    visible = _forward.visibility(mask, length)
    turn = _forward.angles(None, mask, length, config)
    x = _forward.embed(params, tokens, config)
    cache = []
    for block in blocks_of(params):
        x, layer = fill(block, x, config, (batch, length), turn, visible)
        cache.append(layer)
    last = x.reshape(batch, length, -1)[:, -1]
    return _layers.rms_norm(last, params["norm"]["scale"], config.norm_epsilon), cache


def decode(params, tokens, cache, column, turn, visible, config):
    """Runs one more token of every row against the cache, and adds it there.

    Args:
      params: of `lm.init`; in a loop, unstack their blocks before it, or they are copied inside.
      tokens: integers `[B]`.
      cache: a list of `LayerCache`.
      column: scalar: where in the cache this token goes, the same for all rows.
      turn: rotary cosines and sines of its position, each `[B or 1, 1, 1, d/2]`.
      visible: bool `[B or 1, S]`: the columns this token may see, its own included.
      config: a `ModelConfig`.

    Returns:
      `(hidden, cache)`, hidden `[B, D]`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> _, cache = prefill(params, jnp.zeros((3, 5), int), None, config)
    >>> turn = _forward.angles(jnp.array([[5]]), None, 1, config)
    >>> args = grow(cache, 8), 5, turn, jnp.arange(8)[None] <= 5
    >>> decode(params, jnp.ones(3, int), *args, config)[0].shape
    (3, 8)
    """
    x = _forward.embed(params, tokens, config)
    new_cache = []
    for block, old in zip(blocks_of(params), cache, strict=True):
        x, layer = extend(block, x, old, column, turn, visible, config)
        new_cache.append(layer)
    return _layers.rms_norm(x, params["norm"]["scale"], config.norm_epsilon), new_cache


def fill(block, x, config, shape, turn, visible):
    """One layer of `prefill`: the residual stream `[B·P, D]` after it, and its cache.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> how = _forward.angles(None, None, 5, config), _forward.visibility(None, 5)
    >>> x, layer = fill(block, jnp.ones((15, 8)), config, (3, 5), *how)
    >>> x.shape, layer.key.shape
    ((15, 8), (3, 2, 5, 4))
    """
    query, key, value = _forward.project(block, x, config, shape, turn)
    x = _forward.finish(block, x, query, key, value, visible, config)
    return x, LayerCache(key, value)


def extend(block, x, layer, column, turn, visible, config):
    """One layer of `decode`: the residual stream `[B, D]` after it, and its cache.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> empty = LayerCache(jnp.zeros((3, 2, 5, 4)), jnp.zeros((3, 2, 5, 4)))
    >>> how = _forward.angles(jnp.array([[0]]), None, 1, config), jnp.arange(5)[None] <= 0
    >>> extend(block, jnp.ones((3, 8)), empty, 0, *how, config)[0].shape
    (3, 8)
    """
    batch, visible = x.shape[0], visible[:, None, None, :]
    write = lambda buffer, new: jax.lax.dynamic_update_slice(buffer, new, (0, 0, column, 0))
    query, key, value = _forward.project(block, x, config, (batch, 1), turn)
    layer = LayerCache(write(layer.key, key), write(layer.value, value))
    return _forward.finish(block, x, query, *layer, visible, config), layer


def grow(cache, length):
    """Appends empty columns until S = `length`.

    >>> cache = [LayerCache(jnp.ones((1, 2, 3, 4)), jnp.ones((1, 2, 3, 4)))]
    >>> grow(cache, 7)[0].value.shape
    (1, 2, 7, 4)
    """
    extend = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
    return jax.tree.map(extend, cache)


def turns(prompt_mask, length, num_tokens, config):
    """Rotary cosines and sines of the positions after a prompt, each `[R, B or 1, 1, 1, d/2]`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, width=8, num_heads=2)
    >>> turns(None, 5, 3, config)[0].shape
    (3, 1, 1, 1, 2)
    """
    before = jnp.array([length]) if prompt_mask is None else jnp.sum(prompt_mask, axis=1)
    positions = before[None] + jnp.arange(num_tokens)[:, None]
    return _layers.rotation(positions[:, :, None, None], config.head_width, config.rope_theta)


def valid_columns(prompt_mask, length, total):
    """Bool `[B or 1, S]`: the prompt's valid columns and all of the response's.

    >>> valid_columns(jnp.array([[False, True]]), 2, 4).tolist()
    [[False, True, True, True]]
    """
    if prompt_mask is None:
        return jnp.ones((1, total), bool)
    return jnp.pad(prompt_mask, ((0, 0), (0, total - length)), constant_values=True)


def blocks_of(params):
    """The layers as a list, stacked or not.

    >>> len(blocks_of({"blocks": {"w": jnp.zeros((3, 2))}}))
    3
    """
    blocks = params["blocks"]
    return blocks if isinstance(blocks, list) else _model.unstack(blocks)
