"""Samples of another sampler, such as an inference engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from proxlm import _validation
from proxlm._decoding.records import Samples

_NAME = "samples_of_rows"


@_validation.typed
def samples_of_rows(
    prompts: Sequence[Any],
    responses: Sequence[Any],
    log_probs: Sequence[Any],
    ended: Sequence[Any],
    *,
    prompt_length: int | None = None,
    response_length: int | None = None,
) -> Samples:
    """Samples for `ppo.make_collect_and_learn`'s `learn` out of the lists of another sampler, an entry a row.

    Args:
      prompts: token ids; the rows of one prompt lie side by side.
      responses: token ids of each response, with its stop token.
      log_probs: nats of each token of a response, under the distribution it was drawn from.
      ended: bools, whether a response has a stop token; one that was cut has not.
      prompt_length: P, columns for prompts; None takes as many as the longest has.
      response_length: R, columns for responses, likewise. With both given, `learn` is compiled once.

    Returns:
      NumPy arrays, prompts padded on the left, responses on the right.

    Raises:
      ValueError: if an argument is invalid.

    >>> samples = samples_of_rows([[3], [4, 5]], [[6, 1], [7]], [[-0.5, -0.1], [-2.0]], [True, False])
    >>> samples.tokens.tolist(), samples.response_mask.tolist()
    ([[0, 3, 6, 1], [4, 5, 7, 0]], [[True, True], [True, False]])
    """
    _validation.boolean(_NAME, ended=ended)
    before, asked = _table("prompts", prompts, prompt_length, left=True)
    after, mask = _table("responses", responses, response_length)
    nats, numbered = _table("log_probs", log_probs, mask.shape[1], np.float32)
    if not len(asked) == len(mask) == len(numbered) == len(ended):
        counts = _validation.Verbatim(
            f"{len(mask)}, {len(numbered)} and {len(ended)} of {len(asked)} prompts"
        )
        expected = "as many, with log_probs and ended, as prompts"
        raise _validation.invalid("responses", counts, expected, "Repeat the prompt of each.", _NAME)
    if not np.array_equal(mask, numbered):
        row = int(np.argmax(np.any(mask != numbered, axis=1)))
        given = _validation.Verbatim(f"{numbered[row].sum()} for the {mask[row].sum()} tokens of row {row}")
        raise _validation.invalid("log_probs", given, "one number per token of a response", "", _NAME)
    arrays: Any = np.hstack([before, after]), np.hstack([asked, mask]), nats, mask, np.asarray(ended)
    return Samples(*arrays)


def _table(argument, rows, width, dtype: Any = np.int32, left=False):
    """Rows of numbers in `width` columns, or as many as they need, and the mask of what is real."""
    sizes = np.array([len(row) for row in rows], int)
    width = int(max(sizes, default=0)) if width is None else width
    if np.any(sizes > width):
        given = _validation.Verbatim(f"{max(sizes)} in a row")
        raise _validation.invalid(argument, given, f"at most {width} numbers a row", "Cut them.", _NAME)
    numbers = np.concatenate([*map(np.asarray, filter(len, rows)), np.zeros(0, dtype)])
    if not np.can_cast(numbers.dtype, dtype, "same_kind") or numbers.ndim != 1:
        given = _validation.Verbatim(f"{numbers.dtype}{list(numbers.shape)}")
        raise _validation.invalid(argument, given, f"lists of {dtype.__name__}", "", _NAME)
    mask = (np.arange(width) < sizes[:, None])[:, :: -1 if left else 1]
    table = np.zeros(mask.shape, dtype)
    table[mask] = numbers
    return table, mask
