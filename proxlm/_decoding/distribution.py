"""The distribution that is sampled: that of the model, tempered and truncated.

Sampling and scoring both read `log_probs`, so they agree by construction. No function here
sorts the vocabulary: on a CPU a sort of 64 × 50k logits takes half a second.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from proxlm import _validation, sharding
from proxlm._decoding.config import NUMBERS, SamplingConfig, stop_tokens
from proxlm._decoding.history import History

__all__ = ["adjust", "argmax", "draw", "entropy", "inverse_cdf", "log_probs", "select", "truncation"]


def log_probs(
    logits: jax.Array, sampling: SamplingConfig, keep: jax.Array | None = None, history: History | None = None
) -> jax.Array:
    """Log-probabilities of the tempered, truncated and renormalised distribution, `[..., V]`.

        log p(v) = l_v/τ − log Σ_{u ∈ S} exp(l_u/τ)   for v ∈ S, else −∞

    The support S carries no gradient.

    Args:
      keep: tokens `[...]` that belong to S whatever the thresholds say: those that were sampled.
        A threshold computed from logits that differ in the last bit could otherwise give a
        sampled token the log-probability −∞.
      history: needed for a repetition penalty and for min_new_tokens.

    >>> logits = jnp.array([2.0, 2.0, 1.0])
    >>> (log_probs(logits, SamplingConfig(top_k=2)) / jnp.log(2)).tolist()
    [-1.0, -1.0, -inf]
    """
    logits = adjust(logits, sampling, history)
    support = truncation(logits, sampling)
    if support is None:
        return jax.nn.log_softmax(logits, axis=-1)
    if keep is not None:
        support = support | (_tokens(logits) == keep[..., None])
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    # Two selects: a gradient through log(0) would be NaN under a single one.
    total = jnp.sum(jnp.where(support, jnp.exp(jnp.where(support, shifted, 0.0)), 0.0), -1)
    return jnp.where(support, shifted - jnp.log(total)[..., None], -jnp.inf)


def adjust(logits: jax.Array, sampling: SamplingConfig, history: History | None = None) -> jax.Array:
    """Biased and penalised logits over the temperature, −∞ where a token is banned, in float32 `[..., V]`.

    >>> adjust(jnp.array([1.0, 2.0, 0.0]), SamplingConfig(temperature=0.5, banned_tokens={2})).tolist()
    [2.0, 4.0, -inf]
    >>> seen = History(jnp.array([[True, True, False]]), jnp.array([0]))
    >>> adjust(jnp.array([[1.0, -1.0, 3.0]]), SamplingConfig(repetition_penalty=2.0), seen).tolist()
    [[0.5, -2.0, 3.0]]
    """
    numbers = {name: getattr(sampling, name) for name in NUMBERS}
    _validation.scalar("SamplingConfig", **{name: x for name, x in numbers.items() if x is not None})
    logits = logits.astype(jnp.float32)
    if isinstance(sampling.logit_bias, Mapping):
        for token, bias in sampling.logit_bias.items():
            logits = logits.at[..., token].add(bias)
    elif sampling.logit_bias is not None:
        logits = logits + jnp.broadcast_to(sampling.logit_bias, logits.shape)
    if sampling.repetition_penalty is not None and history is not None and history.seen is not None:
        penalty = jnp.float32(sampling.repetition_penalty)
        logits = jnp.where(history.seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.banned_tokens:
        logits = jnp.where(_among(logits, sampling.banned_tokens), -jnp.inf, logits)
    if sampling.min_new_tokens and history is not None:
        early = jnp.broadcast_to(history.index, logits.shape[:-1])[..., None] < sampling.min_new_tokens
        logits = jnp.where(early & _among(logits, stop_tokens(sampling)), -jnp.inf, logits)
    is_one = isinstance(sampling.temperature, (int, float)) and sampling.temperature == 1
    return logits if is_one or sampling.greedy else logits / sampling.temperature


def truncation(logits: jax.Array, sampling: SamplingConfig) -> jax.Array | None:
    """The support S of the truncated distribution, bool `[..., V]`, or None when nothing is truncated.

    >>> truncation(jnp.log(jnp.array([0.1, 0.6, 0.3])), SamplingConfig(top_p=0.8)).tolist()
    [False, True, True]
    """
    logits = jax.lax.stop_gradient(logits)
    if sampling.greedy:
        # The first of equals, as an argmax takes it.
        return _tokens(logits) == argmax(logits)[..., None]
    support = None
    both = lambda support, other: other if support is None else support & other
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        support = logits >= kth
    if sampling.top_p is not None:
        weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        weights = weights if support is None else jnp.where(support, weights, 0.0)
        support = both(support, weights >= _nucleus_threshold(weights, sampling.top_p))
    if sampling.min_p is not None:
        top = jnp.max(logits, axis=-1, keepdims=True)
        support = both(support, logits >= top + jnp.log(sampling.min_p))
    return support


def select(log_probs: jax.Array, tokens: jax.Array) -> jax.Array:
    """Entry `tokens[n]` of each row: `[N, V]`, `[N]` -> `[N]`; NaN where there is none.

    A select and a sum, not a gather: they fuse, and so does their gradient.

    >>> select(jnp.array([[1.0, 2.0], [3.0, -jnp.inf]]), jnp.array([1, 0])).tolist()
    [2.0, 3.0]
    """
    places = jax.lax.broadcasted_iota(jnp.int32, log_probs.shape, 1)
    picked = jnp.sum(jnp.where(places == tokens[:, None], log_probs, 0.0), axis=1)
    return jnp.where((tokens >= 0) & (tokens < log_probs.shape[1]), picked, jnp.nan)


def entropy(log_probs: jax.Array) -> jax.Array:
    """Entropy −Σ p log p in nats, with 0·log 0 = 0: `[N, V]` -> `[N]`.

    >>> entropy(jnp.log(jnp.array([[0.5, 0.5, 0.0]]))).round(4).tolist()
    [0.6930999755859375]
    """
    finite = jnp.where(log_probs > -jnp.inf, log_probs, 0.0)
    return -jnp.sum(jnp.where(log_probs > -jnp.inf, jnp.exp(finite) * finite, 0.0), axis=1)


def draw(
    logits: jax.Array, uniform: jax.Array, sampling: SamplingConfig, history: History | None = None
) -> tuple[jax.Array, jax.Array]:
    """Tokens `[B]` drawn by uniform numbers `[B]`, and their log-probabilities; logits `[B, V]`.

    >>> token, log_prob = jax.jit(draw)(jnp.zeros((1, 4)), jnp.array([0.6]), SamplingConfig())
    >>> token.item(), (log_prob / jnp.log(2)).item()
    (2, -2.0)
    """
    logits = adjust(logits, sampling, history)
    if sampling.greedy:
        return argmax(logits), jnp.zeros(logits.shape[0])
    support = truncation(logits, sampling)
    shifted = logits - jnp.max(logits, axis=1, keepdims=True)
    weights = jnp.exp(shifted)
    weights = weights if support is None else jnp.where(support, weights, 0.0)
    token = inverse_cdf(weights, uniform)
    picked = jnp.take_along_axis(shifted, token[:, None], axis=1)[:, 0]
    return token, picked - jnp.log(jnp.sum(weights, axis=1))


def argmax(x: jax.Array) -> jax.Array:
    """Index of the first maximum of the last axis.

    The maximum, then the first place equal to it: several times faster on a CPU than XLA's
    combined reduction.

    >>> argmax(jnp.array([1.0, 3.0, 3.0])).item()
    1
    """
    return _first(x >= jnp.max(x, axis=-1, keepdims=True))


def inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draws an index with probability proportional to its weight.

    Two levels, blocks and then the places of one block, so that no cumulative sum is long. An
    index of weight 0 is never drawn, however the sums are rounded.

    Args:
      weights: non-negative `[B, V]`, not all 0.
      uniform: `[B]` in [0, 1).

    Returns:
      int32 `[B]`.

    >>> jax.jit(inverse_cdf)(jnp.array([[0.0, 1.0, 3.0]] * 2), jnp.array([0.2, 0.3])).tolist()
    [1, 2]
    """
    size = weights.shape[1]
    block = 16 if size <= 256 else 64
    padded = jnp.pad(weights, ((0, 0), (0, -size % block)))
    blocks = padded.reshape(weights.shape[0], -1, block)
    # a cumulative sum along what devices hold parts of would send as often as there are devices
    mass = sharding.rows(jnp.sum(blocks, axis=2), whole=True)
    ends = jnp.cumsum(mass, axis=1)
    target = uniform[:, None] * ends[:, -1:]
    index = _first_above(ends, target, mass)[:, None]
    start = jnp.take_along_axis(ends - mass, index, axis=1)
    inside = sharding.rows(jnp.take_along_axis(blocks, index[:, :, None], axis=1)[:, 0], whole=True)
    place = _first_above(jnp.cumsum(inside, axis=1), target - start, inside)
    return index[:, 0] * block + place


