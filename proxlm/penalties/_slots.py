"""Axes inside the groups of a leaf, and slots: the shapes that numbers beside a leaf may have."""

import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy

from proxlm import _validation
from proxlm._tree_paths import Path, place

LEAVE_OUT = (
    "leave this leaf out with penalties.masked; to freeze it, use optax.partition with optax.set_to_zero."
)

Shape = tuple[int, ...]
Axes = tuple[int, ...] | None
Slot = Callable[[Path, jax.Array], Shape]


def coordinates(path: Path, leaf: jax.Array) -> Shape:
    """The slot of numbers that may differ between coordinates: the shape of the leaf.

    >>> coordinates((), jax.numpy.ones((2, 3)))
    (2, 3)
    """
    del path
    return leaf.shape


def one_number(path: Path, leaf: jax.Array) -> Shape:
    """The slot of numbers that are one for a whole leaf.

    >>> one_number((), jax.numpy.ones((2, 3)))
    ()
    """
    del path, leaf
    return ()


def axes_of(name: str, axis: int | Sequence[int] | None, argument: str = "axis") -> Axes:
    """Gives an axis argument as a tuple, None for all axes; ValueError unless made of integers.

    >>> axes_of("l2_ball", -1), axes_of("l2_ball", None)
    ((-1,), None)
    """
    if axis is None:
        return None
    axes = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    if not all(map(_validation.is_integer, axes)):
        raise _validation.invalid(argument, axis, "an integer, a tuple of integers or None", "", name)
    return tuple(operator.index(i) for i in axes)


def inside(name: str, axes: Axes, leaf: jax.Array, path: Path = ()) -> tuple[int, ...]:
    """The axes of one leaf that lie inside a group, counted from the front.

    All of them where axes is None or the leaf has rank 0.

    Raises:
      ValueError: if the leaf does not have these axes, or an axis is named twice.

    >>> inside("l2_ball", (-1,), jax.numpy.ones((2, 3)))
    (1,)
    """
    if axes is None or leaf.ndim == 0:
        return tuple(range(leaf.ndim))
    counted = tuple(i + leaf.ndim if i < 0 else i for i in axes)
    if len(set(counted)) == len(counted) and all(0 <= i < leaf.ndim for i in counted):
        return counted
    expected = f"different axes of the leaf of shape {leaf.shape} at {place(path)}"
    raise _validation.invalid("axis", axes, expected, f"Choose others, or {LEAVE_OUT}", name)


def per_group(name: str, axes: Axes) -> Slot:
    """The slot of numbers that may differ between groups: the shape of the leaf, 1 inside a group.

    >>> per_group("l2_ball", (-1,))((), jax.numpy.ones((2, 3)))
    (2, 1)
    """

    def slot(path, leaf):
        reduced = inside(name, axes, leaf, path)
        return tuple(1 if i in reduced else size for i, size in enumerate(leaf.shape))

    return slot
