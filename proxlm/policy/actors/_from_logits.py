"""Actors made of a function that gives logits."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm._decoding import config as decoding
from proxlm._decoding import distribution, history, rows
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Actor, Samples, Scores

__all__ = ["actor_from_logits"]

# (params, tokens [B, T], mask [B, T]) -> logits [B, T, V], or these and values [B, T].
Logits = Callable[[Any, jax.Array, jax.Array], Any]


class _Loop(NamedTuple):
    """The state of decoding between two tokens; R columns of responses stand after the prompts'."""

    tokens: jax.Array  # [B, T]
    mask: jax.Array  # [B, T]
    log_probs: jax.Array  # [B, R]
    done: jax.Array  # [B]
    seen: jax.Array | None  # [B, V], for a penalty on repetition
    cache: Any


@_validation.typed
def actor_from_logits(
    logits: Logits,
    num_tokens: int,
    *,
    init_cache: Callable[..., Any] | None = None,
    step: Callable[..., Any] | None = None,
    values: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None,
    init: Callable[[jax.Array], Any] | None = None,
    sampling: SamplingConfig = SamplingConfig(),
) -> Actor:
    """The actor of any causal model: samples what its logits say, and scores it by the same.

    Everything that it gives is a pure function, so it may be jitted, scanned and vmapped. Without a cache
    each token costs a forward pass over all columns. One uniform number is drawn a token and row, as by
    `lm.sample`.

    Args:
      logits: `(params, tokens [B, T], mask [B, T])` -> logits `[B, T, V]` of the token after each
        column; or a pair of these and of values `[B, T]`, where the policy has a value head. The mask
        is False at padding, which stands on the left, and after the end of a response. A model that
        reads no mask is right for prompts of one length.
      num_tokens: R, the length of the longest response.
      init_cache: `(params, prompts [B, P], mask [B, P], num_tokens)` -> logits `[B, V]` of the first
        new token, and a cache with room for num_tokens more: any pytree whose shapes stay.
      step: `(params, tokens [B], cache)` -> logits `[B, V]` of the next token, and the new cache.
      values: `(params, tokens [B, T], mask [B, T])` -> `[B, T]`, a critic of its own.
      init: `(key) -> params`, for `Actor.init`; None where parameters come from elsewhere.
      sampling: the settings of sampling, which scoring shares.

    Raises:
      ValueError: if an argument is invalid; while tracing, if a shape is not as above.

    >>> table = lambda params, tokens, mask: params[tokens]  # a bigram model
    >>> actor = actor_from_logits(table, num_tokens=3)
    >>> from proxlm import lm
    >>> samples = actor.sample(jax.random.key(0), jnp.zeros((5, 5)), lm.Prompts(jnp.array([[1, 2]])))
    >>> samples.tokens.shape, actor.score(jnp.zeros((5, 5)), samples).log_probs.shape
    ((1, 5), (1, 3))
    """
    given = {"logits": logits, "init_cache": init_cache, "step": step, "values": values, "init": init}
    _check_arguments(given, num_tokens, sampling)
    cache_fns = None if init_cache is None else (init_cache, step)
    untruncated = decoding.untruncated(sampling)

    def sample(key: jax.Array, params: Any, prompts: Any, settings: SamplingConfig = sampling) -> Samples:
        return _sample(key, params, prompts, logits, cache_fns, num_tokens, settings)

    def reference(
        params: Any, samples: Samples, full: bool = False, settings: SamplingConfig = untruncated
    ) -> Scores:
        return _score(params, samples, logits, num_tokens, settings, full)._replace(values=None)

    def score(params: Any, samples: Samples, full: bool = False) -> Scores:
        scores = _score(params, samples, logits, num_tokens, sampling, full)
        if values is None:
            return scores
        found = values(params, samples.tokens, samples.mask)
        return scores._replace(values=_values(found, samples, num_tokens))

    greedy = functools.partial(sample, jax.random.key(0), settings=decoding.as_greedy(sampling))

    def final_values(params: Any, samples: Samples) -> jax.Array:
        found = (
            _logits_and_values(logits, params, samples.tokens, samples.mask)[1]
            if values is None
            else (values(params, samples.tokens, samples.mask))
        )
        if found is None:
            remedy = "Let logits give (logits, values), or give values."
            raise _validation.invalid("values", None, "a critic's", remedy, "actor_from_logits")
        return jnp.asarray(found, jnp.float32)[:, -1]

    make = _no_parameters if init is None else init
    return Actor(make, sample, score, reference, greedy, sampling, final_values)


