"""Sampling token by token, each handed out as soon as it is drawn: text that appears as one reads.

The loop over tokens and layers is the host's.  One layer is compiled and serves all, so that a
deep model answers after a second of compilation, where `sample` compiles every layer; a token
costs some tens of microseconds a layer more than there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from proxlm.lm import _cache, _forward, _layers, _sampling
from proxlm.lm._distribution import SamplingConfig


def stream(key, params, prompts, config, num_tokens, *, sampling=SamplingConfig()):
    """Continues prompts, and yields every token when it is drawn.

    With the same key these are the tokens of `sample`.  Nothing stops at a stop token: who
    consumes the generator stops.

    Args:
      key: a typed key; consumed.
      params: of `lm.init`; where several streams follow one another, unstack their blocks before,
        or each copies them.
      prompts: integers `[B, P]`, without padding.
      config: a `ModelConfig` with an LM head.
      num_tokens: how many to yield, at most.
      sampling: a `SamplingConfig`.

    Returns:
      A generator of int32 NumPy arrays `[B]`.

    Raises:
      ValueError: as `sample`, when called and not when first read.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> tokens = stream(jax.random.key(1), params, jnp.zeros((3, 2), int), config, 5)
    >>> [token.shape for token in tokens]
    [(3,), (3,), (3,), (3,), (3,)]
    """
    _sampling.check(prompts, None, num_tokens, config, sampling)
    return _tokens(key, params, prompts, config, num_tokens, sampling)


def _tokens(key, params, prompts, config, num_tokens, sampling):
    batch, length = prompts.shape
    uniform = jax.random.uniform(key, (num_tokens, batch))
    blocks, outside = _cache.blocks_of(params), {k: v for k, v in params.items() if k != "blocks"}
    x, layer_caches = _embed(outside, prompts, config), []
    for block in blocks:
        x, layer = _fill(block, x, config, (batch, length), length + num_tokens)
        layer_caches.append(layer)
    x = x.reshape(batch, length, -1)[:, -1]
    for i in range(num_tokens):
        token = _draw(outside, x, uniform[i], config, sampling)
        yield np.asarray(token)
        if i + 1 == num_tokens:
            return
        x = _embed(outside, token, config)
        for j, block in enumerate(blocks):
            x, layer_caches[j] = _extend(block, x, layer_caches[j], length + i, config)


@functools.partial(jax.jit, static_argnames="config")
def _embed(outside, tokens, config):
    return _forward.embed(outside, tokens, config)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fill(block, x, config, shape, total):
    """A layer on the prompt, and its cache with room for the response."""
    turn = _forward.angles(None, None, shape[1], config)
    x, layer = _cache.fill(block, x, config, shape, turn, _forward.visibility(None, shape[1]))
    return x, _cache.grow([layer], total)[0]


@functools.partial(jax.jit, static_argnames="config", donate_argnums=2)
def _extend(block, x, layer, column, config):
    """A layer on the next token, which stands in this column and is there for all to see."""
    turn = _forward.angles(jnp.full((1, 1), column), None, 1, config)
    visible = (jnp.arange(layer.key.shape[2]) <= column)[None]
    return _cache.extend(block, x, layer, column, turn, visible, config)


@functools.partial(jax.jit, static_argnames="config")
def _draw(outside, x, uniform, config, sampling):
    hidden = _layers.rms_norm(x, outside["norm"]["scale"], config.norm_epsilon)
    how = {"params": outside, "config": config, "sampling": sampling}
    return _sampling.draw_tokens(hidden, uniform, **how)[0]
