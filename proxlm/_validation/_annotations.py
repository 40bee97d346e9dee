"""Checks of the kinds of all arguments of a function, by their annotations."""

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from proxlm._validation._arrays import scalar
from proxlm._validation._message import NUMBERS, Verbatim, invalid
from proxlm._validation._numbers import is_integer
from proxlm._validation._trees import arrays

Function = TypeVar("Function", bound=Callable[..., Any])


def typed(function: Function) -> Function:
    """Wraps a function so that an argument of another kind than it is annotated with is refused.

    Kinds are real arrays (ArrayLike, jax.Array), one real number (float, float | jax.Array), trees of arrays
    (chex.ArrayTree), integers, booleans, strings, paths, functions, keys (by the name `key`), mappings and
    sequences, dataclasses and NamedTuples, each or None. Arguments with any other annotation may be anything.

    >>> @typed
    ... def halved(x: jax.Array, k: int = 1) -> jax.Array:
    ...     return x / 2**k
    >>> halved("x")
    Traceback (most recent call last):
        ...
    ValueError: halved: x must be an array of real numbers, got 'x'.
    """
    parameters = inspect.signature(function).parameters.values()
    kinds = {parameter.name: _kind(parameter.name, parameter.annotation) for parameter in parameters}
    names = [x.name for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    rest = next((x.name for x in parameters if x.kind is x.VAR_POSITIONAL), None)
    label = getattr(function, "__name__", "")

    def check(given, named):
        places = names + [rest] * (len(given) - len(names)) if rest else names
        for name, value in [*zip(places, given, strict=False), *named.items()]:
            if kind := kinds.get(name):
                expected, holds, optional = kind
                if not (optional and value is None) and not holds(value):
                    if holds is _is_tree:
                        arrays(label, **{name: value})
                    raise invalid(name, _shown(value), expected, "", label)
                if holds is _is_number:
                    scalar(label, "Use jax.vmap for several.", **{name: value})

    def checked(*given, **named):
        check(given, named)
        return function(*given, **named)

    # of the same module as the function, or doctest would pass its examples by
    closure = checked.__closure__
    own = types.FunctionType(checked.__code__, function.__globals__, label, None, closure)
    return functools.update_wrapper(own, function)  # pyright: ignore[reportReturnType]


def _kind(name, annotation):
    """(what is expected, whether it is given, whether None is too), or None: unchecked."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = set(typing.get_args(annotation)) if is_union else {annotation}
    optional = type(None) in members
    members.discard(type(None))
    origins = {typing.get_origin(x) or x for x in members}
    if name == "key" and jax.Array in members:
        return "a typed key, such as jax.random.key(0)", _is_key, optional
    for owned, required, expected, holds in _KINDS:
        if required & origins and origins <= owned:
            return expected, holds, optional
    if len(members) == 1 and isinstance(kind := next(iter(members)), type):
        if dataclasses.is_dataclass(kind) or kind is jax.sharding.Mesh:
            kinds = (kind, jax.sharding.AbstractMesh) if kind is jax.sharding.Mesh else kind
            return f"a {kind.__name__}", lambda x: isinstance(x, kinds), optional
        if fields := getattr(kind, "_fields", None):
            return f"a {kind.__name__}", lambda x: all(hasattr(x, field) for field in fields), optional
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
    return _is_array(x)  # of its axes `scalar` tells


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


def _is_key(x):
    return jnp.issubdtype(getattr(x, "dtype", float), jax.dtypes.prng_key)


def _is_tree(x):
    leaves = jax.tree.leaves(x)
    return bool(leaves) and all(
        isinstance(leaf, NUMBERS) or hasattr(leaf, "__jax_array__") for leaf in leaves
    )


_ARRAY = {jax.Array, np.ndarray, np.bool_, np.number, bool, int, float, complex}
# (annotations of a kind, one of which must be there, what is expected, whether it is given)
_KINDS = (
    ({float, jax.Array}, {float}, "one real number", _is_number),
    (_ARRAY, {jax.Array, np.ndarray}, "an array of real numbers", _is_array),
    (_ARRAY | {Iterable, Mapping}, {jax.Array}, "a tree of arrays", _is_tree),
    ({int}, {int}, "an integer", _is_whole),
    ({bool}, {bool}, "True or False", _is_flag),
    ({str}, {str}, "a string", lambda x: isinstance(x, str)),
    ({str, os.PathLike}, {os.PathLike}, "a path", lambda x: isinstance(x, str | os.PathLike)),
    ({Callable}, {Callable}, "a function", callable),
    ({Mapping}, {Mapping}, "a mapping with entries", lambda x: isinstance(x, Mapping) and len(x) > 0),
    ({Sequence}, {Sequence}, "a list or tuple", lambda x: isinstance(x, list | tuple)),
)
