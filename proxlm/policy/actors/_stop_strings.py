"""Responses that end at a string, on the host."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from proxlm import _validation
from proxlm._decoding import stop_strings as strings
from proxlm._decoding.records import Samples


@_validation.typed
def stop_at(
    samples: Samples, decode: Callable[[list[int]], str], stop_strings: str | Collection[str]
) -> Samples:
    """Ends responses at the token that completes a stop string, on the host: `finish` of a host step.

    Up to there the tokens were drawn as they are scored, so that the ratio is 1; what follows is masked.

    Args:
      samples: NumPy arrays.
      decode: token ids -> text, of the tokens of one response.
      stop_strings: one, or several, any of which ends a response; not empty.

    Raises:
      ValueError: if a stop string is empty or none is given.

    >>> mask = np.ones((1, 4), bool)
    >>> samples = Samples(np.array([[7, 1, 2, 3]]), mask, np.zeros((1, 3)), mask[:, 1:], np.array([False]))
    >>> cut = stop_at(samples, lambda ids: " ".join(map(str, ids)), "1 2")
    >>> cut.response_mask.tolist(), cut.ended.tolist()
    ([[True, True, False]], [True])
    """
    stops = strings.check("stop_at", stop_strings)
    host: list[Any] = [np.array(x) for x in samples]
    tokens, mask, log_probs, response_mask, ended = host
    width = response_mask.shape[1]
    for row, real in enumerate(response_mask):
        ids = [int(token) for token in tokens[row, -width:][real]]
        says = lambda n, ids=ids: strings.says_one(ids[:n], decode, stops)
        if says(len(ids)):
            length = next(n for n in range(1, len(ids) + 1) if says(n))
            beyond = np.flatnonzero(real)[length:]
            response_mask[row, beyond] = mask[row, beyond - width] = False
            tokens[row, beyond - width], log_probs[row, beyond], ended[row] = 0, 0.0, True
    return Samples(*host)
