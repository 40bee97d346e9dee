"""Checks on functions and optimizers."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from proxlm._validation._message import invalid, is_known


def a_function(function: str = "", remedy: str = "", **functions: Any) -> None:
    """Raises ValueError for what cannot be called.

    >>> a_function("make_step", loss_fn=3.0)
    Traceback (most recent call last):
        ...
    ValueError: make_step: loss_fn must be a function, got 3.0.
    """
    for argument, given in functions.items():
        if not callable(given):
            raise invalid(argument, given, "a function", remedy, function)


def an_optimizer(function: str = "", **optimizers: Any) -> None:
    """Raises ValueError for what has not the two functions of an Optax transformation.

    >>> an_optimizer("make_step", optimizer=0.1)
    Traceback (most recent call last):
        ...
    ValueError: make_step: optimizer must be an Optax transformation, got 0.1. Build one: optax.adam(1e-3).
    """
    for argument, given in optimizers.items():
        if not (callable(getattr(given, "init", None)) and callable(getattr(given, "update", None))):
            remedy = "Build one: optax.adam(1e-3)."
            raise invalid(argument, given, "an Optax transformation", remedy, function)


def is_pure(function: Callable[[Any], Any], argument: Any) -> bool:
    """Whether tracing a function twice gives one program with the same constants.

    >>> numbers = iter(range(10))
    >>> is_pure(lambda x: x + next(numbers), 1.0), is_pure(jax.nn.relu, 1.0)
    (False, True)
    """
    # a new function each time, or the second trace would be the first one's from JAX's cache
    first, second = (jax.make_jaxpr(lambda x: function(x))(argument) for _ in range(2))
    # without the addresses of functions, which differ from trace to trace
    one, other = (re.sub("0x[0-9a-f]+", "", str(traced.jaxpr)) for traced in (first, second))
    return one == other and all(map(_same, first.consts, second.consts))


def _same(one, other):
    if one is other:
        return True
    if not (is_known(one) and is_known(other)):
        return False
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
