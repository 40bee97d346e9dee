"""Selections of parameters: regular expressions, functions of path and leaf, or several of these."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from proxlm import _validation

__all__ = ["PATTERNS", "Select", "flags", "last_layers"]

Select = str | Callable[[str, Any], Any] | Sequence[Any]
"""A regular expression, a function of path and leaf, or a sequence of these."""

PATTERNS = {
    "attention": r"^blocks/attention/",
    "mlp": r"^blocks/mlp/",
    "norms": r"norm/(scale|bias)$",
    "biases": r"/bias$",
    "embeddings": r"^(embedding|positions|head)/",
    "factors": r"/lora/.*/(a|b|magnitude)$",
}
"""Regular expressions of parts by name; "factors" are those of `lm.lora`."""


@_validation.typed
def last_layers(number: int, pattern: str = "") -> Callable[[str, Any], Any]:
    """Selects the last layers, or what a regular expression finds of them.

    Raises:
      ValueError: if `number` is not an integer ≥ 1; on use, if there are fewer layers.

    >>> last_layers(2)("blocks/mlp/down/kernel", np.ones((3, 24, 8))).tolist()
    [False, True, True]
    """
    number = _validation.to_int(1, "last_layers", number=number)

    def select(path: str, leaf: Any) -> Any:
        if not (path.startswith("blocks/") and re.search(pattern, path)):
            return False
        if number > (depth := np.shape(leaf)[0]):
            raise _validation.invalid("number", number, f"at most {depth}, the layers", "", "last_layers")
        return np.arange(depth) >= depth - number

    return select


def flags(select: Select, path: str, leaf: Any, depth: int) -> tuple[bool, ...]:
    """Whether a leaf is trained, and for a leaf of the layers which of them.

    >>> flags([last_layers(1), "scale$"], "blocks/mlp/kernel", np.ones((2, 4)), 2)
    (False, True)
    """
    stacked = path.startswith("blocks/")
    if isinstance(select, str):
        chosen = re.search(select, path) is not None
    elif callable(select):
        chosen = select(path, leaf)
    elif isinstance(select, Sequence):
        chosen = np.any([flags(one, path, leaf, depth) for one in select], axis=0)
        chosen = chosen if stacked else chosen[0]
    else:
        expected = "a regular expression, a function of path and leaf, or a sequence of these"
        raise _validation.invalid("select", select, expected, "", "split")
    chosen = np.asarray(chosen)
    if chosen.dtype != bool or chosen.shape not in ((), (depth,) if stacked else ()):
        expected = f"one bool, or {depth} for a leaf of the layers,"
        raise _validation.invalid(f"select({path!r})", chosen.tolist(), expected, "", "split")
    return tuple(np.broadcast_to(chosen, depth if stacked else 1).tolist())
