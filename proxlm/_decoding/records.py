"""Prompts, samples, scores, and the functions that make them of each other: the actor."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from proxlm import _validation
from proxlm._decoding.config import SamplingConfig

__all__ = ["Actor", "Against", "Prompts", "Samples", "ScoreFn", "Scores", "Turns"]


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
      response_mask: bool `[B, R]`, the last R columns of `mask`: up to the stop token, with it; False where
        they hold the output of a tool.
      ended: bool `[B]`: the response, or its last turn, has a stop token.
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
      states: `[B, R, ...]`, of which the head makes the distributions, when asked for.
      compared: what `Against.fn` gives, `[B, R, ...]`, when asked for.
    """

    log_probs: jax.Array
    entropy: jax.Array
    values: jax.Array | None = None
    distribution: jax.Array | None = None
    states: Any = None
    compared: Any = None


class Against(NamedTuple):
    """A reference beside the policy that is scored: their distributions exist for a few tokens at a time.

    Attributes:
      fn: `(log_probs [N, V], ref_log_probs [N, V], tokens [N])` to a pytree of `[N, ...]`, token by token;
        the reference's are untruncated.
      params: of the reference.
      states: `Scores.states` of the reference, of the same tokens.
    """

    fn: Callable[..., Any]
    params: Any
    states: Any


@dataclasses.dataclass(frozen=True)
class Turns:
    """A tool that is called after every turn of a response but the last.

    Attributes:
      tool: (turn, samples) -> the output for each row, where turn is the `Prompts` of the last turn's tokens
        `[B, N]` and mask, and samples are all that has been said. A row without an output, such as one that
        calls no tool, has ended. A pure tool gives `Prompts` of K columns; one on the host a list of a list
        of token ids, or None, for each row, and is given NumPy arrays.
      num_outputs: K, columns of the tool's output; longer ones on the host lose their end.
      num_turns: turns of the policy, at least 2.
      on_host: whether the tool is ordinary Python: then the actor's `sample` cannot be jitted, and is for
        `ppo.make_host_step` and `ppo.iterate`.

    >>> Turns(lambda turn, samples: turn, num_outputs=4, num_turns=1)
    Traceback (most recent call last):
        ...
    ValueError: Turns: num_turns must be an integer ≥ 2, got 1. Without a tool leave turns out.
    """

    tool: Callable[[Any, Any], Any]
    num_outputs: int
    num_turns: int = 2
    on_host: bool = False

    def __post_init__(self):
        """Checks the fields."""
        _validation.a_function("Turns", tool=self.tool)
        _validation.to_int(1, "Turns", num_outputs=self.num_outputs)
        _validation.one_of((False, True), "Turns", on_host=self.on_host)
        if not (_validation.is_integer(self.num_turns) and self.num_turns >= 2):
            remedy = "Without a tool leave turns out."
            raise _validation.invalid("num_turns", self.num_turns, "an integer ≥ 2", remedy, "Turns")


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
    A reference with an argument `states` and a score with `against` spare the `[B, R, V]` of `full`.

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
      turns: the tool between the turns of a response, or None.
      cast: `(params) -> params` of the same scores, kernels in the compute dtype, so that scores in slices
        cast them once; or None.
    """

    init: Callable[[jax.Array], Any]
    sample: Callable[[jax.Array, Any, Prompts], Samples]
    score: ScoreFn
    reference: ScoreFn
    greedy: Callable[[Any, Prompts], Samples] | None = None
    sampling: SamplingConfig | None = None
    final_values: Callable[[Any, Samples], jax.Array] | None = None
    turns: Turns | None = None
    cast: Callable[[Any], Any] | None = None
