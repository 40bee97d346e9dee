"""Reports of sparsity, live groups and rank: numbers by path, and a table to read."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _trees
from proxlm.penalties.groups import _partition
from proxlm.transforms import _arguments

__all__ = ["Live", "live_groups", "rank", "report", "sparsity", "total_sparsity"]


class Live(NamedTuple):
    """The number of groups that are not all zero.

    Attributes:
      live: int32 scalar.
      total: the number of groups.
    """

    live: jax.Array
    total: int


def sparsity(params: chex.ArrayTree) -> dict[str, jax.Array]:
    """The share of exact zeros of each leaf, by path; that of an empty leaf is 0.

    A pure function, as are the others here but `report`: a training step may return it among its metrics.

    >>> sparsity({"block_0": {"up": jnp.array([0.0, 2.0]), "down": jnp.ones(3)}})
    {'block_0/down': Array(0., dtype=float32), 'block_0/up': Array(0.5, dtype=float32)}
    """
    return {
        path: jnp.sum(leaf == 0, dtype=jnp.float32) / max(leaf.size, 1) for path, leaf in _by_path(params)
    }


def total_sparsity(params: chex.ArrayTree) -> jax.Array:
    """The share of exact zeros among all weights, a float32 scalar.

    >>> float(total_sparsity({"w": jnp.array([0.0, 2.0, 3.0]), "b": jnp.zeros(1)}))
    0.5
    """
    leaves = [leaf for _, leaf in _by_path(params)]
    zeros = sum((jnp.sum(leaf == 0, dtype=jnp.float32) for leaf in leaves), start=jnp.zeros(()))
    return zeros / max(sum(leaf.size for leaf in leaves), 1)


def live_groups(params: chex.ArrayTree, over: _partition.Grouping) -> dict[str, Live]:
    """The number of groups of each leaf that are not all zero, by path.

    Groups that reach across leaves are found under the beginning their paths share.

    Args:
      over: how they make groups, as in grouping.linked({"up": 1, "down": 0}).

    Returns:
      path ↦ `Live`. A group that holds NaN is live.

    Raises:
      ValueError: if over is not a grouping or does not fit the params.

    >>> from proxlm.penalties import grouping
    >>> live_groups({"up": jnp.array([[1.0, 0.0], [0.0, 0.0]])}, grouping.axes(0))["up"]
    Live(live=Array(1, dtype=int32), total=2)
    """
    _arguments.require_grouping("live_groups", over)
    if over is None:
        raise ValueError("live_groups: over must be a grouping, got None. Use sparsity instead.")
    sizes = jax.tree.map(jnp.abs, _trees.widen("live_groups", params))
    largest = over.split("live_groups", sizes).reduce(_partition.LARGEST, sizes)
    count = lambda leaf: Live(jnp.sum(leaf != 0, dtype=jnp.int32), leaf.size)
    return {path: count(leaf) for path, leaf in _by_path(largest)}


def rank(params: chex.ArrayTree, tolerance: float | None = None) -> dict[str, jax.Array]:
    """The numerical rank of each matrix, by path: the number of σ_i > tolerance · σ_max.

    A leaf is a stack of matrices over its last two axes; leaves of fewer axes have no rank. Two
    axes that should count as one, as heads and their size, want a reshape first.

    Args:
      tolerance: relative to the largest singular value. None is max(m, n) ε as in `jnp.linalg.matrix_rank`;
        for leaves below 32 bits, whose entries are rounded apart from one another, their own ε.

    Returns:
      path ↦ int32 array, of the axes before the last two.

    Raises:
      ValueError: if a leaf is not real floating-point.

    >>> rank({"w": jnp.ones((3, 4)), "b": jnp.ones(3)})
    {'w': Array(1, dtype=int32)}
    """
    _validation.at_least(0, "rank", tolerance=tolerance)
    found = {}
    for path, leaf in _by_path(params):
        wide = jnp.asarray(jax.tree.leaves(_trees.widen("rank", {path: leaf}))[0])
        if leaf.ndim < 2:
            continue
        cut = _rounding(leaf) if tolerance is None else tolerance
        values = jnp.linalg.svd(wide, compute_uv=False)
        largest = jnp.max(values, axis=-1, keepdims=True, initial=0.0)
        found[path] = jnp.sum(values > cut * largest, axis=-1, dtype=jnp.int32)
    return found


def report(params: chex.ArrayTree, over: _partition.Grouping | None = None, with_rank: bool = False) -> str:
    """A table to read: a line for each leaf with its zeros, and on request live groups and rank.

    Args:
      over: adds the live groups, by leaf or in lines of their own where groups reach across leaves.
      with_rank: adds the rank of matrices, the mean over a stack; an SVD each.

    Raises:
      ValueError: as `live_groups` and `rank`.

    >>> from proxlm.penalties import grouping
    >>> mlp = {"up": jnp.array([[1.0, 0.0], [2.0, 0.0]]), "bias": jnp.ones(2)}
    >>> print(report(mlp, grouping.linked({"up": 1}), with_rank=True))
    path      shape   zeros   live  rank
    bias          2   0.0 %
    up        2 x 2  50.0 %            1
    the root                 1 / 2
    total         6  33.3 %
    """
    _validation.one_of((True, False), "report", with_rank=with_rank)
    shares, ranks = sparsity(params), rank(params) if with_rank else {}
    groups = live_groups(params, over) if over is not None else {}
    rows = [["path", "shape", "zeros", *["live"] * bool(over), *["rank"] * with_rank]]

    def add(path, shape, zeros):
        row = [path, shape, "" if zeros is None else f"{100 * float(zeros):.1f} %"]
        live = groups.get(path)
        row += [f"{live.live} / {live.total}" if live else ""] * bool(over)
        row += [f"{np.mean(ranks[path]):g}" if path in ranks else ""] * with_rank
        rows.append(row)

    for path, leaf in _by_path(params):
        add(path, " x ".join(map(str, leaf.shape)) or "1", shares[path])
    for path in groups:
        if path not in shares:
            add(path, "", None)
    size = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))
    add("total", str(size), total_sparsity(params))
    return _aligned(rows)


def _by_path(tree):
    """Lists pairs of path and array."""
    return [
        (_trees.place(path), jnp.asarray(_trees.require_array("reports", path, leaf, "params")))
        for path, leaf in _trees.flatten(tree)[0]
    ]


def _rounding(leaf):
    bits = jnp.finfo(leaf.dtype)
    return float(bits.eps) * (max(leaf.shape[-2:]) if bits.bits >= 32 else 1)


def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
