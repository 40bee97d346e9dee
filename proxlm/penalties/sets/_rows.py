"""Groups along axes as the rows of a matrix, and back."""

import math

import jax
import jax.numpy as jnp


def of(x: jax.Array, inside: tuple[int, ...]) -> jax.Array:
    """Gives x as [groups, coordinates of one], for groups along the axes `inside`.

    >>> of(jnp.array([[1, 2], [3, 4], [5, 6]]), inside=(0,)).tolist()
    [[1, 3, 5], [2, 4, 6]]
    """
    size = math.prod(x.shape[i] for i in inside)
    return jnp.moveaxis(x, inside, _last(inside)).reshape(x.size // max(size, 1), size)


def back(rows: jax.Array, x: jax.Array, inside: tuple[int, ...]) -> jax.Array:
    """Gives the rows of `of(x, inside)`, or others in their place, the shape of x.

    >>> back(jnp.array([[1, 3, 5], [2, 4, 6]]), jnp.zeros((3, 2)), inside=(0,)).tolist()
    [[1, 2], [3, 4], [5, 6]]
    """
    outside = [size for i, size in enumerate(x.shape) if i not in inside]
    shape = [*outside, *(x.shape[i] for i in inside)]
    return jnp.moveaxis(rows.reshape(shape), _last(inside), inside)


def _last(inside):
    return tuple(range(-len(inside), 0))
