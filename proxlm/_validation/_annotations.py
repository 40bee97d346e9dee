"""Checks of the kinds of all arguments of a function, by their annotations."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from proxlm._validation._message import NUMBERS, Verbatim, invalid
from proxlm._validation._numbers import is_integer

Function = TypeVar("Function", bound=Callable[..., Any])


def typed(function: Function) -> Function:
    """Wraps a function so that an argument of another kind than it is annotated with is refused.

    Kinds are real arrays (ArrayLike, jax.Array), one real number (float, float | jax.Array), integers,
    booleans and functions, each or None. Arguments with any other annotation are not looked at.

    >>> typed(jnp.cumsum)
    <function cumsum at ...>
    >>> @typed
    ... def halved(x: jax.Array, k: int = 1) -> jax.Array:
    ...     return x / 2**k
    >>> halved("x")
    Traceback (most recent call last):
        ...
    ValueError: halved: x must be an array of real numbers, got 'x'.
    """
    parameters = inspect.signature(function).parameters.values()
    kinds = {parameter.name: _kind(parameter.annotation) for parameter in parameters}
    names = [x.name for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    rest = next((x.name for x in parameters if x.kind is x.VAR_POSITIONAL), None)
    label = getattr(function, "__name__", "")

    def check(given, named):
        places = names + [rest] * (len(given) - len(names)) if rest else names
        for name, value in [*zip(places, given, strict=False), *named.items()]:
            if kind := kinds.get(name):
                expected, holds, remedy, optional = kind
                if not (optional and value is None) and not holds(value):
                    raise invalid(name, _shown(value), expected, remedy, label)

    def checked(*given, **named):
        check(given, named)
        return function(*given, **named)

    # of the same module as the function, or doctest would pass its examples by
    closure = checked.__closure__
    own = types.FunctionType(checked.__code__, function.__globals__, label, None, closure)
    return functools.update_wrapper(own, function)  # pyright: ignore[reportReturnType]


def _kind(annotation):
    """(what is expected, whether it is given, the remedy, whether None is too), or None: unchecked."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = set(typing.get_args(annotation)) if is_union else {annotation}
    optional = type(None) in members
    members.discard(type(None))
    for owned, required, expected, holds, remedy in _KINDS:
        if required & members and members <= owned:
            return expected, holds, remedy, optional
    if members and all(typing.get_origin(x) is Callable or x is Callable for x in members):
        return "a function", callable, "", optional
    return None


def _is_array(x):
    if isinstance(x, list | tuple):
        try:
            np.shape(x)
        except ValueError:  # ragged
            return False
        except TypeError:  # it holds traced numbers
            pass
        return all(map(_is_array, x))
    return (isinstance(x, NUMBERS) or hasattr(x, "__array__") or hasattr(x, "__jax_array__")) and _is_real(x)


def _is_number(x):
    return _is_array(x) and np.ndim(x) == 0


def _is_real(x):
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return dtype == np.bool_ or (
        jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)
    )


def _is_whole(x):
    return is_integer(x) or isinstance(x, jax.core.Tracer)


def _is_flag(x):
    return isinstance(x, bool | np.bool_ | jax.core.Tracer)


def _shown(x):
    if isinstance(x, np.ndarray | jax.Array) and x.size > 1:
        return Verbatim(f"{x.dtype} of shape {x.shape}")
    return x


_NUMBER, _ARRAY = {float, jax.Array}, {jax.Array, np.ndarray, np.bool_, np.number, bool, int, float, complex}
# (annotations of a kind, one of which must be there, what is expected, whether it is given, the remedy)
_KINDS = (
    (_NUMBER, {float}, "one real number", _is_number, "Use jax.vmap for several."),
    (_ARRAY, {jax.Array, np.ndarray}, "an array of real numbers", _is_array, ""),
    ({int}, {int}, "an integer", _is_whole, ""),
    ({bool}, {bool}, "True or False", _is_flag, ""),
)
