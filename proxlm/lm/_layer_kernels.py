"""Kernels of one of the stacked layers, multiplied where they lie.

A dynamic slice of stacked layers is a copy on a CPU: a decoding step read each weight from memory, wrote it
and read it once more. Here slices are short and fuse into the product, or stay in the processor's cache.
30 layers of SmolLM2-135M's sizes took 0.040 CPU s a token in place of 0.069 for one row, 0.072 and 0.149
for 8, 0.138 and 0.207 for 32; unstacked 0.038, 0.090 and 0.135 (median of 5 to 10, one Xeon core, other
work beside it).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

LARGE = 2**18  # numbers in a kernel, below which a copy stays in the cache
ROWS = 8  # rows of x up to which a product is a sum of scaled rows of the kernel ...
MOST_ROWS = 64  # ... and up to which it is a sum of products with parts of it


class LayerKernel(NamedTuple):
    """The kernel of one layer.

    Attributes:
      stack: `[L, D, ...]`.
      layer: integer, may be traced.
    """

    stack: jax.Array
    layer: ArrayLike


def of_layer(tree: Any, layer: ArrayLike) -> Any:
    """The parameters of one of the stacked layers, large kernels as `LayerKernel`.

    >>> block = of_layer({"down": {"kernel": jnp.ones((3, 512, 512))}, "scale": jnp.ones((3, 2))}, 1)
    >>> block["scale"].shape, type(block["down"]["kernel"]).__name__
    ((2,), 'LayerKernel')
    """
    if not isinstance(tree, Mapping):
        return jax.lax.dynamic_index_in_dim(tree, layer, 0, False)
    # factors of lm.lora are beside a kernel that may be needed whole, and a mesh cuts its rows
    in_place = "lora" not in tree and jax.sharding.get_abstract_mesh().empty
    is_large = lambda leaf: leaf.size // leaf.shape[0] >= LARGE
    return {
        name: LayerKernel(leaf, layer)
        if name == "kernel" and in_place and is_large(leaf)
        else of_layer(leaf, layer)
        for name, leaf in tree.items()
    }


def product(x: jax.Array, kernel: LayerKernel) -> jax.Array:
    """x·W, `[N, D]` -> `[N, F]`.

    >>> product(jnp.ones((1, 6)), LayerKernel(jnp.ones((3, 6, 2)), 1)).tolist()
    [[6.0, 6.0]]
    """
    stack = kernel.stack.reshape(kernel.stack.shape[0], x.shape[1], -1)
    rows = ROWS if len(x) <= ROWS else 128
    size = next(size for size in range(rows, 0, -1) if x.shape[1] % size == 0)
    if len(x) > MOST_ROWS or 2 * size < rows:
        return _whole(x, stack, kernel.layer)
    by_parts = functools.partial(_by_parts, size=size)
    return jax.lax.platform_dependent(x, stack, kernel.layer, cpu=by_parts, default=_whole)


def _whole(x, stack, layer):
    return x @ jax.lax.dynamic_index_in_dim(stack, layer, 0, False).astype(x.dtype)


def _by_parts(x, stack, layer, size):
    """Adds up the products with `size` rows of the kernel at a time, in float32 or more."""
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def add(i, y):
        part = jax.lax.dynamic_slice_in_dim(x, i * size, size, 1)
        rows = jax.lax.dynamic_slice(stack, (layer, i * size, 0), (1, size, stack.shape[2]))[0]
        rows = rows.astype(x.dtype)
        if len(x) > ROWS:
            return y + jnp.dot(part, rows, preferred_element_type=wide)
        terms = [part[:, j, None].astype(wide) * rows[None, j].astype(wide) for j in range(size)]
        while len(terms) > 1:  # pairwise: one after another waits for the sum before
            pairs = zip(terms[::2], terms[1::2], strict=False)
            terms = [*(a + b for a, b in pairs), *terms[len(terms) - len(terms) % 2 :]]
        return y + terms[0]

    zeros = jnp.zeros((len(x), stack.shape[2]), wide)
    return jax.lax.fori_loop(0, x.shape[1] // size, add, zeros).astype(x.dtype)
