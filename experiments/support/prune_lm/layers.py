"""Neurons and heads of one layer: which to keep, and how the kernel behind them makes up for the others.

A kernel `[P, n, m, D]` has P pools of n units, each of m rows: the neurons of an MLP are one pool of F units
of one row, the query heads of each key-value head are a pool of H / H_kv units of d rows. A mask is `[P, n]`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from proxlm import penalties


def largest(scores: jax.Array, count: int) -> jax.Array:
    """The mask of so many units of each pool, by scores `[P, n]`."""
    order = jnp.argsort(-scores, axis=1)
    return jnp.zeros(scores.shape, bool).at[jnp.arange(len(scores))[:, None], order[:, :count]].set(True)


def by_activation(gram: jax.Array, kernel: jax.Array) -> jax.Array:
    """Scores √Σ E[a²]·|w|² over the rows of a unit, as of Wanda (Sun et al. 2023) for single weights."""
    squares = jnp.diag(gram).reshape(kernel.shape[:3])[..., None] * jnp.square(kernel)
    return jnp.sqrt(jnp.sum(squares, axis=(2, 3)))


def by_penalty(
    gram: jax.Array,
    kernel: jax.Array,
    count: int,
    steps: int,
    make: Callable[..., penalties.Penalty],
    ridge: jax.typing.ArrayLike,
) -> jax.Array:
    """Scores from the proximal gradient method on ½ tr (W - W₀)ᵀ A (W - W₀) + g(W), with momentum.

    W are the rows in units of the activations' size, A the gram in the same units with the ridge of `refit`,
    and g = make(strength) of the norms of units. With an ever larger ridge the scores become those of
    `by_activation`. Strengths are set at every step such that `count` units of each pool survive it.
    """
    size = jnp.sqrt(jnp.diag(gram) + 1e-6 * jnp.mean(jnp.diag(gram)))
    gram = gram / jnp.outer(size, size) + ridge * jnp.eye(len(gram))
    shape, flat = kernel.shape, (gram.shape[0], -1)
    start = kernel.reshape(flat) * size[:, None]
    step_size = 1.0 / _largest_eigenvalue(gram)

    def step(carry, _):
        now, last, momentum = carry
        next_momentum = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
        ahead = now + (momentum - 1) / next_momentum * (now - last)
        moved = (ahead - step_size * gram @ (ahead - start)).reshape(shape)
        sizes = jnp.sqrt(jnp.sum(jnp.square(moved), axis=(2, 3)))
        dropped = jnp.sort(sizes, axis=1)[:, max(0, sizes.shape[1] - count - 1)]  # the largest that goes
        strength = jnp.where(count < sizes.shape[1], dropped, 0.0) / step_size
        prox = jax.vmap(lambda pool, strength: make(strength, step_size).prox(pool, step_size))
        return (prox(moved, strength).reshape(flat), now, next_momentum), sizes

    _, sizes = jax.lax.scan(step, (start, start, jnp.float32(1.0)), None, steps)
    return sizes[-1]


def refit(gram: jax.Array, kernel: jax.Array, keep: jax.Array, ridge: jax.typing.ArrayLike) -> jax.Array:
    """The kernel of the kept units whose results are nearest to those of all, by least squares.

    The ridge holds it near where it was: a share of the gram's diagonal.
    """
    alive = jnp.repeat(keep.reshape(-1), kernel.shape[2])
    rows = kernel.reshape(gram.shape[0], -1)
    damping = ridge * (jnp.diag(gram) + 1e-6 * jnp.mean(jnp.diag(gram)))
    inside = gram * jnp.outer(alive, alive) + jnp.diag(jnp.where(alive, damping, jnp.mean(jnp.diag(gram))))
    target = jnp.where(alive[:, None], gram @ rows + damping[:, None] * rows, 0.0)
    found = jax.scipy.linalg.solve(inside, target, assume_a="pos")
    return jnp.where(alive[:, None], found, 0.0).reshape(kernel.shape)


def error(gram: jax.Array, kernel: jax.Array, new: jax.Array) -> jax.Array:
    """Squares of the change of the layer's results, over those of the results."""
    squares = lambda rows: jnp.sum(rows * (gram @ rows))
    rows = kernel.reshape(gram.shape[0], -1)
    return squares(new.reshape(rows.shape) - rows) / squares(rows)


def _largest_eigenvalue(gram, steps=20):
    """By the power method from a vector of ones, a little more."""

    def step(vector, _):
        vector = gram @ vector
        size = jnp.linalg.norm(vector)
        return vector / size, size

    _, sizes = jax.lax.scan(step, jnp.ones(gram.shape[0]) / jnp.sqrt(gram.shape[0]), None, steps)
    return 1.02 * sizes[-1]
