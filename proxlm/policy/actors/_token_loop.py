"""Sampling, token after token, by a function that gives logits, with or without a cache and turns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm._decoding import config as decoding
from proxlm._decoding import distribution, history, rows
from proxlm._decoding import turns as turns_lib
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Samples, Turns

__all__ = ["Model", "logits_and_values", "refuse", "sampler", "without_holes"]


class Model(NamedTuple):
    """The functions of `actor_from_logits` that sampling asks."""

    logits: Callable[..., Any]
    cache_fns: tuple[Callable[..., Any], Any] | None  # init_cache and step
    num_tokens: int


class _Rollout(NamedTuple):
    """Samples so far, and the rows `[B]` to which a tool may answer."""

    samples: Samples
    alive: jax.Array


class _Loop(NamedTuple):
    """The state of decoding between two tokens; N columns of this turn stand after the others."""

    tokens: jax.Array  # [B, T]
    mask: jax.Array  # [B, T]
    log_probs: jax.Array  # [B, N]
    done: jax.Array  # [B]
    seen: jax.Array | None  # [B, V], for a penalty on repetition
    cache: Any


def without_holes(fn: Callable[..., Any], when: bool = True) -> Callable[..., Any]:
    """A function of rows with holes, by one of `(params, tokens, mask)` for rows padded on the left.

    >>> mask = jnp.array([[True, False, True]])
    >>> without_holes(lambda params, tokens, mask: tokens)(None, jnp.array([[5, 0, 7]]), mask).tolist()
    [[5, 0, 7]]
    """
    if not when:
        return fn

    def moved(params, tokens, mask):
        back = jnp.argsort(jnp.argsort(mask, axis=1, stable=True), axis=1)
        place = lambda x: back.reshape(*back.shape, *[1] * (x.ndim - 2))
        put = lambda x: jnp.take_along_axis(x, place(x), axis=1) if x.shape[:2] == tokens.shape else x
        return jax.tree.map(put, fn(params, *rows.align(tokens, mask)))

    return moved


def sampler(model: Model, sampling: SamplingConfig, turns: Turns | None) -> Callable[..., Samples]:
    """`sample(key, params, prompts, settings=sampling)` of an actor."""

    def start(key, params, prompts, settings):
        tokens = jnp.asarray(prompts.tokens, jnp.int32)
        mask = jnp.ones_like(tokens, bool) if prompts.mask is None else jnp.asarray(prompts.mask)
        if prompts.mask is not None:
            tokens, mask = rows.align(jnp.where(mask, tokens, 0), mask)
        done = jnp.zeros_like(tokens[:, 0], bool)
        return _Rollout(_turn(key, params, tokens, mask, done, model, settings), ~done)

    def go_on(key, rollout, outputs, mask, params, settings):
        tokens, mask, alive = turns_lib.extended(rollout.samples, rollout.alive, outputs, mask)
        new = _turn(key, params, tokens, mask, ~alive, model, settings)
        return _Rollout(turns_lib.joined(rollout.samples, alive, new), alive)

    own_program: Any = jax.jit if turns is not None and turns.on_host else lambda fn: fn
    first_turn, next_turn = own_program(start), own_program(go_on)

    def sample(key: jax.Array, params: Any, prompts: Any, settings: SamplingConfig = sampling) -> Samples:
        if turns is None:
            return first_turn(key, params, prompts, settings).samples
        first = lambda key: first_turn(key, params, prompts, settings)
        more = lambda *so_far: next_turn(*so_far, params, settings)
        return turns_lib.play(key, turns, first, more, model.num_tokens).samples

    return sample


def _turn(key, params, tokens, mask, done, model, sampling):
    """Draws token after token into a buffer of all columns, by the cache where there is one."""
    logits, cache_fns, num_tokens = model
    batch, length = tokens.shape
    uniform = rows.uniforms(key, num_tokens, batch)
    grown = lambda x: jnp.pad(x, ((0, 0), (0, num_tokens)))
    seen = None
    if sampling.repetition_penalty is not None:
        found = jax.eval_shape(logits, params, grown(tokens), grown(mask))
        vocabulary = jax.tree.leaves(found)[0].shape[-1]
        seen = history.at_start(tokens, mask, vocabulary, sampling)
    state = _Loop(
        grown(tokens), grown(mask), jnp.zeros_like(uniform.T + tokens[:, :1], float), done, seen, None
    )

    def put(i, state, next_logits):
        decoding.check_tokens(sampling, next_logits.shape[-1])
        past = history.History(state.seen, i)
        token, log_prob = distribution.draw(next_logits, uniform[i], sampling, past)
        write = lambda x, column, at: jax.lax.dynamic_update_index_in_dim(x, column.astype(x.dtype), at, 1)
        return state._replace(
            tokens=write(state.tokens, jnp.where(state.done, 0, token), length + i),
            mask=write(state.mask, ~state.done, length + i),
            log_probs=write(state.log_probs, jnp.where(state.done, 0.0, log_prob), i),
            done=state.done | decoding.is_stop(token, sampling),
            seen=history.add(state.seen, token),
        )

    def advance(i, state):
        at = lambda x: jax.lax.dynamic_index_in_dim(x, length + i - 1, 1, keepdims=False)
        if cache_fns is None:
            found = at(logits_and_values(logits, params, state.tokens, state.mask)[0])
            return put(i, state, found)
        found, cache = cache_fns[1](params, at(state.tokens), state.cache)
        return put(i, state._replace(cache=cache), _one_column(found, batch, "step"))

    first = 0
    if cache_fns is not None:
        found, cache = cache_fns[0](params, tokens, mask, num_tokens)
        state, first = put(0, state._replace(cache=cache), _one_column(found, batch, "init_cache")), 1
    state = jax.lax.fori_loop(first, num_tokens, advance, state)
    return Samples(state.tokens, state.mask, state.log_probs, state.mask[:, length:], state.done)


def logits_and_values(
    logits: Callable[..., Any], params: Any, tokens: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Any]:
    """The result of `logits`, checked: logits `[B, T, V]`, and values or None."""
    found = logits(params, tokens, mask)
    found, values = found if isinstance(found, tuple) else (found, None)
    if jnp.ndim(found) != 3 or jnp.shape(found)[:2] != tokens.shape:
        expected = f"of shape (*{tokens.shape}, V), those of the token after each column"
        refuse("logits", found, expected)
    return found, values


def _one_column(logits, batch, name):
    """Logits of one new token a row, checked."""
    if jnp.ndim(logits) != 2 or jnp.shape(logits)[0] != batch:
        refuse(name, logits, f"logits of shape ({batch}, V), and a cache")
    return logits


def refuse(name: str, given: Any, expected: str) -> None:
    """Raises ValueError for a result of a wrong shape."""
    given = _validation.Verbatim(f"shape {jnp.shape(given)}")
    raise _validation.invalid(f"the result of {name}", given, expected, function="actor_from_logits")
