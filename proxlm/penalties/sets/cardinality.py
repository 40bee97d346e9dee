"""Sets of arrays with few nonzero coordinates: k of a group, or n of every m in a row."""

import math

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _trees, base

LARGEST_PAIRED = 64  # m up to which comparing all pairs of a block is faster than bisection


def top_k(k: int, axis: int | tuple[int, ...] | None = None) -> base.Penalty:
    """At most k nonzero coordinates in each group: g(x) = 0 if |x_G|₀ ≤ k for all G, else +inf.

    prox_tg(x) keeps the k largest |x_i| of each group, with their bits, and sets the others to 0;
    of equals it keeps the first in row-major order. In a diagonal metric the k largest |x_i|/√t_i
    are kept. The k-th largest is found by bisection on the bits of |x|, which as integers are
    ordered like the numbers: some thirty comparisons of the whole array instead of a sort.

    Args:
      k: number of coordinates to keep, ≥ 0.
      axis: the axes inside a group, counted from the end if negative; None for all of them, which
        makes each leaf a group.

    Returns:
      The penalty. Its step size may be an array shaped like x, or a tree of such; if it is one
      number, it does not matter.

    Raises:
      ValueError: if k is not an integer ≥ 0; and, on use, naming the leaf, if it does not have
        these axes or a group has fewer than k coordinates. Empty leaves pass.

    Convex: no. Separable: over groups. Metric: any diagonal. Cost: about thirty passes.

    Source: Blumensath & Davies 2009 (iterative hard thresholding).

    >>> top_k(2).prox(jnp.array([-3.0, 1.0, 2.0, -2.0]), 1.0).tolist()
    [-3.0, 0.0, 2.0, 0.0]
    >>> float(top_k(1, axis=0).value(jnp.array([[-3.0, 1.0], [0.0, 2.0]])))
    inf
    """
    k = _validation.to_int(0, "top_k", k=k)
    axes = _trees.axes_of("top_k", axis)

    def group(path, leaf):
        size = math.prod(leaf.shape[i] for i in _trees.inside("top_k", axes, leaf, path))
        if leaf.size and k > size:
            expected = f"at most {size}, the size of a group at {_trees.place(path)}"
            raise _validation.invalid("k", k, expected, f"Lower it, or {_trees.LEAVE_OUT}", "top_k")
        return ()

    def value(x, k_as_float):
        del k_as_float
        return _at_most(k, x, _trees.inside("top_k", axes, x))

    def prox(x, step_size, k_as_float):
        del k_as_float
        if k == 0 or x.size == 0:
            return jnp.where(jnp.isnan(x), x, 0.0)
        keep = largest(bits_of_size(x, step_size), k, _trees.inside("top_k", axes, x))
        return jnp.where(keep | jnp.isnan(x), x, 0.0)

    # The slot is where a leaf meets its path: it checks k, which is the same for every leaf.
    made = base.leafwise("top_k", value, prox, {"k_as_float": (k, group)}, _trees.coordinates)
    return made.described("top_k", k=k, axis=axis)


def n_m(n: int, m: int, axis: int = -1) -> base.Penalty:
    """At most n nonzeros of every m in a row: g(x) = 0 if so for all blocks along axis, else +inf.

    prox_tg(x) keeps the n largest |x_i| of each block of m consecutive coordinates along the axis,
    with their bits, and sets the others to 0; of equals it keeps the first. In a diagonal metric
    the n largest |x_i|/√t_i are kept. `n_m(2, 4)` is the pattern that sparse tensor cores multiply.

    Args:
      n: number of coordinates to keep in a block, ≥ 0.
      m: size of a block, ≥ 1. n = m permits everything.
      axis: the axis along which blocks follow one another, counted from the end if negative. For a
        kernel [inputs, units] the hardware wants the inputs: 0.

    Returns:
      The penalty. Its step size may be an array shaped like x, or a tree of such; if it is one
      number, it does not matter.

    Raises:
      ValueError: if n or m is not an integer, n < 0 or n > m; and, on use, naming the leaf, if it
        does not have the axis or its size along the axis is not a multiple of m.

    Convex: no. Separable: over blocks. Metric: any diagonal. Cost: one pass, m comparisons a
    coordinate.

    Source: Mishra et al. 2021 (2:4); Zhou et al. 2021 (n:m).

    >>> n_m(2, 4).prox(jnp.array([-3.0, 1.0, 2.0, -2.0, 0.0, 0.5, 0.0, 0.0]), 1.0).tolist()
    [-3.0, 0.0, 2.0, 0.0, 0.0, 0.5, 0.0, 0.0]
    >>> float(n_m(1, 2).value(jnp.array([-3.0, 0.0, 2.0, 1.0])))
    inf
    """
    n = _validation.to_int(0, "n_m", n=n)
    m = _validation.to_int(1, "n_m", m=m)
    if n > m:
        raise _validation.invalid("n", n, f"at most m = {m}", "The order is n_m(n, m).", "n_m")

    def value(x, n_as_float):
        del n_as_float
        return _at_most(n, *blocks("n_m", x, m, axis))

    def prox(x, step_size, n_as_float):
        del n_as_float
        bits, inside = blocks("n_m", bits_of_size(x, step_size), m, axis)
        if m <= LARGEST_PAIRED or n == 0 or x.size == 0:
            keep = ranks_in_block(bits, *inside) < n
        else:
            keep = largest(bits, n, inside)
        return jnp.where(keep.reshape(x.shape) | jnp.isnan(x), x, 0.0)

    parameters = {"n_as_float": (n, blocks_slot("n_m", m, axis))}
    made = base.leafwise("n_m", value, prox, parameters, _trees.coordinates)
    return made.described("n_m", n=n, m=m, axis=axis)


