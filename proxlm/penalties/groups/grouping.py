"""Partitions of a tree of arrays into groups of coordinates: by axes, heads, blocks, across leaves.

A tree of groups has the structure of x: at each leaf an array with one entry a group, 1 for axes inside.
"""

from collections.abc import Mapping, Sequence

import chex

from proxlm import _validation
from proxlm.penalties import _slots, _trees
from proxlm.penalties.groups import _across_leaves, _labels, _partition
from proxlm.penalties.groups._partition import Grouping

__all__ = ["Grouping", "axes", "blocks", "by_index", "by_label", "heads", "linked", "slices"]


def axes(axis: int | tuple[int, ...] | None = 0) -> Grouping:
    """Groups whose coordinates lie along the given axes, as a reduction takes them.

    For a kernel [inputs, units], axis=0 makes a group of each unit's incoming weights and axis=1
    one of each input's outgoing weights. A leaf of rank 0 is a group of one.

    Args:
      axis: the axes inside a group, counted from the end if negative; None for all of them.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    >>> import jax.numpy as jnp
    >>> axes(0).split("doc", jnp.ones((4, 3))).sizes
    4
    """
    given = _slots.axes_of("axes", axis)

    def partition(name, path, leaf):
        inside = _slots.inside(name, given, leaf, path)
        return _partition.counting(leaf, [i for i in range(leaf.ndim) if i not in inside])

    return _partition.by_leaf(partition).described("axes", axis=axis)


def slices(axis: int | tuple[int, ...] = 0) -> Grouping:
    """One group for each index along an axis, with all that lies there: `axes` turned round.

    slices(0) makes a group of each expert of a kernel [E, D, F], of each layer of a stacked one or
    of each row of an embedding; `linked` makes one of all kernels of an expert.

    Args:
      axis: the axes that count groups, counted from the end if negative.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    >>> import jax.numpy as jnp
    >>> slices(0).split("doc", jnp.ones((2, 4, 3))).sizes
    12
    """
    given = _slots.axes_of("slices", () if axis is None else axis)
    count = lambda name, path, leaf: _partition.counting(leaf, _slots.inside(name, given, leaf, path))
    return _partition.by_leaf(count).described("slices", axis=axis)


def heads(num_heads: int, axis: int = -1, packed: int = 1, apart: int | tuple[int, ...] = ()) -> Grouping:
    """Attention heads along an axis of size packed · heads · head width.

    A packed kernel [D, 3·H·d] holds the queries of all heads, then the keys, then the values:
    packed=3 makes one group of a head's three, and heads(3 * H) leaves them apart. Kernels that
    keep the three of a head side by side, [D, H·3·d], need no `packed`. The output's kernel
    [H·d, D] has its heads along axis=0, and `linked` joins the two.

    Args:
      num_heads: H.
      axis: the axis that holds the heads. All other axes are inside the groups, but for `apart`.
      packed: how many projections lie one after another along the axis.
      apart: axes whose indices are cut from one another, such as the layers of a stacked kernel.

    Raises:
      ValueError: if H or packed is no positive integer; and, on use, if the axis does not divide.

    >>> import jax.numpy as jnp
    >>> heads(2, packed=3).split("doc", jnp.ones((5, 12))).sizes
    30
    """
    _validation.to_int(1, "heads", num_heads=num_heads)
    _validation.to_int(1, "heads", packed=packed)
    given = (_slots.axes_of("heads", apart, "apart") or ()) + (_slots.axes_of("heads", axis) or ())

    def partition(name, path, leaf):
        order = _slots.inside(name, given, leaf, path)
        splits = list(_partition.counting(leaf, order).splits)
        for i in order[-1:]:
            width = _share(name, path, leaf, i, packed * num_heads)
            splits[i] = (packed, num_heads, width)
        return _partition.Partition(tuple(splits), order)

    made = _partition.by_leaf(partition)
    return made.described("heads", num_heads=num_heads, axis=axis, packed=packed, apart=apart or None)


def blocks(size: int | tuple[int | None, ...], axis: int | tuple[int, ...] = -1) -> Grouping:
    """Blocks of neighbours: `size` places along an axis, or a tile along several.

    blocks(4) cuts rows into runs of four, blocks((16, 16), (0, 1)) a matrix into tiles, and
    blocks((4, None), (0, 1)) into bands of four rows.

    Args:
      size: places in a block, one for each axis; None for the whole axis.
      axis: the axes to cut. Along all others each index has blocks of its own.

    Raises:
      ValueError: if a size is no positive integer or their number not that of the axes; and, on use, if an
        axis does not divide into blocks.

    >>> import jax.numpy as jnp
    >>> blocks((2, 3), (0, 1)).split("doc", jnp.ones((4, 6))).sizes
    6
    """
    given = _slots.axes_of("blocks", axis) or ()
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(sizes) != len(given):
        raise _validation.invalid("size", size, f"one entry for each axis of {axis!r}", "", "blocks")
    for k in sizes:
        _validation.to_int(1, "blocks", size=1 if k is None else k)

    def partition(name, path, leaf):
        splits = [(1, n, 1) for n in leaf.shape]
        blocked = _slots.inside(name, given, leaf, path)
        for i, k in zip(blocked, sizes[: leaf.ndim], strict=True):
            count = 1 if k is None else _share(name, path, leaf, i, k)
            splits[i] = (1, count, leaf.shape[i] if k is None else k)
        return _partition.Partition(tuple(splits), tuple(range(leaf.ndim)))

    return _partition.by_leaf(partition).described("blocks", size=size, axis=axis)


