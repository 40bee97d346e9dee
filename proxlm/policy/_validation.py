"""Checks on arguments, made before any computation.

Shapes are static and always checked. The value of a number is checked only when it is known, so
that hyper-parameters may be traced by `jit`, `vmap` and `grad`.
"""

import jax
import jax.numpy as jnp
import numpy as np


def same_shape(**arrays) -> None:
    """Asks that all arrays have the shape of the first; scalars may stand for constant arrays.

    Raises:
      ValueError: if an array is neither a scalar nor of the first one's shape.

    >>> same_shape(values=np.zeros(3), returns=np.zeros(3), advantages=0.5)
    """
    (first, *others) = arrays.items()
    expected = jnp.shape(first[1])
    for name, array in others:
        if jnp.shape(array) not in ((), expected):
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}, but {first[0]} has {expected}. Give both "
                "the same shape, for instance with jnp.broadcast_to; only scalars are broadcast."
            )


def one_sequence(**arrays) -> None:
    """Asks for vectors [T], because a formula along time would silently run along a batch.

    Raises:
      ValueError: if an array has another number of axes.

    >>> one_sequence(mask=np.array([True, False]))
    """
    for name, array in arrays.items():
        if jnp.ndim(array) != 1:
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}; expected one sequence, [T]. Use jax.vmap for a batch."
            )


def boolean(**masks) -> None:
    """Asks for boolean arrays, because a mask of numbers hides what a fraction or a 2 would mean.

    Raises:
      ValueError: if an array is not of dtype bool.

    >>> boolean(mask=np.array([True, False]))
    """
    for name, mask in masks.items():
        if jnp.result_type(mask) != jnp.bool_:
            raise ValueError(
                f"{name} has dtype {jnp.result_type(mask)}; expected bool. Write `{name} != 0` if "
                "its zeros mark what does not count."
            )


def at_least(bound: float, **numbers) -> None:
    """Asks that every known number is at least `bound`; None and traced values pass.

    Raises:
      ValueError: if a number is NaN or below the bound.

    >>> at_least(0.0, kl_coef=0.1, dual_clip=None)
    """
    for name, number in numbers.items():
        if _known(number) and not np.all(np.asarray(number) >= bound):
            raise ValueError(f"{name} is {number}; expected a number of at least {bound}.")


def within(low: float, high: float, **numbers) -> None:
    """Asks that every known number lies in [low, high]; None and traced values pass.

    Raises:
      ValueError: if a number is NaN or outside.

    >>> within(0.0, 1.0, discount=1.0)
    """
    for name, number in numbers.items():
        value = np.asarray(number) if _known(number) else None
        if value is not None and not np.all((value >= low) & (value <= high)):
            raise ValueError(f"{name} is {number}; expected a number from {low} to {high}.")


def positive(**numbers) -> None:
    """Asks that every known number is above 0; None and traced values pass.

    Raises:
      ValueError: if a number is NaN, 0 or negative.

    >>> positive(epsilon=1e-8)
    """
    for name, number in numbers.items():
        if _known(number) and not np.all(np.asarray(number) > 0):
            raise ValueError(f"{name} is {number}; expected a number above 0.")


def one_of(names, **choices) -> None:
    """Asks that every choice is one of the known names.

    Raises:
      ValueError: listing the known names.

    >>> one_of(("skip", "zero"), holes="skip")
    """
    for name, choice in choices.items():
        if choice not in names:
            raise ValueError(f"{name} is {choice!r}; expected one of {', '.join(map(repr, names))}.")


def floats(*arrays) -> tuple[jax.Array, ...]:
    """The arrays in at least float32.

    >>> [x.dtype.name for x in floats(1, jnp.ones(2, jnp.bfloat16))]
    ['float32', 'float32']
    """
    return tuple(jnp.asarray(x, jnp.result_type(x, jnp.float32)) for x in arrays)


def _known(number) -> bool:
    return number is not None and not isinstance(number, jax.core.Tracer)
