"""The loop that draws tokens against a key-value cache: from prompts, or on from rows that have one."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm._decoding import config as decoding
from proxlm._decoding import distribution, history, rows
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Samples
from proxlm.lm import _adapters, _cache, _forward, _places
from proxlm.lm._config import ModelConfig, Params


class _Loop(NamedTuple):
    """The state of decoding between two tokens."""

    cache: _cache.Cache
    token: jax.Array  # [B], the last one sampled
    done: jax.Array  # [B]
    tokens: jax.Array  # [R, B]
    log_probs: jax.Array  # [R, B]
    mask: jax.Array  # [R, B]
    seen: jax.Array | None  # [B, V], for a penalty on repetition


def unstacked(params: Params, config: ModelConfig) -> Params:
    """The params as `_adapters.for_decoding` has them, with a list of layers unless they are scanned.

    >>> config = ModelConfig(vocab_size=16, num_layers=3)
    >>> len(unstacked({"blocks": {"w": jnp.zeros((3, 2))}}, config)["blocks"])
    3
    """
    params = _adapters.for_decoding(params, config)
    if _cache.is_scanned(params, config):
        return params
    # here and not in the loop, which would copy every layer at every token
    return {**params, "blocks": _cache.blocks_of(params)}


def ready(
    key: jax.Array,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array | None,
    config: ModelConfig,
    num_tokens: int,
    group_size: int,
) -> tuple[Params, tuple[jax.Array, jax.Array | None, jax.Array]]:
    """The params and rows of `start`, of checked arguments: prompts aligned, and one number a token and row.

    >>> config, tokens = ModelConfig(vocab_size=16, num_layers=1), jnp.zeros((2, 3), int)
    >>> params = {"blocks": {"w": jnp.zeros((1, 2))}}
    >>> ready(jax.random.key(0), params, tokens, None, config, 4, group_size=5)[1][2].shape
    (4, 10)
    """
    if prompt_mask is not None:
        prompts, prompt_mask = rows.align(prompts, prompt_mask)
    uniform = rows.uniforms(key, num_tokens, len(prompts) * group_size)
    return unstacked(params, config), (prompts, prompt_mask, uniform)


def start(
    prompts: jax.Array,
    prompt_mask: jax.Array | None,
    uniform: jax.Array,
    *,
    params: Params,
    config: ModelConfig,
    group_size: int,
    **how: Any,
) -> tuple[Samples, _cache.Cache]:
    """Samples of aligned prompts by uniform numbers `[R, B]`, and the cache, all but the last column in it.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> how = {"params": lm.init(jax.random.key(0), config), "config": config, "sampling": SamplingConfig()}
    >>> rows = jnp.zeros((2, 3), int), None, jnp.zeros((4, 2))
    >>> start(*rows, group_size=1, segment=16, early_exit=False, **how)[0].tokens.shape
    (2, 7)
    """
    hidden, cache = _cache.prefill(params, prompts, prompt_mask, config)
    if group_size > 1:
        hidden, prompts, prompt_mask, cache = _repeat((hidden, prompts, prompt_mask), cache, group_size)
    nobody = jnp.zeros_like(hidden[:, 0] + uniform[0], bool)
    return go_on(hidden, cache, prompts, prompt_mask, nobody, uniform, params=params, config=config, **how)


def go_on(
    hidden: jax.Array,
    cache: _cache.Cache,
    tokens: jax.Array,
    mask: jax.Array | None,
    done: jax.Array,
    uniform: jax.Array,
    *,
    segment: int,
    early_exit: bool,
    params: Params,
    config: ModelConfig,
    sampling: SamplingConfig,
) -> tuple[Samples, _cache.Cache]:
    """As `start`, of rows `[B, T]` with their cache and last hidden states; those that are done add nothing.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params, rows = lm.init(jax.random.key(0), config), jnp.zeros((2, 3), int)
    >>> how = {"params": params, "config": config, "sampling": SamplingConfig(), "early_exit": False}
    >>> prefilled, done = _cache.prefill(params, rows, None, config), jnp.array([True, False])
    >>> samples, _ = go_on(*prefilled, rows, None, done, jnp.zeros((4, 2)), segment=16, **how)
    >>> samples.response_mask[:, 0].tolist()
    [False, True]
    """
    num_tokens, length = len(uniform), tokens.shape[1]
    if isinstance(cache, _cache.LayerCache):
        cache = _cache.grow(cache, length + num_tokens)
    if isinstance(cache, list) and len(tokens) == 1:  # or XLA copies it at every token
        cache = jax.tree.map(lambda x: x[0], cache)
    draw = functools.partial(draw_tokens, params=params, config=config, sampling=sampling)
    seen = history.at_start(tokens, mask, config.vocab_size, sampling)
    state = _first(draw, hidden, cache, done, uniform, seen, sampling)
    places, start = _places.places(mask, length, num_tokens, config), 1
    for end in _segments(num_tokens, segment):
        if isinstance(state.cache, list):
            state = state._replace(cache=_cache.grow(state.cache, length + end))
        step = functools.partial(
            _step,
            uniform=uniform,
            valid=_places.valid_columns(mask, length, length + end),
            draw=draw,
            places=places,
            first=length,
            params=params,
            config=config,
            sampling=sampling,
        )
        state = _loop(step, start, end, state, early_exit)
        start = end
    return _collect(state, tokens, mask), _cache.with_rows(state.cache)


def _first(draw, hidden, cache, done, uniform, seen, sampling):
    """The loop's state with the first token drawn."""
    zeros = functools.partial(jnp.zeros, uniform.shape)
    state = _Loop(cache, jnp.zeros(len(done), jnp.int32), done, zeros(jnp.int32), zeros(), zeros(bool), seen)
    i = jnp.int32(0)
    return _put(i, state, draw(hidden, uniform[0], history=history.History(seen, i)), sampling)


