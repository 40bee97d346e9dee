"""Groups given by a label for each coordinate: of unequal sizes, with some coordinates in none."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _slots, _trees
from proxlm.penalties.groups import _partition


class Labelled(NamedTuple):
    """The groups of one leaf.

    Attributes:
      places: for each coordinate its group, or the number of groups if it is in none; the rank of the leaf,
        1 for the axes along which all are alike.
      members: for groups of about one size, the coordinates of `places` in each, [groups, size], filled up
        with the number of coordinates.
      order: the groups, as they follow one another in `members`.
      sizes: the number of coordinates of the leaf in each group.
    """

    places: np.ndarray
    members: Sequence[np.ndarray]
    order: np.ndarray
    sizes: np.ndarray


def split(name: str, labels: chex.ArrayTree, axis: int | None, x: chex.ArrayTree) -> _partition.Groups:
    """The groups of a tree by labels; the work of `grouping.by_label`.

    >>> groups = split("doc", np.array([1, 0, -1, 1]), None, jnp.array([1.0, 2.0, 4.0, 8.0]))
    >>> groups.reduce(_partition.SUM, jnp.array([1.0, 2.0, 4.0, 8.0])).tolist(), groups.sizes.tolist()
    ([2.0, 9.0], [1, 2])
    """
    leaves, structure = _trees.flatten(x)
    given = _trees.pair(name, "labels", labels, x)
    rows = [_labelled(name, path, leaf, own, axis) for (path, leaf), own in zip(leaves, given, strict=True)]
    build = lambda values: jax.tree.unflatten(structure, list(values))

    def reduce(reduction, tree):
        return build(_reduce(reduction, *pair) for pair in zip(jax.tree.leaves(tree), rows, strict=True))

    def apply(fn, trees, groups):
        columns, beside = zip(*map(jax.tree.leaves, trees), strict=True), [*map(jax.tree.leaves, groups)]
        return build(
            _apply(fn, row, own, [numbers[i] for numbers in beside])
            for i, (row, own) in enumerate(zip(rows, columns, strict=True))
        )

    sizes = [row.sizes * _partition.parts(leaf) for row, (_, leaf) in zip(rows, leaves, strict=True)]
    return _partition.Groups(build(sizes), reduce, apply)


def integers(function: str, labels: Any) -> Any:
    """Gives a tree of arrays of integers; ValueError where labels are not integers, or not known.

    >>> integers("by_label", [0, -1, 0]).tolist()
    [0, -1, 0]
    """
    if isinstance(labels, list | tuple) and all(map(_validation.is_integer, labels)):
        labels = np.asarray(labels, int)
    remedy = "Negative ones are for coordinates in no group."
    for own in jax.tree.leaves(labels):
        if not _validation.is_known(own) or not np.issubdtype(np.asarray(own).dtype, np.integer):
            raise _validation.invalid("labels", own, "known integers", remedy, function)
    return labels


def of_lists(function: str, groups: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """The labels of `size` coordinates whose groups are lists of indices; ValueError for others.

    >>> of_lists("by_index", [[0, 2], [1]], 4).tolist()
    [0, 1, 0, -1]
    """
    labels = np.full(size, -1)
    for label, own in enumerate(groups):
        for i in own:
            if not _validation.is_integer(i) or not 0 <= i < size or labels[i] >= 0:
                given = _validation.Verbatim(f"{i} in list {label}")
                expected = f"lists of different integers in [0, {size})"
                raise _validation.invalid("groups", given, expected, "", function)
            labels[i] = label
    return labels


def _labelled(name, path, leaf, labels, axis):
    labels = np.asarray(labels)
    if axis is not None and leaf.ndim:
        (i,) = _slots.inside(name, (axis,), leaf, path)
        labels = labels.reshape([-1 if j == i else 1 for j in range(leaf.ndim)])
    same_rank = labels.ndim == leaf.ndim
    if not same_rank or any(n not in (1, m) for n, m in zip(labels.shape, leaf.shape, strict=True)):
        shown = _validation.Verbatim(f"shape {labels.shape}")
        expected = f"of a shape that broadcasts to {leaf.shape}"
        remedy = "Give a label for each coordinate, or name the axis that they lie along."
        raise _validation.invalid(_trees.label("labels", path), shown, expected, remedy, name)
    count = int(labels.max(initial=-1)) + 1
    places = np.where(labels < 0, count, labels)
    alike = leaf.size // max(labels.size, 1)
    counts = np.bincount(places.ravel(), minlength=count + 1)[:count]
    members, order = _members(places.ravel(), counts)
    return Labelled(places, members, order, counts * alike)


def _members(places, counts):
    """Lists the coordinates of each group, the groups of between 2ᵏ⁻¹ and 2ᵏ coordinates in one array."""
    ends = np.cumsum(counts)
    sorted_places = np.argsort(places, kind="stable")
    width = np.where(counts > 0, 2 ** np.ceil(np.log2(np.maximum(counts, 1))), 0).astype(int)
    members, order = [], []
    for k in np.unique(width):
        groups = np.flatnonzero(width == k)
        column = np.arange(k)[None]
        inside = column < counts[groups][:, None]
        at = np.where(inside, (ends - counts)[groups][:, None] + column, 0)
        members.append(np.where(inside, sorted_places[at] if places.size else at, places.size))
        order.append(groups)
    return members, np.concatenate(order) if order else np.zeros(0, int)


def _reduce(reduction, leaf, row):
    alike = tuple(i for i, n in enumerate(row.places.shape) if n != leaf.shape[i])
    left = jnp.ravel(reduction.whole(leaf, axis=alike, keepdims=True))
    # The last entry fills up: it adds nothing to numbers ≥ 0.
    left = jnp.concatenate([left, jnp.zeros(1, left.dtype)])
    sums = [reduction.whole(left[at], axis=1, keepdims=False) for at in row.members]
    found = jnp.zeros(row.sizes.shape, left.dtype)
    return found.at[row.order].set(jnp.concatenate(sums), unique_indices=True) if sums else found


def _apply(fn: Callable, row, leaves, groups):
    beside = [jnp.concatenate([numbers, numbers[:1]])[row.places] for numbers in groups if row.sizes.size]
    if not row.sizes.size:
        return leaves[0]
    return jnp.where(row.places == row.sizes.size, leaves[0], fn(*leaves, *beside))
