"""Beam search inside jit: the likeliest continuations that a search of fixed width finds."""

import functools
import math
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm import _validation, sharding
from proxlm._decoding import config as decoding
from proxlm._decoding import rows
from proxlm._decoding.config import SamplingConfig
from proxlm.lm import _adapters, _cache, _forward, _places, _sampling
from proxlm.lm._config import ModelConfig, Params


class Beams(NamedTuple):
    """The continuations of every prompt, best first.

    Attributes:
      tokens: int32 `[B, W, R]`; 0 after the end.
      mask: bool `[B, W, R]`: up to the stop token, with it.
      log_probs: float32 `[B, W]`, nats: of the continuation, its stop token included; −∞ where
        there are fewer continuations than beams.
      ended: bool `[B, W]`: the continuation has a stop token.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    ended: jax.Array


@sharding.automatic
def beam_search(
    params: Params,
    prompts: jax.Array,
    config: ModelConfig,
    num_tokens: int,
    *,
    width: int,
    prompt_mask: jax.Array | None = None,
    stop_token: int | Collection[int] | None = None,
    length_penalty: float | jax.Array = 0.0,
) -> Beams:
    """Searches for the likeliest continuations, keeping `width` of them at every token.

    At each token every beam is continued in V ways, and of these W·V the best W by

        s(y) = log p(y | prompt) / |y|^α

    go on. A beam that has its stop token stays as it is and competes with the others; it can
    still be crowded out. With α = 0 longer continuations can only be less likely, so search
    favours short ones the more the wider it is; α = 1 compares nats per token. One beam is greedy
    decoding, and V^(R−1) beams find the maximum over all continuations.

    Args:
      num_tokens: R, the length of the longest continuation.
      width: W, the number of beams (static).
      stop_token: the token, or a collection of tokens, any of which ends a continuation and is its
        last; or None (static).
      length_penalty: α of s; may be traced.

    Returns:
      `Beams`, by descending s. Source: Lowerre 1976; for α, Wu et al. 2016 with |y|^α for theirs.

    Raises:
      ValueError: the width is not an integer ≥ 1, or as `sample`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> search = jax.jit(lambda params, prompts: beam_search(params, prompts, config, 5, width=4))
    >>> beams = search(params, jnp.zeros((2, 3), int))
    >>> beams.tokens.shape, bool(jnp.all(beams.log_probs[:, 0] >= beams.log_probs[:, 3]))
    ((2, 4, 5), True)
    """
    stops, any_key = SamplingConfig(stop_token=stop_token), jax.random.key(0)
    prompts, prompt_mask = _sampling.check(any_key, params, prompts, prompt_mask, num_tokens, config, stops)
    _validation.to_int(1, "beam_search", width=width)
    _validation.at_least(-math.inf, "beam_search", length_penalty=length_penalty)
    batch, length = prompts.shape
    if prompt_mask is not None:
        prompts, prompt_mask = rows.align(prompts, prompt_mask)
    params = {**(own := _adapters.for_decoding(params, config)), "blocks": _cache.blocks_of(own)}
    hidden, cache = _cache.prefill(params, prompts, prompt_mask, config)
    many = lambda x: jnp.repeat(x, width, axis=0)
    beams = Beams(
        tokens=jnp.zeros((batch, width, num_tokens), jnp.int32),
        mask=jnp.zeros((batch, width, num_tokens), bool),
        # All beams begin alike, so that the first token is to come from one of them alone.
        log_probs=jnp.full((batch, width), -jnp.inf).at[:, 0].set(0.0),
        ended=jnp.zeros((batch, width), bool),
    )
    select = functools.partial(_select, stops=stops, length_penalty=length_penalty)
    logits = functools.partial(_forward.logits, params, config=config)
    beams, _ = select(0, beams, logits(many(hidden)))
    many_mask = None if prompt_mask is None else many(prompt_mask)
    step = functools.partial(
        _step,
        params=params,
        config=config,
        length=length,
        select=select,
        logits=logits,
        places=_places.places(many_mask, length, num_tokens, config),
        valid=_places.valid_columns(many_mask, length, length + num_tokens),
    )
    cache = jax.tree.map(many, _cache.grow(cache, length + num_tokens))
    beams, _ = jax.lax.fori_loop(1, num_tokens, step, (beams, cache))
    return beams


def _step(i, carry, *, params, config, length, select, logits, places, valid):
    """Feeds token i − 1 of every beam, and chooses the beams that have a token i."""
    beams, cache = carry
    batch, width, _ = beams.tokens.shape
    take = lambda x, at: jax.lax.dynamic_index_in_dim(x, at, axis=x.ndim - 1, keepdims=False)
    token = take(beams.tokens, i - 1).reshape(-1)
    column, place = length + i - 1, _places.at_step(places, i - 1)
    hidden, cache = _cache.decode(params, token, cache, column, place, valid, config)
    beams, parent = select(i, beams, logits(hidden))
    rows = (jnp.arange(batch)[:, None] * width + parent).reshape(-1)
    return beams, jax.tree.map(lambda x: x[rows], cache)


def _select(i, beams, logits, *, stops, length_penalty):
    """The W best of the beams with one more token, and which beam each continues `[B, W]`."""
    batch, width, _ = beams.tokens.shape
    steps = jax.nn.log_softmax(logits, axis=-1).reshape(batch, width, -1)
    # A beam that has ended goes on in one way: as it is.
    nothing = jnp.where(jnp.arange(steps.shape[2]) == 0, 0.0, -jnp.inf)[None, None]
    steps = jnp.where(beams.ended[:, :, None], nothing, steps)
    log_probs = beams.log_probs[:, :, None] + steps
    size = jnp.sum(beams.mask, axis=2) + ~beams.ended
    scores = log_probs / size[:, :, None].astype(jnp.float32) ** length_penalty
    _, best = jax.lax.top_k(scores.reshape(batch, -1), width)
    parent, token = jnp.divmod(best, steps.shape[2])
    keep = lambda x: jnp.take_along_axis(x, parent.reshape(batch, width, *[1] * (x.ndim - 2)), 1)
    ended = keep(beams.ended)
    put = lambda x, new: jax.lax.dynamic_update_index_in_dim(keep(x), new, i, 2)
    return Beams(
        tokens=put(beams.tokens, jnp.where(ended, 0, token)),
        mask=put(beams.mask, ~ended),
        log_probs=jnp.take_along_axis(log_probs.reshape(batch, -1), best, axis=1),
        ended=ended | decoding.is_stop(token, stops),
    ), parent
