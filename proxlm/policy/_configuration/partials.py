"""Functions with their settings bound, as data: the parts of a configuration."""

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from proxlm import _validation

__all__ = ["Partial", "name_of", "parameters_of", "partial", "takes_float"]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Partial:
    """A function and keyword arguments, made by `partial`; call it with the positional ones.

    A pytree: numbers may be traced, vmapped and scheduled, the function and the rest are static.
    Two partials of one function that differ in numbers alone share a compilation.

    Attributes:
      fn: the function.
      numbers: name -> float, array or another partial.
      static: (name, value) pairs of all others.

    >>> half = partial(np.multiply, where=True)
    >>> half(0.5, 4.0).item()
    2.0
    """

    fn: Callable[..., Any]
    numbers: dict[str, Any]
    static: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that are bound.

        >>> partial(round, ndigits=1).settings
        {'ndigits': 1}
        """
        return dict(self.static) | self.numbers

    def __repr__(self) -> str:
        """The call that makes it, with the function's name."""
        settings = "".join(f", {name}={x!r}" for name, x in self.settings.items())
        return f"partial({name_of(self.fn)}{settings})"

    def __call__(self, *args: Any) -> Any:
        """Calls the function with the bound settings."""
        return self.fn(*args, **self.settings)

    def replace(self, **settings: Any) -> "Partial":
        """The same function with some settings changed.

        >>> partial(round, ndigits=1).replace(ndigits=2)(0.123)
        0.12
        """
        return partial(self.fn, **self.settings | settings)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Numbers are children; function, names and the rest are not."""
        return tuple(self.numbers.values()), (self.fn, tuple(self.numbers), self.static)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], children: Iterable[Any]) -> "Partial":
        """Puts numbers back, whatever they have become."""
        fn, names, rest = static
        return cls(fn, dict(zip(names, children, strict=True)), rest)


def partial(fn: Callable[..., Any], **settings: Any) -> Partial:
    """Binds keyword arguments to a function.

    Args:
      fn: any function; two partials share a compilation only if it is the same object, so define it
        once, at the top of a module.
      **settings: floats, arrays and partials are numbers, and so is an integer where the function has
        a float; everything else is static and must be hashable.

    Raises:
      ValueError: if the function has no argument of that name.

    >>> jax.tree.leaves(partial(round, ndigits=1)), jax.tree.leaves(partial(max, default=0.5))
    ([], [0.5])
    """
    parameters = parameters_of(fn)
    for name, value in settings.items():
        if (
            parameters
            and name not in parameters
            and not any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters.values())
        ):
            close = difflib.get_close_matches(name, parameters, n=1)
            remedy = f"Did you mean {close[0]}? " if close else ""
            remedy += f"It has {', '.join(parameters)}."
            raise _validation.invalid(name, value, f"an argument of {name_of(fn)}", remedy, "partial")
    is_number = lambda name, x: (
        isinstance(x, float | np.floating | np.ndarray | jax.Array | Partial)
        or (isinstance(x, int) and not isinstance(x, bool) and takes_float(parameters.get(name)))
    )
    numbers = {name: _as_float(x) for name, x in sorted(settings.items()) if is_number(name, x)}
    rest = tuple((name, x) for name, x in sorted(settings.items()) if name not in numbers)
    return Partial(fn, numbers, rest)


def name_of(fn: Callable[..., Any]) -> str:
    """The name of a function, for messages.

    >>> name_of(partial(round, ndigits=1))
    'round'
    """
    fn = getattr(fn, "fn", fn)
    return getattr(fn, "__name__", type(fn).__name__)


def parameters_of(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function by name; empty where Python cannot tell them.

    >>> list(parameters_of(round))
    ['number', 'ndigits']
    """
    try:
        return dict(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        return {}


def takes_float(parameter: inspect.Parameter | None) -> bool:
    """Whether an argument is a float by its annotation, or by its default.

    >>> takes_float(parameters_of(lambda share=0.5: share)["share"])
    True
    """
    if parameter is None:
        return False
    annotated = parameter.annotation is float or float in typing.get_args(parameter.annotation)
    return annotated or isinstance(parameter.default, float)


def _as_float(number):
    return float(number) if isinstance(number, int) else number
