"""Kernels multiplied where they lie: of one of the stacked layers, or of the head, in few rows at a time.

A dynamic slice of stacked layers is a copy on a CPU, and so is a wider dtype: decoding read each weight from
memory, wrote it and read it once more. Here what is copied, or widened, is parts of a kernel that stay in
the processor's cache. 20 kernels [576, 3072] took 14 CPU ms for one row, and 9 in bfloat16, half the bytes
for the same numbers; 17 and 12 for 4 rows, 41 and 36 for 32, by columns 34 and 30 (best of 5, one Xeon core,
other work beside it).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import sharding

LARGE = 2**18  # numbers in a kernel, below which a copy stays in the cache
FEW = 64  # rows of x up to which a product is made with parts of the kernel
SIZE = 64  # the most of its rows in a part ...
HEAD_SIZE = 128  # ... and of the head, where each makes a result ...
COLUMNS, MANY = 384, 8  # ... and of a wide kernel's columns, for so many rows of x or more


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
        return of_scan(_at(tree, layer), layer, tree)
    # factors of lm.lora are beside a kernel that may be needed whole, and a mesh cuts its rows
    in_place = "lora" not in tree and not sharding.has_mesh()
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
    axis, most = (2, COLUMNS) if stack.shape[2] > x.shape[1] and len(x) >= MANY else (1, SIZE)
    size = next(size for size in range(most, 0, -1) if stack.shape[axis] % size == 0)
    if len(x) > FEW or 2 * size < most:
        return _whole(x, stack, kernel.layer)
    by_parts = functools.partial(_by_parts, size=size, axis=axis)
    return jax.lax.platform_dependent(x, stack, kernel.layer, cpu=by_parts, default=_whole)


def head_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x·Wᵀ of the head, `[N, D]` and `[V, D]` -> float32 `[N, V]`.

    A narrow head is widened by parts on a CPU: 96 rows took 55 ms in place of 91, 256 rows 125 and 145, 680
    rows 404 and 452 (V = 49,152, D = 576, best of 5, one Xeon core, other work beside it).

    >>> head_product(jnp.ones((1, 6)), jnp.ones((3, 6), jnp.bfloat16)).tolist()
    [[6.0, 6.0, 6.0]]
    """
    is_widened = kernel.dtype.itemsize < x.dtype.itemsize and kernel.size >= LARGE
    is_known = isinstance(x.shape[0], int)  # and no symbolic size of jax.export
    if not (is_widened and is_known) or sharding.has_mesh():
        return _whole_head(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_head_by_parts, default=_whole_head)


def of_scan(own: Any, layer: ArrayLike, stacks: Any) -> Any:
    """The parameters of a layer, `own` of a scan; on a CPU bfloat16 is read anew from the stacks.

    XLA slices bfloat16 in float32 there, and a scan's slices by widening all layers before its loop.

    >>> stack = jnp.arange(4, dtype=jnp.bfloat16)
    >>> of_scan(stack[3], 3, stack).item()
    3.0
    """
    read = lambda x, stack: x if x.dtype != jnp.bfloat16 else _read(x, jax.lax.stop_gradient(stack), layer)
    return jax.tree.map(read, own, stacks)


def rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """The rows of a table, `[N, D]`; NaN beyond it.

    >>> rows(jnp.ones((3, 2)), jnp.array([2, 3])).tolist()
    [[1.0, 1.0], [nan, nan]]
    """
    if table.dtype == jnp.bfloat16:  # or XLA widens all of it before a loop
        table, index = jax.lax.optimization_barrier((table, index))
    return table.at[index].get(mode="fill", fill_value=jnp.nan)


@jax.custom_jvp  # the gradient is that of `own`, which the loop has collected for each layer
def _read(own, stack, layer):
    read = lambda own, stack, layer: _at(*jax.lax.optimization_barrier((stack, layer)))
    return jax.lax.platform_dependent(own, stack, layer, cpu=read, default=lambda own, *_: own)


@_read.defjvp
def _read_jvp(primals, tangents):
    return _read(*primals), tangents[0]


def _at(stack, layer):
    return jax.lax.dynamic_index_in_dim(stack, layer, 0, False)


def _whole(x, stack, layer):
    return x @ of_scan(_at(stack, layer), layer, stack).astype(x.dtype)


def _whole_head(x, kernel):
    return jnp.einsum("nd,vd->nv", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


def _by_parts(x, stack, layer, size, axis):
    """Products with `size` rows of the kernel at a time, added up in float32 or more, or with columns."""
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def step(i, y):
        own, i = jax.lax.optimization_barrier((stack, i))  # or XLA widens all of it before the loop
        starts, sizes = [layer, 0, 0], [1, *stack.shape[1:]]
        starts[axis], sizes[axis] = i * size, size
        part = jax.lax.dynamic_slice(own, starts, sizes)[0].astype(x.dtype)
        mine = jax.lax.dynamic_slice_in_dim(x, i * size, size, 1) if axis == 1 else x
        new = jnp.dot(mine, part, preferred_element_type=wide)
        return y + new if axis == 1 else jax.lax.dynamic_update_slice_in_dim(y, new, i * size, 1)

    zeros = jnp.zeros((len(x), stack.shape[2]), wide)
    return jax.lax.fori_loop(0, stack.shape[axis] // size, step, zeros).astype(x.dtype)


@jax.custom_jvp  # the gradient would add to the whole kernel for each part
def _head_by_parts(x, kernel):
    """The logits of some tokens at a time; the last part overlaps with the one before."""
    size = min(HEAD_SIZE, len(kernel))

    def put(i, y):
        own, i = jax.lax.optimization_barrier((kernel, i))
        rows = jax.lax.dynamic_slice_in_dim(own, i * size, size, 0)
        return jax.lax.dynamic_update_slice_in_dim(y, _whole_head(x, rows), i * size, 1)

    return jax.lax.fori_loop(0, -(-len(kernel) // size), put, jnp.zeros((len(x), len(kernel)), jnp.float32))


@_head_by_parts.defjvp
def _head_jvp(primals, tangents):
    return jax.jvp(_whole_head, primals, tangents)
