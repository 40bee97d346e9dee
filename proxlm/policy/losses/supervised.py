"""Supervised fine-tuning on given responses, and masks of the tokens that belong to a response."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy._finite import finite

__all__ = ["completion_mask", "response_mask", "sft"]


@_validation.typed
def completion_mask(mask: ArrayLike, prompt_lengths: ArrayLike) -> jax.Array:
    """Marks the tokens after a prompt: the valid ones after the first `prompt_lengths` valid ones.

    Args:
      mask: bool [..., T], the tokens of prompt and response, wherever the padding is.
      prompt_lengths: integers [...], how many of these are the prompt's.

    Returns:
      bool [..., T]. `lm.score(..., start=1)` scores the tokens from the second on: take [..., 1:].

    >>> completion_mask(jnp.array([[False, True, True, True]]), jnp.array([2])).tolist()
    [[False, False, False, True]]
    """
    _validation.boolean("completion_mask", mask=mask)
    mask, lengths = jnp.asarray(mask), jnp.asarray(prompt_lengths)
    if lengths.shape != mask.shape[:-1]:
        expected = f"{mask.shape[:-1]}, one length for each row of the mask"
        raise _validation.invalid(
            "prompt_lengths.shape", lengths.shape, expected, "Use jnp.full for one length.", "completion_mask"
        )
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        remedy = "Count the tokens of each prompt."
        raise _validation.invalid(
            "prompt_lengths.dtype", lengths.dtype, "an integer type", remedy, "completion_mask"
        )
    _validation.at_least(0, "completion_mask", prompt_lengths=prompt_lengths)
    return mask & (jnp.cumsum(mask, axis=-1) > lengths[..., None])


@_validation.typed
def sft(log_probs: ArrayLike, mask: ArrayLike, kind: str | Callable[..., jax.Array] = "token") -> jax.Array:
    """The loss of supervised fine-tuning, -Σ w log π(yₜ | x, y₍<t₎) over the tokens of the responses.

    A scalar, 0 without a valid token. The prompt is not learnt. By the weights w every token counts the same
    ("token", the usual choice), or every response ("sequence"), or log π of whole responses is summed
    ("sequence_sum").

    Args:
      log_probs: nats [..., T], as `lm.score` gives them; masked ones may hold anything.
      mask: bool [..., T], True at the tokens of the response, its stop token among them. With labels of -100
        at what is not learnt, it is `labels != -100`.
      kind: as in `aggregation.weights`: a name, or a function of the mask.

    Source: Ouyang et al. (2022), stage 1. TRL's SFTTrainer with `completion_only_loss` is "token".

    >>> mask = jnp.array([[False, True, True], [False, False, True]])
    >>> log_probs = jnp.array([[-9.0, -1.0, -2.0], [-9.0, jnp.nan, -6.0]])
    >>> sft(log_probs, mask).item(), sft(log_probs, mask, "sequence").item()
    (3.0, 3.75)
    """
    (log_probs,) = finite(aggregation.select(log_probs, mask, "log_probs"))
    return -aggregation.weighted_sum(log_probs, aggregation.weights(mask, kind))


@_validation.typed
def response_mask(tokens: ArrayLike, stop_tokens: int | tuple[int, ...]) -> jax.Array:
    """Marks the tokens of responses up to the first stop token, itself included.

    Use this mask rather than a comparison with a padding token: a stop token may also be the padding.

    Args:
      tokens: integers [..., T], of responses alone.
      stop_tokens: one id, or several that stop alike.

    Returns:
      bool [..., T]; all True where nothing stopped.

    Source: Ziegler et al. (2019); TRL's `truncate_response`, verl's `get_response_mask`.

    >>> response_mask(jnp.array([[5, 1, 7, 1], [5, 6, 7, 8]]), 1).tolist()
    [[True, True, False, False], [True, True, True, True]]
    """
    dtype = jnp.result_type(tokens)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise _validation.invalid(
            "tokens.dtype", dtype, "an integer type", "Give the ids of tokens.", "response_mask"
        )
    if not jnp.ndim(tokens):
        raise _validation.invalid("tokens.shape", (), "[..., T]", "Give a sequence.", "response_mask")
    stops = jax.tree.leaves(stop_tokens)
    for stop in stops:
        _validation.to_int(0, "response_mask", stop_tokens=stop)
    if not stops:
        raise _validation.invalid("stop_tokens", stop_tokens, "an id ≥ 0, or several", "", "response_mask")
    is_stop = jnp.isin(jnp.asarray(tokens), jnp.array(stops))
    return jnp.cumsum(is_stop, axis=-1) - is_stop == 0
