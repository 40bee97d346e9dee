"""Isotonic regression: the nearest sequence that does not rise."""

import jax
import jax.numpy as jnp


def nonincreasing(x: jax.Array) -> jax.Array:
    """The y_1 ≥ y_2 ≥ ... ≥ y_n with the least |y - x|²: means over blocks of neighbours.

    The blocks are found from the top: a block whose sum of deviations from its mean is largest at
    a place inside is cut there, since what lies before has the greater values; all blocks are
    tried at once, until none is cut. The derivative averages over the final blocks.

    Args:
      x: an array of one axis.

    Returns:
      An array like x.

    Source: Barlow, Bartholomew, Bremner & Brunk 1972: y is the slope of the least concave
    majorant of the cumulative sums; a cut at their maximum is a corner of it.

    >>> nonincreasing(jnp.array([5.0, 1.0, 2.0, 3.0, -1.0])).tolist()
    [5.0, 2.0, 2.0, 2.0, -1.0]
    """
    blocks = _blocks(jax.lax.stop_gradient(x))
    return _means(x, blocks)[blocks]


def _blocks(x):
    """Numbers of the final blocks, ascending."""

    def cut(state):
        starts, _ = state
        blocks = jnp.cumsum(starts) - 1
        # The deviations of a block sum to 0, so that a single running sum serves all of them.
        rise = jnp.cumsum(x - _means(x, blocks)[blocks])
        # Equal neighbours are not held together, so ties with the peak are cuts too.
        at_peak = rise >= (_largest(rise, blocks) - rounding * _largest(jnp.abs(x), blocks))[blocks]
        new_starts = starts | jnp.concatenate([starts[:1], at_peak[:-1]])
        return new_starts, jnp.any(new_starts != starts)

    rounding = 4 * jnp.finfo(x.dtype).eps
    one_block = jnp.arange(x.size) == 0
    starts, _ = jax.lax.while_loop(lambda state: state[1], cut, (one_block, x.size > 1))
    return jnp.cumsum(starts) - 1


def _largest(x, blocks):
    return jax.ops.segment_max(x, blocks, x.size, indices_are_sorted=True)


def _means(x, blocks):
    sum_over = lambda v: jax.ops.segment_sum(v, blocks, x.size, indices_are_sorted=True)
    return sum_over(x) / jnp.maximum(sum_over(jnp.ones_like(x)), 1.0)
