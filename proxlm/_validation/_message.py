"""The one form of message that an invalid argument gets."""

from typing import Any

import jax
import jax.core
import numpy as np

NUMBERS = (int, float, np.number, np.ndarray, jax.Array)


class Verbatim(str):
    """A description of what was given, which `invalid` writes without quotation marks.

    >>> Verbatim("shape (2,)")
    shape (2,)
    """

    __slots__ = ()
    __repr__ = str.__str__


def invalid(argument: str, given: Any, expected: str, remedy: str = "", function: str = "") -> ValueError:
    """The error for an invalid argument, in the one form of message that proxlm has.

    >>> invalid("k", 2.5, "an integer ≥ 0", "Round it.", "top_k")
    ValueError('top_k: k must be an integer ≥ 0, got 2.5. Round it.')
    """
    prefix = f"{function}: " if function else ""
    suffix = f" {remedy}" if remedy else ""
    return ValueError(f"{prefix}{argument} must be {expected}, got {given!r}.{suffix}")


def is_known(number: Any) -> bool:
    """Whether the value of a number can be checked now: it is neither None nor traced.

    >>> is_known(0.5), is_known(None)
    (True, False)
    """
    return number is not None and not isinstance(number, jax.core.Tracer)


def is_real(x: Any) -> bool:
    """Whether something is a number or an array of numbers, and none of them complex, text or an object.

    >>> is_real(np.ones(2)), is_real(np.array(["a"])), is_real(1j), is_real(None)
    (True, False, False, False)
    """
    kind = getattr(getattr(x, "dtype", np.dtype(float)), "kind", "O")  # keys have none
    return isinstance(x, NUMBERS) and kind not in "OSUcmM"
