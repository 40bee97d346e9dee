"""Groups that reach across the leaves of a tree: leaves found by path, their counts matched."""

import functools
from collections.abc import Mapping

import chex
import jax

from proxlm import _validation
from proxlm.penalties import _trees
from proxlm.penalties.groups import _partition


def split(name: str, kernels: Mapping[str, _partition.Partitioner], x: chex.ArrayTree) -> _partition.Groups:
    """Joins the groups of leaves whose paths begin alike and end as `kernels` says.

    The work of `grouping.linked`.

    >>> import jax.numpy as jnp
    >>> column = lambda name, path, leaf: _partition.counting(leaf, [1])
    >>> x = {"a": {"up": jnp.ones((5, 7)), "gate": jnp.ones((4, 7))}}
    >>> split("doc", {"up": column, "gate": column}, x).reduce(_partition.SUM, x)["a"].tolist()
    [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    """
    leaves, structure = _trees.flatten(x)
    members = _members(name, kernels, [_trees.place(path) if path else "" for path, _ in leaves])
    partitions = {i: kernels[end](name, *leaves[i]) for own in members.values() for end, i in own.items()}
    members = {start: list(own.values()) for start, own in members.items()}
    for own in members.values():
        _require_equal_counts(name, {_trees.place(leaves[i][0]): partitions[i] for i in own})

    def reduce(reduction, tree):
        values = jax.tree.leaves(tree)

        def join(own):
            shares = [
                _gather(_partition.reduce_leaf(reduction, values[i], partitions[i]), partitions[i])
                for i in own
            ]
            return functools.reduce(reduction.join, shares)

        return {start: join(own) for start, own in members.items()}

    def apply(fn, given, groups):
        columns = [jax.tree.leaves(tree) for tree in given]
        moved = list(columns[0])
        for start, own in members.items():
            for i in own:
                beside = [_scatter(tree[start], partitions[i]) for tree in groups]
                moved[i] = _partition.apply_leaf(fn, partitions[i], [c[i] for c in columns], beside)
        return jax.tree.unflatten(structure, moved)

    size = lambda i: _partition.size(partitions[i]) * _partition.parts(leaves[i][1])
    sizes = {start: sum(map(size, own)) for start, own in members.items()}
    return _partition.Groups(sizes, reduce, apply)


def _members(name, kernels, places):
    """Gives beginning of the path ↦ {ending ↦ index of the leaf}, each with all the endings."""
    members = {}
    for i, path in enumerate(places):
        ends = [end for end in kernels if path == end or path.endswith("/" + end)]
        if len(ends) > 1:
            given = _validation.Verbatim(f"{ends[0]} and {ends[1]} for {path}")
            raise _validation.invalid("kernels", given, "one ending for a path", "Make one longer.", name)
        for end in ends:
            members.setdefault(path.removesuffix(end).rstrip("/"), {})[end] = i
    unused = [end for end in kernels if not any(end in own for own in members.values())]
    if unused and places:
        expected = f"endings of paths, such as {', '.join(places[:8])}"
        raise _validation.invalid("kernels", _validation.Verbatim(unused[0]), expected, "", name)
    for start, own in members.items():
        missing = [end for end in kernels if end not in own]
        if missing:
            there, gone = (f"{start}/{end}".lstrip("/") for end in (next(iter(own)), missing[0]))
            given = _validation.Verbatim(f"{there} without {gone}, which shares its groups")
            remedy = "Leave out all leaves of a group or none."
            raise _validation.invalid("x", given, "whole in every group", remedy, name)
    return members


def _require_equal_counts(name, partitions):
    shapes = {path: _counted(partition) for path, partition in partitions.items()}
    (first, shape), *others = shapes.items()
    for path, other in others:
        if other != shape:
            given = _validation.Verbatim(f"{shape} at {first} and {other} at {path}")
            remedy = "Name the axes that count the same thing, in the same order."
            raise _validation.invalid("kernels", given, "equal in their numbers of groups", remedy, name)


def _counted(partition):
    return tuple(_partition.counts(partition)[i] for i in partition.order)


def _permutation(partition):
    return [*partition.order, *(i for i in range(len(partition.splits)) if i not in partition.order)]


def _gather(values, partition):
    return values.transpose(_permutation(partition)).reshape(_counted(partition))


def _scatter(group, partition):
    order = _permutation(partition)
    shape = [_partition.counts(partition)[i] for i in order]
    return group.reshape(shape).transpose([order.index(i) for i in range(len(order))])
