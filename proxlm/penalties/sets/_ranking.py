"""The largest numbers of a group or of every block in a row, found without a sort."""

import math

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _slots, _trees


def blocks_slot(name: str, m: int, axis: int) -> _slots.Slot:
    """The slot of one number a leaf; ValueError for leaves that `axis` does not cut into blocks.

    >>> blocks_slot("n_m", 4, -1)((), jnp.ones((3, 8)))
    ()
    """
    axes = _slots.axes_of(name, (axis,))

    def slot(path, leaf):
        inside = _slots.inside(name, axes, leaf, path)
        size = leaf.shape[inside[0]] if inside else 1
        if size % m:
            expected = f"of a size divisible by {m} along axis {axis}"
            given, remedy = f"size {size}", f"Choose another axis, or {_slots.LEAVE_OUT}"
            label = _trees.label("x", path)
            raise _validation.invalid(label, _validation.Verbatim(given), expected, remedy, name)
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
    (i,) = _slots.inside(name, _slots.axes_of(name, (axis,)), x)
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

    >>> largest(jnp.array([5, 7, 5, 9], jnp.uint32), 3, (0,)).tolist()
    [True, True, False, True]
    """
    kth = _cut(bits, k, inside, 0)
    size = math.prod(bits.shape[i] for i in inside)
    # Those equal to the k-th largest are ranked from the last to the first, others stand outside.
    rank = jnp.where(bits == kth, size - _place(bits, inside), 0)
    rank = jnp.where(bits > kth, size + 1, rank)
    return rank >= _cut(rank, k, inside, 1)


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
