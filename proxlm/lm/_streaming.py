"""Sampling token by token, each handed out as soon as it is drawn: text that appears as one reads.

The loop over tokens and layers is the host's. One layer is compiled and serves all of its kind, so
that a deep model answers after a second of compilation, where `sample` compiles every layer; a
token costs some tens of microseconds a layer more than there.
"""

import functools
from collections.abc import Callable, Collection, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm._decoding import config as decoding
from proxlm._decoding import history, rows
from proxlm._decoding import stop_strings as strings
from proxlm._decoding.config import SamplingConfig
from proxlm.lm import _cache, _config, _forward, _places, _sampling, _token_loop, _views
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._views import View


@_validation.typed
def stream(
    key: jax.Array,
    params: Params,
    prompts: jax.Array,
    config: ModelConfig,
    num_tokens: int,
    *,
    sampling: SamplingConfig = SamplingConfig(),
    stop_strings: str | Collection[str] | None = None,
    decode: Callable[[list[int]], str] | None = None,
) -> Iterator[np.ndarray]:
    """Continues prompts, and yields every token `[B]` when it is drawn.

    With the same key these are the tokens of `sample`: 0 in rows that have ended, and when all have, the
    generator ends. Errors are those of `sample`, raised when called and not when first read.

    Args:
      key: a typed key, or `[B]` of them, as in `sample`; consumed.
      params: of `lm.init`; where several streams follow one another, unstack their blocks before,
        or each copies them.
      prompts: integers `[B, P]`, without padding.
      num_tokens: how many to yield, at most.
      stop_strings: one, or several, any of which ends a row, as a stop token does, at the token that
        completes it; None: none.
      decode: token ids of a response -> text, where there are stop strings.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> tokens = stream(jax.random.key(1), params, jnp.zeros((3, 2), int), config, 5)
    >>> [token.shape for token in tokens]
    [(3,), (3,), (3,), (3,), (3,)]
    """
    prompts, _ = _sampling.check(key, params, prompts, None, num_tokens, config, sampling)
    stops = ()
    if stop_strings is not None:
        stops = strings.check("stream", stop_strings)
        _validation.a_function(
            "stream", "It gives the text that stop_strings are looked for in.", decode=decode
        )
    elif decode is not None:
        raise _validation.invalid("decode", decode, "None without stop_strings", "", "stream")
    tokens = _tokens(key, params, prompts, config, num_tokens, sampling)
    return _until_ended(tokens, len(prompts), sampling, stops, decode)


def _until_ended(tokens, batch, sampling, stops, decode):
    """The tokens until all rows have ended, 0 in those that have."""
    said, ended = [[] for _ in range(batch)], np.zeros(batch, bool)
    for token in tokens:
        yield (token := np.where(ended, 0, token))
        ended |= np.isin(token, decoding.stop_tokens(sampling)) & ~ended
        for row, ids in enumerate(said) if stops else ():
            ids.append(int(token[row]))
            ended[row] = ended[row] or strings.says_one(ids, decode, stops)
        if ended.all():
            return


def _tokens(key, params, prompts, config, num_tokens, sampling):
    batch, length = prompts.shape
    uniform = rows.uniforms(key, num_tokens, batch)
    blocks, outside = _cache.blocks_of(params), {k: v for k, v in params.items() if k != "blocks"}
    x, layer_caches = _embed(outside, prompts, jnp.arange(length)[None], config), []
    kinds, index = _config.layer_kinds(config)
    layers = [(block, kinds[kind]) for block, kind in zip(blocks, index, strict=True)]
    for block, kind in layers:
        x, layer = _fill(block, x, config, (batch, length), length + num_tokens, kind)
        layer_caches.append(layer)
    x = x.reshape(batch, length, -1)[:, -1]
    seen = history.at_start(prompts, None, config.vocab_size, sampling)
    for i in range(num_tokens):
        token, seen = _draw(outside, x, uniform[i], config, sampling, history.History(seen, jnp.int32(i)))
        yield np.asarray(token)
        if i + 1 == num_tokens:
            return
        x = _embed(outside, token, jnp.array([length + i]), config)
        for j, (block, kind) in enumerate(layers):
            x, layer_caches[j] = _extend(block, x, layer_caches[j], length + i, config, kind)


@functools.partial(jax.jit, static_argnames="config")
def _embed(outside, tokens, positions, config):
    return _forward.embed(outside, tokens, config, positions)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _fill(block, x, config, shape, total, kind):
    """A layer on the prompt, and its cache with columns for the response."""
    visible = _views.visibility(None, shape[1], kind.window)
    view = View(visible, _views.angles(None, None, shape[1], config, kind))
    x, layer = _cache.fill(block, x, config, shape, view)
    return x, _cache.grow([layer], total)[0]


@functools.partial(jax.jit, static_argnames=("config", "kind"), donate_argnums=2)
def _extend(block, x, layer, column, config, kind):
    """A layer on the next token, which stands in this column and sees those before it."""
    visible = _places.visible_columns(jnp.ones((1, layer.key.shape[2]), bool), column, kind.window)
    turn = _views.angles(jnp.full((1, 1), column), None, 1, config, kind)
    return _cache.extend(block, x, layer, column, View(visible, turn), config)


@functools.partial(jax.jit, static_argnames="config")
def _draw(outside, x, uniform, config, sampling, past):
    hidden = _forward.final_norm(outside, x, config)
    how = {"params": outside, "config": config, "sampling": sampling, "history": past}
    token = _token_loop.draw_tokens(hidden, uniform, **how)[0]
    return token, history.add(past.seen, token)
