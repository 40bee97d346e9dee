"""The nearest point of a set of linear equations and inequalities."""

import functools

import jax
import jax.numpy as jnp

_dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def polyhedron(x: jax.Array, matrix: jax.Array, offset: jax.Array, equal: jax.Array) -> jax.Array:
    """The z of least |z - x| with A z = b where `equal` and A z ≤ b elsewhere, [n].

    λ and the slack b - A z ≥ 0 are complementary. Rows are exchanged where one of them is negative: all at
    once as long as these become fewer, else the last of them alone, which ends.

    >>> free = jnp.array([False, False])
    >>> polyhedron(jnp.array([3.0, 1.0]), jnp.eye(2), jnp.array([2.0, 2.0]), free).round(3).tolist()
    [2.0, 1.0]
    """
    scale = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(matrix), axis=1), jnp.finfo(x.dtype).tiny))
    matrix, offset = matrix / scale[:, None], offset / scale
    held = jax.lax.stop_gradient((x, matrix, offset))
    active = _active(*held, equal)
    moved = x - _dot(_prices(x, matrix, offset, active), matrix)
    return moved - _dot(_prices(moved, matrix, offset, active), matrix)


def _active(x, matrix, offset, equal):
    """The rows that hold with equality; the proximal point method makes each problem in λ strictly convex."""
    rows, shift = equal.size, 1e-3
    system, over = _dot(matrix, matrix.T) + shift * jnp.eye(rows, dtype=x.dtype), _dot(matrix, x) - offset
    count = lambda n: jnp.full_like(over, n, jnp.int32, shape=())
    slack = 30.0 * jnp.finfo(x.dtype).eps * (1.0 + jnp.max(jnp.abs(over), initial=0.0))

    def judge(active, over):
        kept = jnp.where(active[:, None] & active[None, :], system, jnp.eye(rows, dtype=x.dtype))
        price = jnp.linalg.solve(kept, jnp.where(active, over, 0.0))
        room = _dot(system, price) - over
        return price, ~equal & jnp.where(active, price < -slack, room < -slack)

    def exchange(state):
        count, active, _, wrong, fewest, patience, over = state
        total = jnp.sum(wrong, dtype=jnp.int32)
        patience = jnp.where(total < fewest, 5, patience - 1)
        last = jnp.arange(rows) == rows - 1 - jnp.argmax(wrong[::-1])
        active = active ^ jnp.where(patience > 0, wrong, wrong & last)
        return count + 1, active, *judge(active, over), jnp.minimum(total, fewest), patience, over

    def advance(state, _):
        active, price = state
        shifted = over + shift * price
        begun = 0, active, *judge(active, shifted), count(rows + 1), count(5), shifted
        going = lambda state: (state[0] < 20 + 10 * rows) & jnp.any(state[3])
        _, active, price, *_ = jax.lax.while_loop(going, exchange, begun)
        return (active, price), None

    begun = equal | jnp.zeros_like(over, bool), jnp.zeros_like(over)
    (active, _), _ = jax.lax.scan(advance, begun, None, length=8)
    return active


def _prices(x, matrix, offset, active):
    """λ, 0 outside of the active rows, with A(x - Aᵀλ) = b in these; of least size where these depend."""
    kept = jnp.where(active[:, None], matrix, 0.0)
    over = jnp.where(active, _dot(matrix, x) - offset, 0.0)
    gram = _dot(kept, kept.T)
    shift = 30.0 * jnp.finfo(x.dtype).eps * jnp.maximum(1.0, jnp.trace(gram))
    system = gram + jnp.diag(jnp.where(active, shift, 1.0))
    price = jnp.linalg.solve(system, over)
    for _ in range(2):  # the shift leaves a share of the error, each time
        price = price + jnp.linalg.solve(system, over - _dot(gram, price))
    return price


def section(
    x: jax.Array, weights: jax.Array, total: jax.Array, lower: jax.Array, upper: jax.Array
) -> jax.Array:
    """The z of least |z - x| with l ≤ z ≤ u and Σ w z = c, [n].

    >>> section(jnp.array([3.0, 0.75]), jnp.array([1.0, 2.0]), 2.0, jnp.zeros(2), jnp.ones(2)).tolist()
    [1.0, 0.5]
    """
    clip = lambda tau: jnp.clip(x - tau * weights, lower, upper)
    safe = jnp.where(weights == 0, 1.0, weights)
    bends = jnp.concatenate([(x - lower) / safe, (x - upper) / safe])
    bends = jnp.sort(jnp.where(jnp.tile(weights == 0, 2), 0.0, jax.lax.stop_gradient(bends)))
    above = lambda tau: _dot(weights, clip(tau)) - total  # falls in τ

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        over = above(bends[middle]) >= 0
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    ends = [jnp.full_like(bends, end, int, shape=()) for end in (0, bends.size - 1)]
    low, high = jax.lax.fori_loop(0, bends.size.bit_length() + 1, halve, tuple(ends))
    low, high = bends[low], bends[high]
    # Between two bends the free coordinates are the same, and the sum is linear in τ.
    middle = jax.lax.stop_gradient(x - 0.5 * (low + high) * weights)
    free = (middle > lower) & (middle < upper) & (weights != 0)
    fixed = jnp.where(middle >= upper, upper, lower)
    fixed = jnp.where(free, 0.0, jnp.where(weights == 0, jnp.clip(x, lower, upper), fixed))
    size = jnp.sum(jnp.where(free, jnp.square(weights), 0.0))
    rest = _dot(weights, jnp.where(free, x, fixed)) - total
    tau = jnp.where(size > 0, rest / jnp.where(size > 0, size, 1.0), jax.lax.stop_gradient(low))
    return clip(tau)
