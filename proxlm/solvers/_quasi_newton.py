"""A limited-memory BFGS model restricted to some coordinates.

Its pairs are an array [2, m, n]: recent moves and the changes of the gradient along them, the newest last; 0
where empty.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def init(memory: int, x: jax.Array) -> jax.Array:
    """No pairs yet.

    >>> init(2, jnp.zeros(3)).shape
    (2, 2, 3)
    """
    return jnp.zeros((2, memory, x.size), x.dtype)


def push(pairs: jax.Array, move: jax.Array, bend: jax.Array) -> jax.Array:
    """Adds a pair, and forgets the oldest.

    >>> push(init(2, jnp.zeros(1)), jnp.ones(1), jnp.ones(1))[0].tolist()
    [[0.0], [1.0]]
    """
    return jnp.concatenate([pairs, jnp.stack([move, bend])[:, None]], axis=1)[:, 1:]


def direction(pairs: jax.Array, descent: jax.Array, live: jax.Array) -> jax.Array:
    """H·d for the steepest descent d, H the inverse Hessian in the live coordinates.

    In the compact form, H = γ I + [S γY] M [S γY]ᵀ, with pairs scaled to ⟨s, y⟩ = 1; those without
    positive curvature there are passed over.

    Args:
      descent: [n], 0 where not live, as is the result; 0 everywhere as long as there is no pair.

    Source: Byrd, Nocedal & Schnabel 1994, theorem 2.2.

    >>> pairs = push(init(2, jnp.zeros(2)), jnp.array([1.0, 1.0]), jnp.array([4.0, 9.0]))
    >>> direction(pairs, jnp.array([8.0, 0.0]), jnp.array([True, False])).tolist()
    [2.0, 0.0]
    """
    memory, dtype = pairs.shape[1], jnp.promote_types(descent.dtype, jnp.float32)
    exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    rows = jnp.where(live[None, None], pairs, 0.0).reshape(2 * memory, -1)
    mixed, squares = products = exact(rows, rows[memory:].T).astype(dtype).reshape(2, memory, memory)
    starts, along = exact(rows, descent).astype(dtype).reshape(2, memory)
    curvature, lengths = jnp.sum(jnp.where(np.eye(memory, dtype=bool)[None], products, 0.0), axis=2)
    usable = curvature > jnp.maximum(1e-10 * lengths, jnp.finfo(descent.dtype).tiny)
    unit = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, curvature, 1.0)), 0.0)
    newest = jnp.max(jnp.where(usable, np.arange(memory), -1), initial=-1)
    scale = jnp.sum(jnp.where(usable & (np.arange(memory) == newest), curvature / lengths, 0.0))
    above = np.triu(np.ones((memory, memory), bool), 1)
    upper = jnp.where(above, unit[:, None] * mixed * unit[None], np.eye(memory, dtype=dtype))
    solve = functools.partial(jax.scipy.linalg.solve_triangular, upper, unit_diagonal=True)
    first = solve(unit * starts)
    second = first + scale * unit * (exact(squares, unit * first) - along)
    weights = jnp.concatenate([unit * solve(second, trans=1), -scale * unit * first])
    return (scale * descent + exact(weights.astype(rows.dtype), rows)).astype(descent.dtype)
