"""Actors made of a function that gives logits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm._decoding import config as decoding
from proxlm._decoding import distribution, history, rows
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Actor, Samples, Scores, Turns
from proxlm.policy.actors import _token_loop

__all__ = ["actor_from_logits"]

# (params, tokens [B, T], mask [B, T]) -> logits [B, T, V], or these and values [B, T].
Logits = Callable[[Any, jax.Array, jax.Array], Any]


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
    turns: Turns | None = None,
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
      num_tokens: R, the length of the longest response; or of the longest turn.
      init_cache: `(params, prompts [B, P], mask [B, P], num_tokens)` -> logits `[B, V]` of the first
        new token, and a cache with room for num_tokens more: any pytree whose shapes stay.
      step: `(params, tokens [B], cache)` -> logits `[B, V]` of the next token, and the new cache.
      values: `(params, tokens [B, T], mask [B, T])` -> `[B, T]`, a critic of its own.
      init: `(key) -> params`, for `Actor.init`; None where parameters come from elsewhere.
      sampling: the settings of sampling, which scoring shares.
      turns: a tool that is called after each turn, as by `lm.make_actor`; None: one turn. The functions
        above are given rows without the holes of turns, padded on the left, and init_cache all of a row.

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
    untruncated = decoding.untruncated(sampling)
    of_rows = functools.partial(_token_loop.without_holes, when=turns is not None)
    logits_of = of_rows(logits)
    prefill = init_cache
    if turns is not None and init_cache is not None:  # after a turn there are holes
        prefill = lambda params, tokens, mask, num: init_cache(params, *rows.align(tokens, mask), num)
    model = _token_loop.Model(logits_of, None if prefill is None else (prefill, step), num_tokens)
    sample = _token_loop.sampler(model, sampling, turns)

    def reference(params: Any, samples: Samples, full: bool = False) -> Scores:
        return _score(params, samples, logits_of, untruncated, full)._replace(values=None)

    def score(params: Any, samples: Samples, full: bool = False) -> Scores:
        scores = _score(params, samples, logits_of, sampling, full)
        if values is None:
            return scores
        found = of_rows(values)(params, samples.tokens, samples.mask)
        return scores._replace(values=_values(found, samples))

    greedy = functools.partial(sample, jax.random.key(0), settings=decoding.as_greedy(sampling))

    final_values = functools.partial(_final_values, logits, values)
    make = _no_parameters if init is None else init
    return Actor(make, sample, score, reference, greedy, sampling, final_values, turns)


def _score(params, samples, logits, sampling, full):
    """The scores of the response's columns, by the logits of those before them."""
    tokens, mask = samples.tokens, samples.mask
    found, values = _token_loop.logits_and_values(logits, params, tokens, mask)
    start = tokens.shape[1] - samples.response_mask.shape[1]
    targets = tokens[:, start:]
    before = found[:, start - 1 : -1].reshape(targets.size, -1)
    rows, columns = (jnp.asarray(x.reshape(-1)) for x in np.indices(targets.shape))
    index = history.in_turn(samples.response_mask).reshape(-1) if sampling.min_new_tokens else columns
    past = history.before(
        history.of_rows(tokens, mask, found.shape[2], sampling), rows, start + columns, index
    )
    log_probs = distribution.log_probs(before, sampling, targets.reshape(-1), past)
    return Scores(
        log_probs=distribution.select(log_probs, targets.reshape(-1)).reshape(targets.shape),
        entropy=distribution.entropy(log_probs).reshape(targets.shape),
        values=None if values is None else _values(values, samples),
        distribution=log_probs.reshape(*targets.shape, -1) if full else None,
    )


def _final_values(logits, values, params, samples):
    """Values [B] after the last real column of each row."""
    last = rows.align(samples.tokens, samples.mask)
    read = functools.partial(_token_loop.logits_and_values, logits)
    found = read(params, *last)[1] if values is None else values(params, *last)
    if found is None:
        remedy = "Let logits give (logits, values), or give values."
        raise _validation.invalid("values", None, "a critic's", remedy, "actor_from_logits")
    return jnp.asarray(found, jnp.float32)[:, -1]


def _values(values, samples):
    """The values of the states before the tokens of the responses, [B, R], in float32."""
    if jnp.shape(values) != samples.tokens.shape:
        _token_loop.refuse("values", values, f"of shape {samples.tokens.shape}, one for each column")
    return jnp.asarray(values, jnp.float32)[:, -samples.response_mask.shape[1] - 1 : -1]


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
    decoding.check_stops(where, sampling, num_tokens)