def _repeat(rows, cache, group_size):
    """Rows of arrays and of the cache, each group_size times."""
    again = lambda x, axis: jnp.repeat(x, group_size, axis=axis)
    return *jax.tree.map(lambda x: again(x, 0), rows), jax.tree.map(lambda x: again(x, x.ndim - 4), cache)


def _step(i, state, *, uniform, valid, draw, places, first, params, config, sampling):
    """Feeds the last token, i − 1, and draws token i."""
    column, place = first + i - 1, _places.at_step(places, i - 1)
    hidden, cache = _cache.decode(params, state.token, state.cache, column, place, valid, config)
    state = state._replace(cache=cache)
    return _put(i, state, draw(hidden, uniform[i], history=history.History(state.seen, i)), sampling)


def _put(i, state, drawn, sampling):
    """The state with token i; rows that are done add nothing."""
    token, log_prob = drawn
    token = jnp.where(state.done, 0, token)
    put = lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, i, 0)
    return _Loop(
        state.cache,
        token,
        state.done | decoding.is_stop(token, sampling),
        put(state.tokens, token),
        put(state.log_probs, jnp.where(state.done, 0.0, log_prob)),
        put(state.mask, ~state.done),
        history.add(state.seen, token),
    )


def draw_tokens(
    hidden: jax.Array,
    uniform: jax.Array,
    *,
    params: Params,
    config: ModelConfig,
    sampling: SamplingConfig,
    history: history.History | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Samples from the head's distribution: tokens and their log-probabilities, `[B]`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params, greedy = lm.init(jax.random.key(0), config), SamplingConfig(greedy=True)
    >>> how = {"params": params, "config": config, "sampling": greedy}
    >>> draw_tokens(params["embedding"]["kernel"][3:4], jnp.zeros(1), **how)[0].tolist()
    [3]
    """
    return distribution.draw(_forward.logits(params, hidden, config), uniform, sampling, history)


def _loop(step, start, end, state, early_exit):
    """Runs the steps of one segment; a plain loop is what vmap can batch."""
    if not early_exit:
        return jax.lax.fori_loop(start, end, step, state)
    goes_on = lambda carry: (carry[0] < end) & ~jnp.all(carry[1].done)
    advance = lambda carry: (carry[0] + 1, step(*carry))
    return jax.lax.while_loop(goes_on, advance, (start, state))[1]


def _segments(num_tokens, segment):
    """Ends of the segments, in response tokens: multiples of one size, at most four."""
    size = max(segment, -(-num_tokens // 4))
    return [*range(size, num_tokens, size), num_tokens]


def _collect(state, prompts, prompt_mask):
    """Puts prompts and responses into one row each."""
    response_mask = state.mask.T
    prompt_mask = jnp.ones(prompts.shape, bool) if prompt_mask is None else prompt_mask
    return Samples(
        tokens=jnp.concatenate([prompts.astype(jnp.int32), state.tokens.T], axis=1),
        mask=jnp.concatenate([prompt_mask, response_mask], axis=1),
        log_probs=state.log_probs.T,
        response_mask=response_mask,
        ended=state.done,
    )
