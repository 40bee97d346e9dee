"""Several sums and maxima over groups in one pass over memory."""

import functools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

Merge = Callable[[jax.Array, jax.Array], jax.Array]
Parts = Callable[..., tuple[jax.Array, ...]]

FIRST = {jnp.add: 0.0, jnp.maximum: -jnp.inf}
RUN = 16


def fold(
    axes: tuple[int, ...],
    merges: Sequence[Merge],
    parts: Parts,
    numbers: chex.ArrayTree,
    arrays: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    """Reduces what `parts` makes of the arrays, one result for each merge.

    Written apart, each sum is a pass of its own, and XLA on a CPU stores the summands of most of
    them; this stores none. No long run is added up one by one, so that sums are accurate.

    Args:
      axes: those to reduce, which stay with length 1.
      merges: `jnp.add` or `jnp.maximum`, one for each part.
      parts: (numbers, *arrays) ↦ what to reduce, elementwise; numbers have length 1 in the axes.
      arrays: the first gives the shape; others are like it or of rank 0.

    >>> both = lambda shift, x: (x + shift, x)
    >>> x = jnp.array([[1.0, 2.0, 5.0]])
    >>> fold((1,), (jnp.add, jnp.maximum), both, jnp.array([[1.0]]), (x,))
    (Array([[11.]], dtype=float32), Array([[5.]], dtype=float32))
    """
    in_runs, at_once = (functools.partial(way, axes, merges, parts) for way in (_in_runs, _at_once))
    return jax.lax.platform_dependent(numbers, *arrays, cpu=in_runs, default=at_once)


def _at_once(axes, merges, parts, numbers, *arrays):
    whole = _whole(parts, numbers, arrays)
    return tuple(jnp.expand_dims(v, axes) for v in _reduce(merges, whole, axes))


def _in_runs(axes, merges, parts, numbers, *arrays):
    """Reduces runs, then runs of their results; XLA on a CPU adds one by one, but runs abreast."""
    whole = _whole(parts, numbers, arrays)
    for axis in sorted(axes, key=lambda axis: -arrays[0].shape[axis]):
        whole = _along(merges, whole, axis)
    return tuple(whole)


def _along(merges, arrays, axis):
    """Reduces one axis to length 1."""
    length = arrays[0].shape[axis]
    if length <= 2 * RUN:
        return tuple(jnp.expand_dims(v, axis) for v in _reduce(merges, arrays, (axis,)))
    runs, rest = divmod(length, RUN)
    cut = functools.partial(jax.lax.slice_in_dim, axis=axis)
    split = lambda v: v.reshape(*v.shape[:axis], runs, RUN, *v.shape[axis + 1 :])
    of_runs = _reduce(merges, [split(cut(v, 0, runs * RUN)) for v in arrays], (axis + 1,))
    folded = _along(merges, of_runs, axis)
    if not rest:
        return folded
    return _merge(merges, folded, _along(merges, [cut(v, runs * RUN, length) for v in arrays], axis))


def _reduce(merges, arrays, axes):
    first = tuple(jnp.asarray(FIRST[merge], arrays[0].dtype) for merge in merges)
    return jax.lax.reduce(tuple(arrays), first, functools.partial(_merge, merges), axes)


def _whole(parts, numbers, arrays):
    return [jnp.broadcast_to(part, arrays[0].shape) for part in parts(numbers, *arrays)]


def _merge(merges, one, other):
    return tuple(merge(a, b) for merge, a, b in zip(merges, one, other, strict=True))
