"""The laws of an actor, tried on samples of its own."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm._decoding import config as decoding
from proxlm.policy import protocols

# Nats of entropy beyond which two keys that give the same samples are no accident.
_SURPRISE = 20.0


class ActorReport(NamedTuple):
    """The largest error of each law, in nats unless said otherwise; NaN where it could not be tried.

    Attributes:
      ratio: |log ρ| of a sampled token by `score`; 0 is the first ratio 1.
      causality: change of a token's probabilities, Σ|Δp|, when it and what follows are others.
      padding: change of log-probs when masked tokens are others, or not there.
      rows: change of the log-probs of a response when it stands beside other ones.
      reference: |log-prob| by which `reference` differs from `score`, where nothing is truncated.
      ended: share of the responses with a stop token; at 0 nothing is known of stops.
    """

    ratio: float
    causality: float
    padding: float
    rows: float
    reference: float
    ended: float


@_validation.typed
def check_actor(
    actor: protocols.Actor,
    params: Any,
    prompts: protocols.Prompts,
    *,
    key: jax.Array | None = None,
    tolerance: float = 1e-3,
    padding: bool = True,
) -> ActorReport:
    """Tries the laws that policy optimisation needs of an actor, and raises for one that does not hold.

    1. Ratio: the log-probs of `sample` are those of `score`, so that the first ratio is 1.
    2. Causality: the distribution of a token depends on those before it alone.
    3. Padding: masked columns change nothing, whatever they hold and how many there are.
    4. Rows: a response is scored alike beside any others.
    5. Stops: a response is real up to its stop token, with it, and `ended` says whether it has one.
    6. Keys: the same key gives the same samples, another one others.

    It compiles `sample` once and `score` twice; for a large model take few and short prompts.

    Args:
      prompts: at least two, which differ; those of one's own task are best.
      key: to sample with; None is `jax.random.key(0)`.
      tolerance: nats.
      padding: False for a model that reads no mask, for prompts of one length.

    Raises:
      ValueError: naming the law that does not hold, or an argument that is invalid.

    >>> from proxlm import lm, policy
    >>> actor = policy.actor_from_logits(lambda params, tokens, mask: params[tokens], num_tokens=3)
    >>> prompts = lm.Prompts(jnp.array([[1, 2], [3, 0]]))
    >>> check_actor(actor, jnp.eye(5), prompts).causality
    0.0
    """
    _validation.positive("check_actor", tolerance=tolerance)
    if not all(callable(getattr(actor, name, None)) for name in ("sample", "score", "reference")):
        raise _validation.invalid("actor", actor, "an object with sample, score and reference")
    _check_prompts(prompts)
    key = jax.random.key(0) if key is None else key
    turns = getattr(actor, "turns", None)
    sample = actor.sample if getattr(turns, "on_host", False) else jax.jit(actor.sample)
    score = jax.jit(functools.partial(actor.score, full=True))
    samples = sample(key, params, prompts)
    _check_shapes(samples, prompts)
    scores = score(params, samples)
    mask = np.asarray(samples.response_mask)
    _check_stops(samples, getattr(actor, "sampling", None), turns)
    _check_keys(
        samples, sample(key, params, prompts), sample(jax.random.split(key)[1], params, prompts), scores
    )
    gap = lambda one, other, where=mask: float(
        np.max(np.abs(_known(one) - _known(other))[where], initial=0.0)
    )
    alike = score(params, jax.tree.map(lambda x: np.repeat(np.asarray(x)[:1], len(mask), 0), samples))
    report = ActorReport(
        ratio=gap(scores.log_probs, samples.log_probs),
        causality=_causality(actor, score, params, samples),
        padding=_padding(score, params, samples, gap) if padding else float("nan"),
        rows=gap(alike.log_probs[0], scores.log_probs[0], mask[0]),
        reference=_reference(actor, params, samples, scores, gap),
        ended=float(np.mean(np.asarray(samples.ended))),
    )
    for law, (expected, remedy) in _LAWS.items():
        if (error := getattr(report, law)) > tolerance:
            raise _broken(law, f"a difference of {error:.3g}", expected, remedy)
    return report


# The causes of other faults come first.
_LAWS = {
    "rows": (
        "one that scores each row by itself",
        "Take no statistics over the batch: normalise within a row, and route tokens one by one.",
    ),
    "causality": (
        "causal: a token's distribution depends on those before it alone",
        "Mask attention to later columns, and score column t by the logits of column t - 1.",
    ),
    "padding": (
        "one that masked columns do not change (padding invariance)",
        "Hide them from attention and count positions over real tokens; or give padding=False.",
    ),
    "ratio": (
        "one whose sampled log-probs are those of its score (first ratio 1)",
        "Sample and score with one temperature, truncation, dropout, precision and positions.",
    ),
    "reference": ("one whose reference is the same policy, untruncated", "Score both with one temperature."),
}


def _broken(law, given, expected, remedy):
    return _validation.invalid(f"actor ({law})", _validation.Verbatim(given), expected, remedy, "check_actor")


def _known(x):
    """Numbers whose differences are numbers: NaN stays, infinities are large."""
    return np.nan_to_num(np.asarray(x, np.float64), nan=np.nan, posinf=1e9, neginf=-1e9)


def _check_prompts(prompts):
    if not all(hasattr(prompts, name) for name in ("tokens", "mask")):
        remedy = "Give a batch of prompts, as lm.Prompts."
        raise _validation.invalid("prompts", prompts, "an object with tokens and mask", remedy, "check_actor")


def _check_shapes(samples, prompts):
    batch, length = np.shape(prompts.tokens)
    width = samples.log_probs.shape[-1]
    expected = {
        "tokens": (batch, length + width),
        "mask": (batch, length + width),
        "log_probs": (batch, width),
        "response_mask": (batch, width),
        "ended": (batch,),
    }
    for name, shape in expected.items():
        given = jnp.shape(getattr(samples, name))
        if given != shape:
            raise _broken("shapes", f"samples.{name} of shape {given}", f"one with {shape} there", "")
    if not np.all(np.isfinite(np.asarray(samples.log_probs))):
        raise _broken("finite", "log-probs that are not finite", "one with finite log-probs", "")


def _check_stops(samples, sampling, turns):
    """A turn is real up to its stop token; a response that has not ended is real to the end."""
    mask, ended = np.asarray(samples.response_mask), np.asarray(samples.ended)
    remedy = "The mask is True up to the stop token, with it, and ended says whether there is one."
    begins, real = mask[:, 1:] & ~mask[:, :-1], np.asarray(samples.mask)[:, -mask.shape[1] : -1]
    if np.any(begins if turns is None else begins & ~real) or np.any(~mask[:, 0]):
        raise _broken("stops", "a response with a hole", "one without, but for what tools say", remedy)
    if sampling is None:
        return
    tokens = np.asarray(samples.tokens)[:, -mask.shape[1] :]
    stops = np.isin(tokens, decoding.stop_tokens(sampling)) & mask
    last = mask & ~np.pad(mask[:, 1:], ((0, 0), (0, 1)))
    if np.any(stops & ~last):
        raise _broken("stops", "a response that goes on after a stop token", "one that ends there", remedy)
    final = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    has_stop = stops[np.arange(len(mask)), final]
    if np.any(has_stop != ended):
        row = int(np.flatnonzero(has_stop != ended)[0])
        raise _broken("stops", f"ended={ended[row]} in row {row}", f"{not ended[row]} there", remedy)
    if turns is None and np.any(~mask[:, -1] & ~ended):
        raise _broken("stops", "a response cut short that has not ended", "real to the end", remedy)


def _check_keys(samples, again, other, scores):
    """The samples are a function of the key, and differ where the key does."""
    if not np.array_equal(samples.tokens, again.tokens):
        raise _broken("keys", "two samples by one key", "a pure function of the key", "")
    entropy = np.sum(np.asarray(scores.entropy)[np.asarray(samples.response_mask)])
    if entropy > _SURPRISE and np.array_equal(samples.tokens, other.tokens):
        remedy = "Draw with the key that is given; and not greedily while training."
        raise _broken("keys", "the same samples by two keys", "one that draws by its key", remedy)


def _truncates(actor):
    truncating = ("greedy", "top_k", "top_p", "min_p")
    return any(getattr(getattr(actor, "sampling", None), name, None) for name in truncating)


def _causality(actor, score, params, samples):
    """The largest change of a distribution when the tokens from its own column on are others.

    A truncated support holds the token that was drawn; there the reference is asked, which is untruncated.
    """
    score = jax.jit(functools.partial(actor.reference, full=True)) if _truncates(actor) else score
    mask, distribution = np.asarray(samples.response_mask), np.asarray(score(params, samples).distribution)
    width, vocabulary = mask.shape[1], distribution.shape[2]
    column = min(width - 1, int(np.max(np.sum(mask, axis=1))) // 2)
    first = samples.tokens.shape[1] - width + column
    tokens = np.array(samples.tokens)
    tokens[:, first:] = (tokens[:, first:] + 1) % vocabulary
    after = np.asarray(score(params, samples._replace(tokens=tokens)).distribution)
    one, other = (np.exp(x[:, : column + 1], dtype=np.float64) for x in (distribution, after))
    return float(np.max(np.abs(one - other).sum(axis=2)[mask[:, : column + 1]], initial=0.0))


def _padding(score, params, samples, gap):
    """The largest change of a log-prob when the first column holds another masked token, or is not there."""
    tokens, mask, length = samples.tokens, samples.mask, samples.tokens.shape[1] - samples.log_probs.shape[1]
    # a prompt of one column is given another one
    grow = lambda x: np.pad(x, ((0, 0), (1 if length < 2 else 0, 0)))
    tokens, masked = grow(tokens), grow(mask)
    masked[:, 0] = False
    without = score(params, samples._replace(tokens=tokens[:, 1:], mask=masked[:, 1:]))
    filled = lambda token: np.concatenate([np.full_like(tokens[:, :1], token), tokens[:, 1:]], axis=1)
    found = [score(params, samples._replace(tokens=filled(token), mask=masked)) for token in (0, 1)]
    # a prompt whose only real token was masked is no prompt
    rows = np.any(masked[:, :-1][:, : max(length, 2)], axis=1)
    where = np.asarray(samples.response_mask) & rows[:, None]
    return max(gap(x.log_probs, without.log_probs, where) for x in found)


def _reference(actor, params, samples, scores, gap):
    """The largest difference between reference and score, where nothing is truncated."""
    if getattr(actor, "sampling", None) is None or _truncates(actor):
        return float("nan")
    return gap(jax.jit(actor.reference)(params, samples).log_probs, scores.log_probs)
