"""Anderson's extrapolation of a fixed-point iteration."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class History(NamedTuple):
    """The last steps of the iteration, the newest last.

    Attributes:
      images: T(x_i), [m, n].
      residuals: T(x_i) - x_i, [m, n].
      filled: which rows are in use, bool [m].
    """

    images: jax.Array
    residuals: jax.Array
    filled: jax.Array


def init(memory: int, x: jax.Array) -> History:
    """No steps yet.

    >>> init(2, jnp.zeros(3)).filled.tolist()
    [False, False]
    """
    empty = jnp.zeros((memory, x.size), x.dtype)
    return History(empty, empty, jnp.zeros(memory, bool))


def push(history: History, x: jax.Array, image: jax.Array) -> History:
    """Adds a step, and forgets the oldest.

    >>> push(init(2, jnp.zeros(1)), jnp.ones(1), 3 * jnp.ones(1)).residuals.tolist()
    [[0.0], [2.0]]
    """
    new = History(image, image - x, jnp.array(True))
    shift = lambda rows, row: jnp.concatenate([rows[1:], row[None]])
    return jax.tree.map(shift, history, new)


def extrapolate(history: History) -> jax.Array:
    """Σ c_i T(x_i), the c that make |Σ c_i r_i| least among those with Σ c_i = 1, r the residuals.

    c is proportional to (R Rᵀ + ε)⁻¹ 1; ε, ten roundings of the trace, keeps it of bounded size.

    >>> halve = lambda x: 0.5 * x + 1.0
    >>> history = init(3, jnp.zeros(1))
    >>> for x in (jnp.array([0.0]), jnp.array([1.0])):
    ...     history = push(history, x, halve(x))
    >>> round(extrapolate(history).item(), 4)
    2.0
    """
    images, residuals, filled = history
    exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    products = exact(residuals, residuals.T)
    tiny, eps = jnp.finfo(products.dtype).tiny, jnp.finfo(products.dtype).eps
    scale = jnp.maximum(jnp.max(jnp.diagonal(products)), tiny)
    unused = jnp.where(filled, 10.0 * eps, 1.0)
    system = products / scale + jnp.diag(unused)
    weights = jnp.linalg.solve(system, filled.astype(products.dtype))
    weights = jnp.where(filled, weights, 0.0)
    return exact(weights / jnp.sum(weights), images)