def _first_above(ends, target, mass):
    """First index with mass whose cumulative end exceeds the target; else the last with mass."""
    found = (ends > target) & (mass > 0)
    last = jnp.max(jnp.where(mass > 0, _tokens(mass), 0), axis=-1)
    return jnp.minimum(_first(found), last)


def _first(condition):
    """Index of the first True of the last axis; the axis's size where there is none."""
    return jnp.min(jnp.where(condition, _tokens(condition), condition.shape[-1]), axis=-1)


def _among(x, tokens):
    """Mask of these tokens of the vocabulary, in the shape of x."""
    found = jnp.zeros(x.shape, bool)
    for token in tokens:
        found |= _tokens(x) == token
    return found


def _tokens(x):
    """Indices along the last axis, in the shape of x."""
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def _nucleus_threshold(weights, top_p):
    """The largest τ such that the weights ≥ τ hold a share ≥ top_p: by bisection on its bits.

    Non-negative floats are ordered as their bit patterns, so 31 halvings find τ exactly.
    """
    goal = top_p * jnp.sum(weights, axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds  # low holds enough, high does not
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        held = jnp.sum(jnp.where(weights >= threshold, weights, 0.0), axis=-1, keepdims=True)
        enough = held >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros(goal.shape, jnp.int32)
    high = jnp.full(goal.shape, 0x7F800000, jnp.int32)  # infinity: holds nothing
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    # A share of 1 is all: what is too small to change the sum would be left out otherwise.
    return jnp.where(top_p >= 1, 0.0, jax.lax.bitcast_convert_type(low, jnp.float32))