def _sample(key, params, prompts, logits, cache_fns, num_tokens, sampling):
    """Draws token after token into a buffer of all columns, by the cache where there is one."""
    tokens = jnp.asarray(prompts.tokens, jnp.int32)
    mask = jnp.ones(tokens.shape, bool) if prompts.mask is None else jnp.asarray(prompts.mask)
    if prompts.mask is not None:
        tokens, mask = rows.align(jnp.where(mask, tokens, 0), mask)
    batch, length = tokens.shape
    uniform = rows.uniforms(key, num_tokens, batch)
    grown = lambda x: jnp.pad(x, ((0, 0), (0, num_tokens)))
    ended, log_probs = jnp.zeros(batch, bool), jnp.zeros((batch, num_tokens))
    seen = None
    if sampling.repetition_penalty is not None:
        found = jax.eval_shape(logits, params, grown(tokens), grown(mask))
        vocabulary = jax.tree.leaves(found)[0].shape[-1]
        seen = history.at_start(tokens, mask, vocabulary, sampling)
    state = _Loop(grown(tokens), grown(mask), log_probs, ended, seen, None)

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
            found = at(_logits_and_values(logits, params, state.tokens, state.mask)[0])
            return put(i, state, found)
        found, cache = cache_fns[1](params, at(state.tokens), state.cache)
        return put(i, state._replace(cache=cache), _one_column(found, batch, "step"))

    first = 0
    if cache_fns is not None:
        found, cache = cache_fns[0](params, tokens, mask, num_tokens)
        state, first = put(0, state._replace(cache=cache), _one_column(found, batch, "init_cache")), 1
    state = jax.lax.fori_loop(first, num_tokens, advance, state)
    response_mask = state.mask[:, length:]
    return Samples(state.tokens, state.mask, state.log_probs, response_mask, state.done)


def _score(params, samples, logits, num_tokens, sampling, full):
    """The scores of the response's columns, by the logits of those before them."""
    tokens, mask = samples.tokens, samples.mask
    found, values = _logits_and_values(logits, params, tokens, mask)
    targets = tokens[:, -num_tokens:]
    before = found[:, -num_tokens - 1 : -1].reshape(targets.size, -1)
    start = tokens.shape[1] - num_tokens
    rows, columns = (jnp.asarray(x.reshape(-1)) for x in np.indices(targets.shape))
    index = history.in_turn(samples.response_mask).reshape(-1) if sampling.min_new_tokens else columns
    past = history.before(
        history.of_rows(tokens, mask, found.shape[2], sampling), rows, start + columns, index
    )
    log_probs = distribution.log_probs(before, sampling, targets.reshape(-1), past)
    return Scores(
        log_probs=distribution.select(log_probs, targets.reshape(-1)).reshape(targets.shape),
        entropy=distribution.entropy(log_probs).reshape(targets.shape),
        values=None if values is None else _values(values, samples, num_tokens),
        distribution=log_probs.reshape(*targets.shape, -1) if full else None,
    )


def _logits_and_values(logits, params, tokens, mask):
    """The result of `logits`, checked: logits [B, T, V], and values or None."""
    found = logits(params, tokens, mask)
    found, values = found if isinstance(found, tuple) else (found, None)
    if jnp.ndim(found) != 3 or jnp.shape(found)[:2] != tokens.shape:
        expected = f"of shape (*{tokens.shape}, V), those of the token after each column"
        _refuse("logits", found, expected)
    return found, values


def _values(values, samples, num_tokens):
    """The values of the states before the tokens of the responses, [B, R], in float32."""
    if jnp.shape(values) != samples.tokens.shape:
        _refuse("values", values, f"of shape {samples.tokens.shape}, one for each column")
    return jnp.asarray(values, jnp.float32)[:, -num_tokens - 1 : -1]


def _one_column(logits, batch, name):
    """Logits of one new token a row, checked."""
    if jnp.ndim(logits) != 2 or jnp.shape(logits)[0] != batch:
        _refuse(name, logits, f"logits of shape ({batch}, V), and a cache")
    return logits


def _refuse(name, given, expected):
    given = _validation.Verbatim(f"shape {jnp.shape(given)}")
    raise _validation.invalid(f"the result of {name}", given, expected, function="actor_from_logits")


def _no_parameters(key):
    remedy = "Give actor_from_logits its init, or make the parameters by your model."
    raise _validation.invalid("actor.init", None, "a function of a key", remedy, "actor_from_logits")


def _check_arguments(functions, num_tokens, sampling):
    where = "actor_from_logits"
    for name, fn in functions.items():
        if fn is not None or name == "logits":
            _validation.a_function(where, "", **{name: fn})
    if (functions["init_cache"] is None) != (functions["step"] is None):
        missing = "step" if functions["step"] is None else "init_cache"
        remedy = "A cache is made by one and used by the other: give both, or neither."
        raise _validation.invalid(missing, None, "a function beside the other one", remedy, where)
    _validation.to_int(1, where, num_tokens=num_tokens)
    if not isinstance(sampling, SamplingConfig):
        raise _validation.invalid("sampling", sampling, "a SamplingConfig", function=where)
