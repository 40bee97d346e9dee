"""The number τ on which the projection on a capped simplex rests."""

import jax
import jax.numpy as jnp

from proxlm.penalties import base

MOST_STEPS = 200


def project(x: jax.Array, total: jax.Array, cap: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """min(max(x - τ, 0), c) in every group, with the τ at which it sums to s.

    Args:
      total: 0 < s ≤ Σ c, a number or one for each group (the shape of x with 1 for the axes).
      cap: c > 0, a number or an array that broadcasts to x.

    >>> project(jnp.array([3.0, 0.5, 0.0]), 2.0, 1.0, axes=(0,)).tolist()
    [1.0, 0.75, 0.25]
    """
    far = jnp.finfo(x.dtype).max / 4
    x, total, cap = jnp.clip(x, -far, far), jnp.asarray(total, x.dtype), jnp.asarray(cap, x.dtype)
    fixed = jax.lax.stop_gradient((x, total, cap))
    # The second search is for the small rest, and as accurate as x is near the first τ.
    centre = _search(*fixed, axes)
    offset = _search(fixed[0] - centre, *fixed[1:], axes)
    margin = x - centre
    size = _pieces(fixed[0] - centre - offset, fixed[2], axes)[1]
    missing = jnp.sum(_clip(margin - offset, cap), axis=axes, keepdims=True) - total
    enough = _enough(missing, total)
    offset = base.keep_bits(enough, offset, offset + missing / jnp.maximum(size, 1.0))
    return _clip(margin - offset, cap)


def _search(x, total, cap, axes):
    """Newton for Σ min(max(x - τ, 0), c) = s; at times a step to the middle of the bracket."""

    def step(state):
        count, tau, lower, upper, done = state
        above, size = _pieces(x - tau, cap, axes)
        lower = jnp.where(above >= total, tau, lower)
        upper = jnp.where(above <= total, tau, upper)
        newton = tau + (above - total) / jnp.maximum(size, 1.0)
        fits = (lower <= newton) & (newton <= upper) & (newton != tau) & (count % 3 < 2)
        done |= _enough(above - total, total)
        new_tau = jnp.where(fits, newton, lower + 0.5 * (upper - lower))
        new_tau = jnp.where(done, tau, new_tau)
        return count + 1, new_tau, lower, upper, done | (new_tau == tau)

    over_group = {"axis": axes, "keepdims": True}
    lower, upper = jnp.min(x - cap, **over_group), jnp.max(x, **over_group)
    # Near 0 is where the second search ends.
    start = jnp.clip(0.0, lower, upper)
    state = 0, start, lower, upper, jnp.zeros_like(start, bool)
    going = lambda state: (state[0] < MOST_STEPS) & ~jnp.all(state[4])
    return jax.lax.while_loop(going, step, state)[1]


def _pieces(margin, cap, axes):
    """The sum, and how many coordinates move with τ."""
    over_group = {"axis": axes, "keepdims": True}
    moving = (margin >= 0) & (margin <= cap)
    return jnp.sum(_clip(margin, cap), **over_group), jnp.sum(moving, **over_group, dtype=cap.dtype)


def _enough(missing, total):
    return jnp.abs(missing) <= 8 * jnp.finfo(total.dtype).eps * total


def _clip(margin, cap):
    return jnp.where(margin < 0, 0.0, jnp.where(margin > cap, cap, margin))
