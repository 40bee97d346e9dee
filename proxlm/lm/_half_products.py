"""Matrix products of bfloat16 that reach a CPU's matrix units, forwards and in both gradients.

XLA sends a product of bfloat16 to them only if its result is float32, its left factor lies row by row and no
factor but the right one is transposed by the product itself; of a kernel's gradient none of that holds.
One core of an Intel Xeon with AMX and other work beside it, a kernel [576, 1536], best of 15, GFLOP/s:

    rows    forwards    of x          of the kernel
    64      125 (50)    276 (49)      119 (41)
    256     234 (77)    384 (74)      299 (66)
    1,024   418 (80)    354 (86)      388 (79)

In brackets ordinary products of bfloat16; those of float32 had 56 to 99. Other CPUs were not measured.
"""

import jax
import jax.numpy as jnp
from jax.experimental import layout
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from proxlm import sharding

ROWS = 64  # of x, below which nothing is gained


def applies(x: jax.Array) -> bool:
    """Whether `product` is meant for these rows: many, of bfloat16, and not on a mesh.

    >>> applies(jnp.ones((64, 3), jnp.bfloat16)), applies(jnp.ones((64, 3)))
    (True, False)
    """
    many = isinstance(x.shape[0], int) and x.shape[0] >= ROWS
    return many and x.dtype == jnp.bfloat16 and not sharding.has_mesh()


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x·W of bfloat16, `[N, D]` and `[D, F]` -> `[N, F]`.

    >>> product(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 1), jnp.bfloat16)).tolist()
    [[3.0], [3.0]]
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_product_p.bind, default=jnp.matmul)


def _dot(x, kernel, axis=0):
    """x·W or, along the other axis of W, x·Wᵀ."""
    numbers = (((1,), (axis,)), ((), ()))
    options = {"precision": jax.lax.Precision.DEFAULT, "preferred_element_type": jnp.float32}
    return jax.lax.dot_general(x, kernel, numbers, **options).astype(x.dtype)


def _of_x(g, x, kernel):
    """The gradient with respect to x."""
    return _dot(g, kernel, axis=1)


def _of_kernel(g, x, kernel):
    """The gradient with respect to the kernel, of a copy of xᵀ that lies row by row."""
    return _dot(layout.with_layout_constraint(x.T, layout.Layout(major_to_minor=(0, 1))), g)


def _batched(args, axes):
    """Under vmap: more rows of one kernel, or else an ordinary product."""
    x, kernel = (y if axis is None else jnp.moveaxis(y, axis, 0) for y, axis in zip(args, axes, strict=True))
    if axes[1] is None:
        return _product_p.bind(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1), 0
    return jnp.matmul(x, kernel), 0


_product_p = Primitive("half_product")
_product_p.def_impl(jax.jit(_dot, static_argnums=2))
_product_p.def_abstract_eval(lambda x, kernel: x.update(shape=(x.shape[0], kernel.shape[1])))
ad.defbilinear(_product_p, _of_x, _of_kernel)
batching.primitive_batchers[_product_p] = _batched
mlir.register_lowering(_product_p, mlir.lower_fun(_dot, multiple_results=False))
