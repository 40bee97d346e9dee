"""Several sums and maxima over a group in one pass over memory."""

import functools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

Merge = Callable[[jax.Array, jax.Array], jax.Array]
Parts = Callable[..., tuple[jax.Array, ...]]

FIRST = {jnp.add: 0.0, jnp.maximum: -jnp.inf}
BLOCK = 1 << 14


def fold(
    axes: tuple[int, ...],
    merges: Sequence[Merge],
    parts: Parts,
    numbers: chex.ArrayTree,
    arrays: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    """Reduces what `parts` makes of the arrays, one result for each merge.

    Written apart, each sum is a pass of its own, and XLA on a CPU stores the summands of most of
    them; this stores none, anywhere.

    Args:
      axes: those to reduce, which stay with length 1.
      merges: `jnp.add` or `jnp.maximum`, one for each part.
      parts: (numbers, *arrays) ↦ what to reduce, elementwise.
      numbers: a tree of arrays with length 1 in the axes.
      arrays: the first gives the shape; others are like it or of rank 0.

    Returns:
      The reductions, with length 1 in the axes.

    >>> both = lambda shift, x: (x + shift, x)
    >>> x = jnp.array([[1.0, 2.0, 5.0]])
    >>> fold((1,), (jnp.add, jnp.maximum), both, jnp.array([[1.0]]), (x,))
    (Array([[11.]], dtype=float32), Array([[5.]], dtype=float32))
    """
    x = arrays[0]
    at_once = functools.partial(_at_once, axes, merges, parts)
    if len(axes) < x.ndim or x.size < 4 * BLOCK:
        return at_once(numbers, *arrays)
    in_blocks = functools.partial(_in_blocks, merges, parts)
    return jax.lax.platform_dependent(numbers, *arrays, cpu=in_blocks, default=at_once)


def _at_once(axes, merges, parts, numbers, *arrays):
    x = arrays[0]
    whole = [jnp.broadcast_to(part, x.shape) for part in parts(numbers, *arrays)]
    first = [jnp.asarray(FIRST[merge], x.dtype) for merge in merges]
    merge_all = lambda one, other: _merge(merges, one, other)
    reduced = jax.lax.reduce(tuple(whole), tuple(first), merge_all, axes)
    return tuple(jnp.expand_dims(result, axes) for result in reduced)


def _in_blocks(merges, parts, numbers, *arrays):
    """For one large group: merges whole blocks, which a processor does in cache and in lanes."""
    shape = arrays[0].shape
    numbers = jax.tree.map(lambda number: number.reshape(1), numbers)
    flat = [jnp.broadcast_to(a, shape).reshape(-1) if a.ndim else a for a in arrays]
    num_blocks = flat[0].size // BLOCK

    def parts_of(cut):
        pieces = [cut(array) if array.ndim else array for array in flat]
        return [jnp.broadcast_to(p, pieces[0].shape) for p in parts(numbers, *pieces)]

    def add_block(i, lanes):
        block = parts_of(lambda v: jax.lax.dynamic_slice(v, (i * BLOCK,), (BLOCK,)))
        return _merge(merges, lanes, block)

    lanes = tuple(jnp.full(BLOCK, FIRST[merge], flat[0].dtype) for merge in merges)
    lanes = jax.lax.fori_loop(0, num_blocks, add_block, lanes)
    rest = parts_of(lambda v: v[num_blocks * BLOCK :])
    as_they_are = lambda numbers, *arrays: arrays
    ends = [_at_once((0,), merges, as_they_are, (), *part) for part in (lanes, rest)]
    return tuple(end.reshape((1,) * len(shape)) for end in _merge(merges, *ends))


def _merge(merges, one, other):
    return tuple(merge(a, b) for merge, a, b in zip(merges, one, other, strict=True))
