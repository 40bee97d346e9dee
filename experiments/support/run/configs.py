"""What the config of every experiment has to be, whatever it is about."""

import dataclasses
import math
from typing import Any

MOST = 2**31 - 1  # of an integer on the way to JAX


def check(config: Any) -> None:
    """Asks that every number of a dataclass is finite, not negative and of a size that JAX holds.

    Where a default is a positive integer, 0 is refused: it counts what there has to be one of.
    Where it is a tuple that is not empty, an empty one is.  Of other kinds of config nothing is
    asked.

    Raises:
      ValueError: naming the field, what it holds and what is expected.
    """
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if value == () and isinstance(default, tuple) and default:
            raise ValueError(f"{field.name} is empty: expected at least one entry")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(field.name, number, default)


def _check_number(name, number, default):
    least = 1 if type(default) is int and default > 0 else 0
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{name}={number}: expected a finite number of at least {least}")
    if number < least:
        raise ValueError(f"{name}={number}: expected at least {least}")
    if isinstance(number, int) and number > MOST:
        raise ValueError(f"{name}={number}: expected at most {MOST}")
