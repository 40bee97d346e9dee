"""Rows of tokens: padding moved to the left, and the uniform numbers that draw them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

__all__ = ["align", "texts", "uniforms"]


def align(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves each row's valid tokens to its end, in order: any padding `[B, P]` becomes left padding.

    >>> align(jnp.array([[7, 8, 0]]), jnp.array([[True, True, False]]))[0].tolist()
    [[0, 7, 8]]
    """
    order = jnp.argsort(mask, axis=1, stable=True)
    take = functools.partial(jnp.take_along_axis, indices=order, axis=1)
    return take(tokens), take(mask)


def uniforms(key: jax.Array, num_tokens: int, batch: int) -> jax.Array:
    """Uniform numbers in [0, 1), `[R, B]`, of one key or of one key a row.

    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> bool(jnp.all(uniforms(keys, 5, 3)[:, :2] == uniforms(keys[:2], 5, 2)))
    True
    """
    if key.ndim:
        return jax.vmap(lambda row: jax.random.uniform(row, (num_tokens,)), out_axes=1)(key)
    # in one row: it compiles in half the time, to the same numbers
    return jax.random.uniform(key, (num_tokens * batch,)).reshape(num_tokens, batch)


def texts(decode: Callable[[list[int]], str], tokens: ArrayLike, mask: ArrayLike) -> list[str]:
    """The texts of the valid tokens of rows, on the host.

    >>> texts(lambda ids: "".join(map(chr, ids)), [[97, 98], [99, 0]], [[True, True], [True, False]])
    ['ab', 'c']
    """
    rows = zip(np.asarray(tokens), np.asarray(mask, bool), strict=True)
    return [decode(row[valid].tolist()) for row, valid in rows]
