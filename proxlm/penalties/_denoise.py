"""Total variation denoising of a sequence, by dynamic programming."""

import jax
import jax.numpy as jnp

from proxlm.penalties import base


def denoise(y: jax.Array, strength: jax.Array) -> jax.Array:
    """The z of least ½|z - y|² + λ Σ|z_{i+1} - z_i|, [n].

    The program finds where z is constant. On each such piece z is then the mean of y, moved by λ
    over the length of the piece for each side on which z goes on, which also is its derivative.

    Source: Johnson 2013, A dynamic programming algorithm for the fused lasso and l0-segmentation.

    >>> jax.jit(denoise)(jnp.array([1.0, 3.0, 8.0, 6.0]), 1.0).tolist()
    [2.0, 3.0, 6.5, 6.5]
    """
    fixed, mean = jax.lax.stop_gradient(y), jax.lax.stop_gradient(jnp.mean(y))
    sums = jnp.cumsum(fixed - mean)
    # From here on all of z is one piece; numbers far above would drown the others.
    largest = jnp.max(jnp.abs(sums[:-1]), initial=0.0)
    bounded = jnp.minimum(jax.lax.stop_gradient(strength), 2.0 * largest).astype(y.dtype)
    rough = _solve(fixed - mean, bounded) + mean
    rough = jnp.where(bounded >= largest * (1.0 + 4.0 * jnp.finfo(y.dtype).eps), mean, rough)
    rises = jnp.sign(jnp.diff(rough))
    edges = base.pull(strength, jnp.pad(rises, (0, 1)) - jnp.pad(rises, (1, 0)) + 0.0)
    piece = jnp.pad(jnp.cumsum(rises != 0), (1, 0))
    add = lambda v: jnp.zeros_like(y).at[piece].add(v, indices_are_sorted=True)
    moved = add(y - rough + edges) / jnp.maximum(add(jnp.ones_like(y)), 1.0)
    return base.keep_bits(strength == 0, y, rough + moved[piece])


def _solve(y, strength):
    """Minimises from the left: the derivative of the least cost so far is a list of linear pieces.

    Piece i begins at knot x_i, where slope and intercept rise by a_i and b_i; on the right the list
    is read backwards, with the signs turned. Knots are dropped on both sides for good, so that all is O(n).
    """
    n = y.size
    zeros = jnp.zeros_like(y, shape=2 * n)
    one, index = jnp.ones_like(y, shape=()), lambda i: jnp.full_like(y, i, jnp.int32, shape=())

    def from_left(knots, level, start):
        x, a, b, first, last = knots
        below = lambda s: (s[0] <= last) & (s[1] * x[s[0]] + s[2] <= level)
        return jax.lax.while_loop(
            below, lambda s: (s[0] + 1, s[1] + a[s[0]], s[2] + b[s[0]]), (first, *start)
        )

    def from_right(knots, level, start, first):
        x, a, b, _, last = knots
        above = lambda s: (s[0] >= first) & (-s[1] * x[s[0]] - s[2] >= level)
        return jax.lax.while_loop(above, lambda s: (s[0] - 1, s[1] + a[s[0]], s[2] + b[s[0]]), (last, *start))

    def forwards(knots, row):
        value, clipped = row
        low, a_low, b_low = from_left(knots, -strength, (one, -clipped - value))
        high, a_high, b_high = from_right(knots, strength, (-one, value - clipped), low)
        least, most = (-strength - b_low) / a_low, (strength + b_high) / -a_high
        ends = jnp.stack([low - 1, high + 1])
        new = [jnp.stack(pair) for pair in ((least, most), (a_low, a_high), (b_low, b_high))]
        new[2] = new[2] + strength
        arrays = [old.at[ends].set(pair) for old, pair in zip(knots[:3], new, strict=True)]
        return (*arrays, low - 1, high + 1), (least, most)

    clipped = jnp.where(jnp.arange(n) > 0, strength, 0.0)
    begun = (zeros, zeros, zeros, index(n), index(n - 1))
    knots, bounds = jax.lax.scan(forwards, begun, (y[:-1], clipped[:-1]))
    _, slope, intercept = from_left(knots, 0.0, (one, -clipped[-1] - y[-1]))
    last = -intercept / slope

    def backwards(after, bounds):
        z = jnp.clip(after, *bounds)
        return z, z

    rest = jax.lax.scan(backwards, last, bounds, reverse=True)[1]
    return jnp.append(rest, last)
