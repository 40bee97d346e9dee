"""A limited-memory BFGS model restricted to some coordinates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm.solvers._steps import inner


class Pairs(NamedTuple):
    """Recent moves and the changes of the gradient along them, the newest last; 0 where empty.

    Attributes:
      moves: [m, n].
      bends: [m, n].
    """

    moves: jax.Array
    bends: jax.Array


def init(memory: int, x: jax.Array) -> Pairs:
    """No pairs yet.

    >>> init(2, jnp.zeros(3)).moves.shape
    (2, 3)
    """
    empty = jnp.zeros((memory, x.size), x.dtype)
    return Pairs(empty, empty)


def push(pairs: Pairs, move: jax.Array, bend: jax.Array) -> Pairs:
    """Adds a pair, and forgets the oldest.

    >>> push(init(2, jnp.zeros(1)), jnp.ones(1), jnp.ones(1)).moves.tolist()
    [[0.0], [1.0]]
    """
    if not pairs.moves.shape[0]:
        return pairs
    shift = lambda rows, new: jnp.concatenate([rows[1:], new[None]])
    return Pairs(shift(pairs.moves, move), shift(pairs.bends, bend))


def direction(pairs: Pairs, descent: jax.Array, live: jax.Array) -> jax.Array:
    """H·d for the steepest descent d, H the inverse Hessian in the live coordinates.

    The two-loop recursion; pairs without positive curvature there are passed over.

    Args:
      descent: [n], 0 where not live, as is the result; 0 everywhere as long as there is no pair.

    Source: Nocedal 1980.

    >>> pairs = push(init(2, jnp.zeros(2)), jnp.array([1.0, 1.0]), jnp.array([4.0, 9.0]))
    >>> direction(pairs, jnp.array([8.0, 0.0]), jnp.array([True, False])).tolist()
    [2.0, 0.0]
    """
    moves = jnp.where(live[None], pairs.moves, 0.0)
    bends = jnp.where(live[None], pairs.bends, 0.0)
    curvature = jnp.sum(moves * bends, axis=1)
    floor = 1e-10 * jnp.sum(jnp.square(bends), axis=1)
    usable = (curvature > 0) & (curvature > jnp.finfo(descent.dtype).tiny)
    usable &= jnp.sum(jnp.square(moves), axis=1) > floor * 1e-10
    rho = jnp.where(usable, 1.0 / jnp.where(usable, curvature, 1.0), 0.0)

    def backwards(d, row):
        move, bend, rho = row
        alpha = rho * inner(move, d)
        return d - alpha * bend, alpha

    d, alphas = jax.lax.scan(backwards, descent, (moves, bends, rho), reverse=True)
    newest = jnp.argmax(jnp.where(usable, jnp.arange(usable.size), -1))
    scale = curvature[newest] / jnp.maximum(jnp.sum(jnp.square(bends[newest])), jnp.finfo(descent.dtype).tiny)
    d = jnp.where(jnp.any(usable), scale, 0.0) * d

    def forwards(d, row):
        move, bend, rho, alpha = row
        return d + move * (alpha - rho * inner(bend, d)), None

    d, _ = jax.lax.scan(forwards, d, (moves, bends, rho, alphas))
    return jnp.where(jnp.any(usable), d, 0.0)