def by_label(labels: chex.ArrayTree, axis: int | None = None) -> Grouping:
    """Groups by a label for each coordinate: of any sizes, and with coordinates in no group.

    Coordinates with the same label from 0 on are a group; those with a negative label are in none, and
    free. by_label([0, 0, 1, -1, 1, 1], axis=0) groups six features of weights [features, outputs].

    Args:
      labels: integers, known while tracing; an array that broadcasts to x, or a vector along `axis`; or a
        tree of these in the structure of x or of a prefix of it.
      axis: the axis along which a vector of labels lies; whatever else has its index is in the group too.

    Returns:
      The grouping. A tree of groups has the structure of x, with a vector for each leaf: one entry a group,
      in the order of the labels. A label that does not occur is an empty group.

    Raises:
      ValueError: if a label is not an integer, or traced; and, on use, if the labels do not fit a leaf.

    >>> import jax.numpy as jnp
    >>> by_label([0, 1, 0, -1]).split("doc", jnp.ones(4)).sizes.tolist()
    [2, 1]
    """
    known = _labels.integers("by_label", labels)
    _slots.axes_of("by_label", axis)
    made = Grouping(lambda name, x: _labels.split(name, known, axis, x))
    return made.described("by_label", labels=labels, axis=axis)


def by_index(groups: Sequence[Sequence[int]], size: int, axis: int | None = None) -> Grouping:
    """Groups by lists of indices, as scikit-learn-like libraries have them; see `by_label`.

    Args:
      groups: the indices of each group; no index twice.
      size: the number of coordinates, or the length of the axis.
      axis: the axis that is indexed; None for an x of one axis.

    Returns:
      The grouping, with one entry a group in the order given. Indices that are in no list are in no group.

    Raises:
      ValueError: if an index is not an integer in [0, size), or occurs twice.

    >>> by_index([[0, 2], [1]], size=4)
    by_index(groups=[[0, 2], [1]], size=4)
    """
    labels = _labels.of_lists("by_index", groups, _validation.to_int(0, "by_index", size=size))
    return by_label(labels, axis).described("by_index", groups=groups, size=size, axis=axis)


@_validation.typed
def linked(kernels: Mapping[str, int | tuple[int, ...] | Grouping]) -> Grouping:
    """Groups that reach across leaves: a neuron, head or expert with all that goes in and out.

    Unit j of an MLP is column j of `up` and row j of `down`; where both are zero it can be cut
    out without changing the network. Leaves are found by the end of their path, and those with the
    same beginning (block_0, block_1, ...) belong together:

        linked({"mlp/up/kernel": 1, "mlp/down/kernel": 0})
        linked({"gate_up/kernel": (0, 3), "down/kernel": (0, 1)})  # stacked [L, D, 2, F], [L, F, D]
        linked({"query/kernel": heads(8), "out/kernel": heads(8, axis=0)})
        linked({"experts/up": 0, "experts/down": 0})               # [E, D, F], [E, F, D]

    Leaves that match no ending are in no group. Inside `optax.masked` all leaves of a group must
    be there.

    Args:
      kernels: the end of a path ↦ the axes that count the groups, in matching order; or a grouping
        of single leaves.

    Returns:
      The grouping. A tree of groups is a dict: beginning of the path ↦ array of the counted axes.

    Raises:
      ValueError: if nothing is given; and, on use, naming the paths: if an ending matches no leaf
        or a leaf two of them, if one of a group's leaves is missing, or if the counts differ.

    >>> import jax.numpy as jnp
    >>> mlp = {"up": jnp.ones((5, 7)), "down": jnp.ones((7, 5))}
    >>> linked({"up": 1, "down": 0}).split("doc", {"block_0": mlp, "head": jnp.ones(3)}).sizes
    {'block_0': 10}
    """
    if not kernels:
        raise _validation.invalid("kernels", kernels, "a mapping with at least one path ending", "", "linked")
    partitions = {}
    for end, over in kernels.items():
        partitions[end] = (over if isinstance(over, Grouping) else slices(over)).partition
        if partitions[end] is None:
            given = _validation.Verbatim(f"a grouping across leaves for {end}")
            expected = "groupings of single leaves, such as heads(8)"
            raise _validation.invalid("kernels", given, expected, "", "linked")
    made = Grouping(lambda name, x: _across_leaves.split(name, partitions, x))
    return made.described("linked", kernels=kernels)


def _share(name, path, leaf, axis, parts):
    """Gives size / parts of an axis, or raises."""
    size = leaf.shape[axis]
    if size % parts == 0:
        return size // parts
    given, expected = _validation.Verbatim(f"shape {leaf.shape}"), f"divisible by {parts} along axis {axis}"
    remedy = f"Choose another size, or {_slots.LEAVE_OUT}"
    raise _validation.invalid(_trees.label("x", path), given, expected, remedy, name)
