"""Checks on shapes and dtypes of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm._validation._message import invalid


def same_shape(function: str = "", **arrays: Any) -> None:
    """Raises ValueError for an array that has neither the shape of the first one nor is a scalar.

    >>> same_shape("dpo", chosen=np.zeros(3), rejected=np.zeros(2))
    Traceback (most recent call last):
        ...
    ValueError: dpo: rejected.shape must be (3,), the shape of chosen, or (), got (2,). Only scalars are ...
    """
    (first, *others) = arrays.items()
    shape = np.shape(first[1])
    for argument, array in others:
        if np.shape(array) not in ((), shape):
            remedy = "Only scalars are broadcast: use jnp.broadcast_to."
            expected = f"{shape}, the shape of {first[0]}, or ()"
            raise invalid(f"{argument}.shape", np.shape(array), expected, remedy, function)


def one_sequence(function: str = "", **arrays: Any) -> None:
    """Raises ValueError for an array that is not a vector [T].

    A formula along time would otherwise run along a batch without an error.

    >>> one_sequence("gae", mask=np.ones((2, 3), bool))
    Traceback (most recent call last):
        ...
    ValueError: gae: mask.shape must be [T], one sequence, got (2, 3). Use jax.vmap for a batch.
    """
    for argument, array in arrays.items():
        if np.ndim(array) != 1:
            remedy = "Use jax.vmap for a batch."
            raise invalid(f"{argument}.shape", np.shape(array), "[T], one sequence", remedy, function)


def scalar(function: str = "", remedy: str = "Use jax.vmap for several.", **numbers: Any) -> None:
    """Raises ValueError for a number that is an array with axes.

    >>> scalar("gae", discount=np.ones(3))
    Traceback (most recent call last):
        ...
    ValueError: gae: discount.shape must be (), one number, got (3,). Use jax.vmap for several.
    """
    for argument, number in numbers.items():
        if np.shape(number) != ():
            raise invalid(f"{argument}.shape", np.shape(number), "(), one number", remedy, function)


def boolean(function: str = "", **masks: Any) -> None:
    """Raises ValueError for a mask that is not boolean: of numbers, it would be unclear what a 2 means.

    >>> boolean(mask=np.ones(3))
    Traceback (most recent call last):
        ...
    ValueError: mask.dtype must be bool, got dtype('float64'). Write `mask != 0` if zeros mark what ...
    """
    for argument, mask in masks.items():
        dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
        if dtype != np.bool_:
            remedy = f"Write `{argument} != 0` if zeros mark what does not count."
            raise invalid(f"{argument}.dtype", dtype, "bool", remedy, function)


def floats(*arrays: Any) -> tuple[jax.Array, ...]:
    """The arrays as JAX arrays of at least float32.

    >>> [x.dtype.name for x in floats(1, np.ones(2, np.float16))]
    ['float32', 'float32']
    """
    return tuple(jnp.asarray(x, jnp.result_type(x, jnp.float32)) for x in arrays)
