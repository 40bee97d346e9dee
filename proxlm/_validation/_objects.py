"""Checks on functions and optimizers."""

from typing import Any

from proxlm._validation._message import invalid


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