def blocks_slot(name: str, m: int, axis: int) -> _trees.Slot:
    """The slot of one number a leaf; ValueError for leaves that `axis` does not cut into blocks.

    >>> blocks_slot("n_m", 4, -1)((), jnp.ones((3, 8)))
    ()
    """
    axes = _trees.axes_of(name, (axis,))

    def slot(path, leaf):
        inside = _trees.inside(name, axes, leaf, path)
        size = leaf.shape[inside[0]] if inside else 1
        if size % m:
            expected = f"of a size divisible by {m} along axis {axis}"
            given, remedy = (
                _validation.Verbatim(f"size {size}"),
                f"Choose another axis, or {_trees.LEAVE_OUT}",
            )
            raise _validation.invalid(_trees.label("x", path), given, expected, remedy, name)
        return ()

    return slot


def blocks(name: str, x: jax.Array, m: int, axis: int) -> tuple[jax.Array, tuple[int, ...]]:
    """Cuts an axis in two: [number of blocks, m]; gives the array and the axis inside a block.

    >>> blocks("n_m", jnp.arange(4), 2, -1)
    (Array([[0, 1],
           [2, 3]], dtype=int32), (1,))
    """
    if x.ndim == 0:
        return x.reshape(1), (0,)
    (i,) = _trees.inside(name, _trees.axes_of(name, (axis,)), x)
    return x.reshape(*x.shape[:i], x.shape[i] // m, m, *x.shape[i + 1 :]), (i + 1,)


def ranks_in_block(bits: jax.Array, axis: int) -> jax.Array:
    """Numbers the entries along an axis from the largest, 0; of equals the first comes first.

    >>> ranks_in_block(jnp.array([5, 7, 5, 9], jnp.uint32), 0).tolist()
    [2, 1, 3, 0]
    """
    one, other = jnp.expand_dims(bits, axis + 1), jnp.expand_dims(bits, axis)
    place = jax.lax.broadcasted_iota(jnp.int32, one.shape, axis)
    other_place = jax.lax.broadcasted_iota(jnp.int32, other.shape, axis + 1)
    before = (other > one) | ((other == one) & (other_place < place))
    return jnp.sum(before, axis=axis + 1, dtype=jnp.int32)


def bits_of_size(x: jax.Array, step_size: jax.Array) -> jax.Array:
    """Integers ordered like |x|, or in a diagonal metric like |x|/√t; NaN is the largest.

    >>> bits_of_size(jnp.array([-2.0, 1.0, -0.0]), jnp.array(1.0)).tolist()
    [1073741824, 1065353216, 0]
    """
    x, step_size = jax.lax.stop_gradient((x, step_size))
    if step_size.ndim:
        # Moving a coordinate whose step is 0 costs infinitely much; but of zeros, none is first.
        x = x / jnp.sqrt(jnp.maximum(step_size, jnp.finfo(x.dtype).tiny))
    return jax.lax.bitcast_convert_type(jnp.abs(x), f"uint{jnp.finfo(x.dtype).bits}")


def largest(bits: jax.Array, k: chex.Numeric, inside: tuple[int, ...]) -> jax.Array:
    """Says of each number of a group whether it is one of the k largest; of equals the first are.

    Args:
      bits: unsigned integers, as of `bits_of_size`, at least one a group.
      k: how many, from 1 to the size of a group. May be traced.
      inside: the axes inside a group, counted from the front.

    Returns:
      Booleans shaped like the bits, k of them True in each group.

    >>> largest(jnp.array([5, 7, 5, 9], jnp.uint32), 3, (0,)).tolist()
    [True, True, False, True]
    """
    kth = _cut(bits, k, inside, 0)
    size = math.prod(bits.shape[i] for i in inside)
    # Those equal to the k-th largest are ranked from the last to the first, others stand outside.
    rank = jnp.where(bits == kth, size - _place(bits, inside), 0)
    rank = jnp.where(bits > kth, size + 1, rank)
    return rank >= _cut(rank, k, inside, 1)


def _at_most(k, x, inside):
    excess = jnp.max(jnp.sum(x != 0, axis=inside) - k, initial=0)
    return base.indicator(jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, excess.astype(x.dtype)), 0.0)


def _cut(ranks, k, inside, low):
    """Gives c ≥ low such that k of the ranks of a group are ≥ c, or c is the k-th largest."""

    def count(c):
        return jnp.sum(ranks >= c, axis=inside, keepdims=True, dtype=jnp.int32)

    def halve(state):
        low, high, at_low = state
        middle = low + (high - low) // 2
        at_middle = count(middle)
        enough = at_middle >= k
        moved = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
        return *moved, jnp.where(enough, at_middle, at_low)

    def unsettled(state):
        low, high, at_low = state
        return jnp.any((high - low > 1) & (at_low != k))

    high = jnp.max(ranks, axis=inside, keepdims=True) + 1
    low = jnp.full_like(high, low)
    return jax.lax.while_loop(unsettled, halve, (low, high, count(low)))[0]


def _place(x, inside):
    """The row-major place of each coordinate in its group."""
    place = jnp.zeros(x.shape, x.dtype)
    for i in sorted(inside):
        place = place * x.shape[i] + jax.lax.broadcasted_iota(x.dtype, x.shape, i)
    return place
