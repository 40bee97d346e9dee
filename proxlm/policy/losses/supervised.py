"""Learning from answers that someone else gave: supervised fine-tuning, the prompt left out."""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, aggregation


def completion_mask(mask: jax.typing.ArrayLike, prompt_lengths: jax.typing.ArrayLike) -> jax.Array:
    """Which tokens are the answer's: valid ones after the first `prompt_lengths` valid ones.

    Args:
      mask: bool [..., T], the tokens of prompt and answer, wherever the padding is.
      prompt_lengths: integers [...], how many of them are the prompt's.

    Returns:
      bool [..., T]. `lm.score(..., start=1)` scores the tokens from the second on: take [..., 1:].

    Raises:
      ValueError: if the mask is not boolean, or there is not one length for each row.

    >>> completion_mask(jnp.array([[False, True, True, True]]), jnp.array([2])).tolist()
    [[False, False, False, True]]
    """
    _validation.boolean(mask=mask)
    mask, lengths = jnp.asarray(mask), jnp.asarray(prompt_lengths)
    if lengths.shape != mask.shape[:-1]:
        raise ValueError(
            f"prompt_lengths has shape {lengths.shape}: expected {mask.shape[:-1]}, a length for "
            f"each row of the mask {mask.shape}"
        )
    return mask & (jnp.cumsum(mask, axis=-1) > lengths[..., None])


def sft(log_probs: jax.typing.ArrayLike, mask: jax.typing.ArrayLike, kind: str = "token") -> jax.Array:
    """-Σ w log π(yₜ | x, y₍<t₎) over the answers' tokens: the loss of supervised fine-tuning.

    The prompt is not learnt. The weights w say what counts the same: every token ("token", the
    usual one), every answer ("sequence"), or log π of whole answers is summed ("sequence_sum").

    Args:
      log_probs: nats [..., T], as `lm.score` gives them; masked ones may hold anything.
      mask: bool [..., T], True at the answer's tokens, its stop token among them.
      kind: as in `aggregation.weights`: a name, or a function of the mask.

    Returns:
      A scalar; 0 without a valid token.

    Raises:
      ValueError: if the shapes differ, the mask is not boolean or the kind unknown.

    Source: Ouyang et al. (2022), stage 1. TRL's SFTTrainer with `completion_only_loss` is "token".

    >>> mask = jnp.array([[False, True, True], [False, False, True]])
    >>> log_probs = jnp.array([[-9.0, -1.0, -2.0], [-9.0, jnp.nan, -6.0]])
    >>> sft(log_probs, mask).item(), sft(log_probs, mask, "sequence").item()
    (3.0, 3.75)
    """
    log_probs = aggregation.select(log_probs, mask, "log_probs")
    return -aggregation.weighted_sum(log_probs, aggregation.weights(mask, kind))


def response_mask(tokens: jax.typing.ArrayLike, stop_tokens: int | tuple[int, ...]) -> jax.Array:
    """Marks the tokens of responses up to the first stop token, itself included.

    The one mask to ask tokens for: after it, that a token is padding says nothing of another one.

    Args:
      tokens: integers [..., T], of responses alone.
      stop_tokens: one, or several that stop alike.

    Returns:
      bool [..., T]; all True where nothing stopped.

    Raises:
      ValueError: if the tokens are not integers.

    Source: Ziegler et al. (2019); TRL's `truncate_response`, verl's `get_response_mask`.

    >>> response_mask(jnp.array([[5, 1, 7, 1], [5, 6, 7, 8]]), 1).tolist()
    [[True, True, False, False], [True, True, True, True]]
    """
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(
            f"tokens have dtype {jnp.result_type(tokens)}; expected integers, the ids of tokens."
        )
    is_stop = jnp.isin(jnp.asarray(tokens), jnp.atleast_1d(jnp.array(stop_tokens)))
    return jnp.cumsum(is_stop, axis=-1) - is_stop == 0
