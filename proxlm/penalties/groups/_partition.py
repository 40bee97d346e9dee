"""Sums over the groups of a leaf, and one number a group handed back to its coordinates."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp

from proxlm.penalties import _description, _trees


class Reduction(NamedTuple):
    """A sum, or what is like one.

    Attributes:
      whole: (array, axis, keepdims) ↦ the reduced array.
      join: two numbers ↦ one.
      start: what joins without effect.
    """

    whole: Callable[..., jax.Array]
    join: Callable[[jax.Array, jax.Array], jax.Array]
    start: float


SUM = Reduction(jnp.sum, jax.lax.add, 0.0)
# Of numbers ≥ 0.
LARGEST = Reduction(functools.partial(jnp.max, initial=0.0), jax.lax.max, 0.0)


class Groups(NamedTuple):
    """The groups of one tree. A *tree of groups* holds one number a group.

    Attributes:
      sizes: a tree of groups with one integer for each of its arrays, the size of those groups; or an array
        of integers where these differ in size.
      reduce: (reduction, x) ↦ the tree of groups that reduces each group's coordinates.
      apply: (fn, trees like x, trees of groups) ↦ fn (leaves, numbers that broadcast to them) on
        every leaf that is in a group; other leaves are those of the first tree.
    """

    sizes: chex.ArrayTree
    reduce: Callable[[Reduction, chex.ArrayTree], chex.ArrayTree]
    apply: Callable[[Callable, Sequence[chex.ArrayTree], Sequence[chex.ArrayTree]], chex.ArrayTree]


class Partition(NamedTuple):
    """The partition of one leaf into groups, axis by axis.

    Attributes:
      splits: (a, n, b) for each axis of size a·n·b in row-major order: the axis counts n groups,
        and a·b of its places are inside each.
      order: the axes that count groups. Linked leaves match their counts in this order.
    """

    splits: tuple[tuple[int, int, int], ...]
    order: tuple[int, ...]


Partitioner = Callable[[str, _trees.Path, Any], Partition]


class _Rules(NamedTuple):
    split: Callable[[str, chex.ArrayTree], Groups]
    partition: Partitioner | None = None


class Grouping(_Rules):
    """A rule that splits trees of arrays into groups, as made by the functions of `grouping`.

    Attributes:
      split: (name for messages, tree of arrays) ↦ its `Groups`.
      partition: (name, path, leaf) ↦ the `Partition` of one leaf; None where leaves are cut together.
    """

    _call: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None

    def described(self, name: str, *positional: Any, **arguments: Any) -> Self:
        """Returns the same rule as a grouping that prints as the call of `name`.

        >>> by_leaf(lambda name, path, leaf: counting(leaf, [])).described("axes", axis=0)
        axes(axis=0)
        """
        described = self._replace()
        described._call = name, positional, arguments
        return described

    def __repr__(self) -> str:
        """Returns the call that made the grouping, or the functions of one made by hand."""
        return _description.call(*self._call) if self._call else super().__repr__()


def counting(leaf: jax.Array, order: Sequence[int]) -> Partition:
    """The partition that counts the given axes, index by index, and has all others inside.

    >>> counting(jnp.ones((4, 3)), [1]).splits
    ((4, 1, 1), (1, 3, 1))
    """
    splits = [(1, n, 1) if i in order else (n, 1, 1) for i, n in enumerate(leaf.shape)]
    return Partition(tuple(splits), tuple(order))


def counts(partition: Partition) -> tuple[int, ...]:
    """The shape of a leaf's numbers a group: the leaf's rank, 1 for axes inside.

    >>> counts(Partition(((3, 2, 4), (5, 1, 1)), (0,)))
    (2, 1)
    """
    return tuple(n for _, n, _ in partition.splits)


def size(partition: Partition) -> int:
    """The number of coordinates in a group.

    >>> size(Partition(((3, 2, 4), (5, 1, 1)), (0,)))
    60
    """
    return math.prod(a * b for a, _, b in partition.splits)


def parts(leaf: jax.Array) -> int:
    """The real numbers in one coordinate: 2 for complex leaves, whose coordinates are groups themselves.

    >>> parts(jnp.ones(3)), parts(jnp.ones(3, jnp.complex64))
    (1, 2)
    """
    return 2 if jnp.iscomplexobj(leaf) else 1


def reduce_leaf(reduction: Reduction, leaf: jax.Array, partition: Partition) -> jax.Array:
    """Reduces the coordinates of each group to one number; the result has the shape `counts`.

    >>> reduce_leaf(SUM, jnp.arange(8.0), Partition(((2, 2, 2),), (0,))).tolist()
    [10.0, 18.0]
    """
    inside = tuple(i for i, (_, n, _) in enumerate(partition.splits) if n == 1)
    left = reduction.whole(leaf, axis=inside, keepdims=True)
    if not _mixed(partition):
        return left
    # Neighbours by windows: on CPU a reduction of a reshaped array is ten times slower.
    window = [1 if n == 1 else b for _, n, b in partition.splits]
    left = jax.lax.reduce_window(left, reduction.start, reduction.join, window, window, "valid")
    rest = [k for a, n, _ in partition.splits for k in ((1, 1) if n == 1 else (a, n))]
    return reduction.whole(left.reshape(rest), axis=tuple(range(0, len(rest), 2)))


def apply_leaf(
    fn: Callable, partition: Partition, leaves: Sequence[jax.Array], groups: Sequence[jax.Array]
) -> jax.Array:
    """Computes fn (leaves, groups) with each group's number beside the group's coordinates.

    >>> pair = Partition(((1, 2, 2),), (0,))
    >>> apply_leaf(jnp.multiply, pair, [jnp.ones(4)], [jnp.array([2.0, 5.0])]).tolist()
    [2.0, 2.0, 5.0, 5.0]
    """
    if not _mixed(partition):
        return fn(*leaves, *groups)
    view = [n for split in partition.splits for n in split]
    shape = [n for _, count, _ in partition.splits for n in (1, count, 1)]
    spread = lambda g: jnp.broadcast_to(g.reshape(shape), view).reshape(leaves[0].shape)
    return fn(*leaves, *map(spread, groups))


def by_leaf(partition: Partitioner) -> Grouping:
    """The grouping that cuts every leaf by itself; its trees of groups are built as x is.

    >>> rows = by_leaf(lambda name, path, leaf: counting(leaf, [0]))
    >>> rows.split("doc", {"w": jnp.ones((4, 3))}).sizes
    {'w': 3}
    """

    def split(name, x):
        leaves, structure = _trees.flatten(x)
        partitions = [partition(name, *pair) for pair in leaves]
        build = lambda values: jax.tree.unflatten(structure, list(values))

        def reduce(reduction, tree):
            pairs = zip(jax.tree.leaves(tree), partitions, strict=True)
            return build(reduce_leaf(reduction, *pair) for pair in pairs)

        def apply(fn, given, groups):
            columns, beside = _rows(given, len(partitions)), _rows(groups, len(partitions))
            rows = zip(partitions, columns, beside, strict=True)
            return build(apply_leaf(fn, *row) for row in rows)

        sizes = (size(own) * parts(leaf) for own, (_, leaf) in zip(partitions, leaves, strict=True))
        return Groups(build(sizes), reduce, apply)

    return Grouping(split, partition)


def _rows(given, count):
    """Turns trees into one list of their leaves for each place."""
    columns = [jax.tree.leaves(tree) for tree in given]
    return [[column[i] for column in columns] for i in range(count)]


def _mixed(partition):
    return any(n > 1 and a * b > 1 for a, n, b in partition.splits)
