"""Functions with their settings bound, as data: the parts a recipe is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Piece:
    """A function and keyword arguments, made by `piece`; call it with the positional ones.

    A pytree: numbers may be traced, vmapped and scheduled, the function and the rest are static.
    Two pieces of one function that differ in numbers alone share a compilation.

    Attributes:
      fn: the function.
      numbers: name -> float, array or another piece.
      static: (name, value) pairs of all others.

    >>> half = piece(np.multiply, where=True)
    >>> half(0.5, 4.0).item()
    2.0
    """

    fn: Callable
    numbers: dict[str, Any]
    static: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *args):
        """Calls the function with the bound settings."""
        return self.fn(*args, **self.numbers, **dict(self.static))

    def replace(self, **settings) -> "Piece":
        """The same function with some settings changed.

        >>> piece(round, ndigits=1).replace(ndigits=2)(0.123)
        0.12
        """
        return piece(self.fn, **dict(self.static) | self.numbers | settings)

    def tree_flatten(self):
        """Numbers are children; function, names and the rest are not."""
        return tuple(self.numbers.values()), (self.fn, tuple(self.numbers), self.static)

    @classmethod
    def tree_unflatten(cls, static, children):
        """Puts numbers back, whatever they have become."""
        fn, names, rest = static
        return cls(fn, dict(zip(names, children, strict=True)), rest)


def piece(fn: Callable, **settings) -> Piece:
    """Binds keyword arguments to a function.

    Args:
      fn: any function; two pieces share a compilation only if it is the same object, so define it
        once, at the top of a module.
      **settings: floats, arrays and pieces are numbers; everything else, integers included, is
        static and must be hashable.

    Returns:
      A `Piece`.

    >>> jax.tree.leaves(piece(round, ndigits=1)), jax.tree.leaves(piece(max, default=0.5))
    ([], [0.5])
    """
    traced = (float, np.floating, np.ndarray, jax.Array, Piece)
    numbers = {name: x for name, x in sorted(settings.items()) if isinstance(x, traced)}
    rest = tuple((name, x) for name, x in sorted(settings.items()) if name not in numbers)
    return Piece(fn, numbers, rest)
