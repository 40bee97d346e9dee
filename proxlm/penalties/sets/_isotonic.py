"""Isotonic regression: the nearest sequence that does not rise."""

import jax
import jax.numpy as jnp


def nonincreasing(x: jax.Array) -> jax.Array:
    """The y_1 ≥ y_2 ≥ ... ≥ y_n with the least |y - x|²: means over blocks of neighbours.

    The blocks are found from the top: a block whose sum of deviations from its mean is largest at
    a place inside is cut there, since what lies before has the greater values; all blocks are
    tried at once, until none is cut. The derivative averages over the final blocks.

    Source: Barlow, Bartholomew, Bremner & Brunk 1972: y is the slope of the least concave
    majorant of the cumulative sums; a cut at their maximum is a corner of it.

    >>> jax.jit(nonincreasing)(jnp.array([5.0, 1.0, 2.0, 3.0, -1.0])).tolist()
    [5.0, 2.0, 2.0, 2.0, -1.0]
    """
    means, first = jax.lax.stop_gradient(_blocks(x))
    sums = lambda v: jnp.zeros_like(x).at[first].add(v, indices_are_sorted=True)
    # For the derivative alone: as a number it is the rounding of long sums.
    left = sums(x - means) / jnp.maximum(sums(jnp.ones_like(x)), 1.0)
    return means + (left - jax.lax.stop_gradient(left))[first]


def _blocks(x):
    """The mean of each entry's final block, and where that block begins."""
    rounding = 4 * jnp.finfo(x.dtype).eps

    def cut(state):
        starts, means, _ = state
        first, last = _ends(starts)
        largest = lambda v: jnp.full_like(x, -jnp.inf).at[first].max(v, indices_are_sorted=True)
        # From the mean of the larger block this was cut from; the sums below want one near by.
        rough = jnp.zeros_like(x).at[first].add(x - means, indices_are_sorted=True)[first]
        means = means + rough / (last - first + 1)
        total, rise, rest = _rise(*_add(x, -means), starts, first, last)
        means = means + total / (last - first + 1)
        top = rise == largest(rise)[first]
        top &= rest == largest(jnp.where(top, rest, -jnp.inf))[first]
        # Where all are alike all are cut: they are not held together.
        alike = largest(jnp.abs(x - means) - rounding * jnp.abs(means))[first] <= 0
        new_starts = starts | jnp.roll(top | alike, 1)
        return new_starts, means, jnp.any(new_starts != starts)

    x = jax.lax.stop_gradient(x)
    first = (jnp.arange(x.size) == 0) | jnp.zeros_like(x, bool)
    whole = first, jnp.full_like(x, jnp.mean(x)), jnp.full_like(x, x.size > 0, bool, shape=())
    starts, means, _ = jax.lax.while_loop(lambda state: state[2], cut, whole)
    return means, _ends(starts)[0]


def _rise(deviations, lost, starts, first, last):
    """Each block's sum, and its running sum from a mean that makes this 0, less its rounding.

    Noise would otherwise be cut from long blocks an entry at a time. What is taken off is a
    rounding of each entry up to there, or from there on if that is less. Deviations and running
    sums are floats with what these have lost.
    """
    place = (jnp.arange(first.size) - first + 1) / (last - first + 1).astype(deviations.dtype)
    high, low, size = _sums(starts, deviations, lost)
    total, size_of_rest = high[last] + low[last], size[last] - size
    noise = 2 * jnp.finfo(deviations.dtype).eps * jnp.minimum(size, size_of_rest)
    rise, rest = _add(high, low - noise - total * place)
    ends = jnp.arange(first.size) == last
    return total, jnp.where(ends, 0.0, rise), jnp.where(ends, 0.0, rest)


def _sums(starts, x, lost):
    """Running sums of x, with what they lost to rounding, and of |x|, anew at every start.

    After k rounds each place has the sum of 2ᵏ entries, or of all since the start of its block.
    """

    def double(state):
        reach, done, high, low, size = state
        pick = lambda v: jax.lax.dynamic_slice(jnp.pad(v, (v.size, 0)), (v.size - reach,), v.shape)
        earlier = [jnp.where(done, 0.0, pick(v)) for v in (high, low, size)]
        high, rounding = _add(earlier[0], high)
        return 2 * reach, done | pick(done), high, earlier[1] + low + rounding, earlier[2] + size

    unfinished = lambda state: jnp.logical_not(jnp.all(state[1]))
    return jax.lax.while_loop(unfinished, double, (1, starts, x, lost, jnp.abs(x)))[2:]


def _add(a, b):
    """The sum, and what it loses to rounding (Knuth's two-sum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _ends(starts):
    """The first and the last index of the block of each entry."""
    places = jnp.arange(starts.size)
    first = jax.lax.cummax(jnp.where(starts, places, 0))
    closes = jnp.roll(starts, -1)
    last = jax.lax.cummin(jnp.where(closes, places, starts.size - 1), reverse=True)
    return first, last
