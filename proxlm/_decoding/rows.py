"""Rows of tokens: padding moved to the left, and the uniform numbers that draw them."""

import functools

import jax
import jax.numpy as jnp

__all__ = ["align", "uniforms"]


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
    return jax.random.uniform(key, (num_tokens, batch))
