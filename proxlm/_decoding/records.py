"""Prompts, samples, scores, and the functions that make them of each other: the actor."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from proxlm._decoding.config import SamplingConfig

__all__ = ["Actor", "Prompts", "Samples", "ScoreFn", "Scores"]


class Prompts(NamedTuple):
    """Token sequences to continue: tokens, integers `[B, P]`, and mask, bool `[B, P]` or None."""

    tokens: jax.Array
    mask: jax.Array | None = None


class Samples(NamedTuple):
    """Prompts and the responses sampled after them; P + R = T columns.

    Attributes:
      tokens: int32 `[B, T]`: the prompt, moved to end in column P − 1, then the response.
      mask: bool `[B, T]`: which of them are real; the positions of a row count only these.
      log_probs: float32 `[B, R]`, nats: of each response token under the tempered and truncated
        distribution that it was drawn from; 0 after the end.
      response_mask: bool `[B, R]`, the last R columns of `mask`: up to the stop token, with it.
      ended: bool `[B]`: the response has a stop token.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    response_mask: jax.Array
    ended: jax.Array


class Scores(NamedTuple):
    """Per scored token, all float32 `[B, R]`.

    Attributes:
      log_probs: nats, of the token given those before it.
      entropy: nats, of the distribution it was drawn from.
      values: of the state *before* the token; None without a value head.
      distribution: log-probabilities of the whole vocabulary, `[B, R, V]`, when asked for.
    """

    log_probs: jax.Array
    entropy: jax.Array
    values: jax.Array | None = None
    distribution: jax.Array | None = None


class ScoreFn(Protocol):
    """`(params, samples, full=False) -> Scores` of the responses."""

    def __call__(self, params: Any, samples: Samples, full: bool = False) -> Scores:
        """Scores the responses; with `full`, the whole distributions too."""
        ...


class Actor(NamedTuple):
    """Pure functions of `{"policy": ..., "critic": ...}`; without a critic the policy has a value head.

    A key comes first, as in `jax.random`. A sample, score or reference with an argument `group_size` can
    share what the answers to a prompt have in common: such a sample takes each prompt once, and gives
    its answers in rows on end; such a score takes rows of which each group_size on end have one prompt.

    Attributes:
      init: `(key) -> params`.
      sample: `(key, params, Prompts) -> Samples`.
      score: `(params, Samples, full=False) -> Scores`, of the responses, values included.
      reference: `(params, Samples, full=False) -> Scores`, of the policy alone, no values, under the
        distribution without truncation: what a truncated policy cannot say has no place in its KL.
      greedy: `(params, Prompts) -> Samples` of the likeliest tokens, or None: a baseline.
      sampling: the settings of sampling, or None where they are not known.
      final_values: `(params, Samples) -> [B]`, the critic's values after the last column, by which cut
        responses are bootstrapped; or None without a critic.
    """

    init: Callable[[jax.Array], Any]
    sample: Callable[[jax.Array, Any, Prompts], Samples]
    score: ScoreFn
    reference: ScoreFn
    greedy: Callable[[Any, Prompts], Samples] | None = None
    sampling: SamplingConfig | None = None
    final_values: Callable[[Any, Samples], jax.Array] | None = None
