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
    means, first = jax.lax.stop_gradient(_blocks(x))
    sums = lambda v: jnp.zeros_like(x).at[first].add(v, indices_are_sorted=True)
    # Nothing is left but the derivative, and what rounding there was.
    left = sums(x - means) / jnp.maximum(sums(jnp.ones_like(x)), 1.0)
    return means + left[first]


def _blocks(x):
    """The mean of each entry's final block, and where that block begins."""
    rounding = 4 * jnp.finfo(x.dtype).eps

    def cut(state):
        starts, means, _ = state
        first, last = _ends(starts)
        # Twice: the first sums carry the rounding of the larger blocks these were cut from.
        means = _recentred(x, _recentred(x, means, first, last), first, last)
        deviations = x - means
        # So that where all are alike all are cut: they are not held together.
        alike = jnp.abs(deviations) <= rounding * jnp.abs(means)
        rise = jnp.cumsum(jnp.where(alike, 0.0, deviations))
        peak = jnp.full_like(x, -jnp.inf).at[first].max(rise, indices_are_sorted=True)
        new_starts = starts | jnp.roll(rise >= peak[first], 1)
        return new_starts, means, jnp.any(new_starts != starts)

    x = jax.lax.stop_gradient(x)
    whole = jnp.arange(x.size) == 0, jnp.full_like(x, jnp.mean(x)), x.size > 0
    starts, means, _ = jax.lax.while_loop(lambda state: state[2], cut, whole)
    return means, _ends(starts)[0]


def _recentred(x, means, first, last):
    """The means of the blocks, from others near them; one running sum serves all blocks."""
    rise = jnp.cumsum(x - means)
    before = jnp.where(first > 0, rise[first - 1], 0.0)
    return means + (rise[last] - before) / (last - first + 1)


def _ends(starts):
    """Where the block of each entry begins and ends."""
    places = jnp.arange(starts.size)
    first = jax.lax.cummax(jnp.where(starts, places, 0))
    closes = jnp.roll(starts, -1)
    last = jax.lax.cummin(jnp.where(closes, places, starts.size - 1), reverse=True)
    return first, last
