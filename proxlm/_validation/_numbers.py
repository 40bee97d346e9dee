"""Checks on numbers, integers and choices."""

import operator
from typing import Any

import numpy as np

from proxlm._validation._message import invalid, is_known, is_real


def at_least(bound: float, /, function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a known number below `bound`, or NaN; None and traced values pass.

    >>> at_least(0, "make_step", kl_coef=-0.1)
    Traceback (most recent call last):
        ...
    ValueError: make_step: kl_coef must be a number ≥ 0, got -0.1.
    """
    for argument, number in numbers.items():
        _require(argument, number, lambda x: x >= bound, f"a number ≥ {bound}", remedy, function)


def positive(function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a known number ≤ 0, or NaN; None and traced values pass.

    >>> positive(epsilon=0)
    Traceback (most recent call last):
        ...
    ValueError: epsilon must be a number > 0, got 0.
    """
    for argument, number in numbers.items():
        _require(argument, number, lambda x: x > 0, "a number > 0", remedy, function)


def within(low: float, high: float, /, function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a known number outside [low, high], or NaN; None and traced values pass.

    >>> within(0, 1, discount=1.5)
    Traceback (most recent call last):
        ...
    ValueError: discount must be a number in [0, 1], got 1.5.
    """
    expected = f"a number in [{low}, {high}]"
    for argument, number in numbers.items():
        _require(argument, number, lambda x: (x >= low) & (x <= high), expected, remedy, function)


def finite(function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a known number that is infinite or NaN, as a coefficient must not be.

    >>> finite("KL", coef=float("inf"))
    Traceback (most recent call last):
        ...
    ValueError: KL: coef must be a finite number, got inf.
    """
    for argument, number in numbers.items():
        _require(argument, number, np.isfinite, "a finite number", remedy, function)


def integer(least: int, /, function: str = "", remedy: str = "", **numbers: Any) -> None:
    """Raises ValueError for a number that is not a Python or NumPy integer ≥ `least`; None passes.

    For numbers that decide a shape or a count, which cannot be traced.

    >>> integer(1, group_size=2.0)
    Traceback (most recent call last):
        ...
    ValueError: group_size must be an integer ≥ 1, got 2.0.
    """
    for argument, number in numbers.items():
        if number is not None and not (is_integer(number) and operator.index(number) >= least):
            raise invalid(argument, number, f"an integer ≥ {least}", remedy, function)


def is_integer(number: Any) -> bool:
    """Whether something is an integer whose value is known: Python's, NumPy's or JAX's; no bool.

    >>> is_integer(np.int64(3)), is_integer(3.0), is_integer(True)
    (True, False, False)
    """
    if isinstance(number, bool | np.bool_) or getattr(number, "dtype", None) == np.bool_:
        return False
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def to_int(least: int, /, function: str = "", remedy: str = "", **number: Any) -> int:
    """Returns one number as a Python integer; ValueError unless it is an integer ≥ `least`, also for None.

    >>> to_int(1, k=np.int64(2))
    2
    """
    ((argument, given),) = number.items()
    if given is None:
        raise invalid(argument, given, f"an integer ≥ {least}", remedy, function)
    integer(least, function, remedy, **number)
    return int(given)


def one_of(names: Any, /, function: str = "", remedy: str = "", **choices: Any) -> None:
    """Raises ValueError, with the known names, for a choice that is not among them.

    >>> one_of(("skip", "zero"), holes="cut")
    Traceback (most recent call last):
        ...
    ValueError: holes must be one of 'skip', 'zero', got 'cut'.
    """
    for argument, choice in choices.items():
        if not any(choice is name or (type(choice) is type(name) and choice == name) for name in names):
            raise invalid(argument, choice, f"one of {', '.join(map(repr, names))}", remedy, function)


def _require(argument, number, holds, expected, remedy, function):
    if not is_known(number):
        return
    # Written so that NaN, which compares as False, is refused too.
    if not is_real(number) or not np.all(holds(np.asarray(number))):
        raise invalid(argument, number, expected, remedy, function)
