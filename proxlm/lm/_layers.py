"""The parts of a decoder block as pure functions of arrays.

Activations are flat, `[N, D]` with N = B·T: on a CPU the gradient of a matrix product over
`[B, T, D]` leaves the fast kernels, and on a GPU the reshape is free.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from proxlm.lm import _half_products
from proxlm.lm._layer_kernels import LayerKernel, product

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def linear(x: jax.Array, kernel: jax.Array | LayerKernel, bias: jax.Array | None = None) -> jax.Array:
    """Applies x·W (+ b), `[N, D]` -> `[N, F]`, every axis of the kernel after the first as output.

    >>> linear(jnp.ones((2, 3)), jnp.ones((3, 4, 5))).shape
    (2, 20)
    """
    if isinstance(kernel, LayerKernel):
        y = product(x, kernel)
    else:
        kernel = kernel.reshape(x.shape[1], -1).astype(x.dtype)
        y = _half_products.product(x, kernel) if _half_products.applies(x) else x @ kernel
    if bias is not None:
        y = y + bias.reshape(1, -1).astype(x.dtype)
    return y


def linear_parts(
    x: jax.Array, kernel: jax.Array | LayerKernel, sizes: Sequence[int], bias: jax.Array | None = None
) -> list[jax.Array]:
    """Several products with one packed kernel: x·W₁, x·W₂ and so on, `[N, ...]` flattened.

    The kernel is `[D, P, ...]`, the bias `[P, ...]`, and the sizes say how many of the P belong to each part.
    The kernel is split where it is smaller than the result, as in training, where splitting the
    result would copy it in the forward and again in the backward pass; and the result where that
    is smaller, as in decoding, which would copy the kernel at every token.

    >>> [part.shape for part in linear_parts(jnp.ones((2, 3)), jnp.ones((3, 4, 5)), (1, 3))]
    [(2, 5), (2, 15)]
    """
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    few = isinstance(x.shape[0], int) and x.shape[0] < x.shape[1]  # a symbolic size of jax.export is large
    cut = jax.sharding.get_abstract_mesh().shape.get("model", 1) > 1
    if isinstance(kernel, LayerKernel) or (few and not cut):
        y = linear(x, kernel, bias)
        return jnp.split(y, [end * (y.shape[1] // sum(sizes)) for end in ends], axis=1)
    if few:  # the result keeps the axes of the kernel, of which a mesh may cut the last
        y = jnp.tensordot(x, kernel.astype(x.dtype), 1)
        y = y if bias is None else y + bias[None].astype(x.dtype)
        return [part.reshape(x.shape[0], -1) for part in jnp.split(y, ends, axis=1)]
    # the gradient of a split is one concatenation, that of slices a sum of padded pieces
    kernels = jnp.split(kernel, ends, axis=1)
    biases = [None] * len(sizes) if bias is None else jnp.split(bias, ends)
    return [linear(x, part, b) for part, b in zip(kernels, biases, strict=True)]


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis: x / √(mean(x²) + ε) · scale.

    Computed in float32 and returned in the dtype of `x`. Source: Zhang & Sennrich 2019.

    >>> rms_norm(jnp.array([[2.0, -2.0]]), jnp.array([1.0, 3.0]), 0.0).tolist()
    [[1.0, -3.0]]
    """
    wide = x.astype(jnp.float32)
    power = _mean_square(wide)
    scale = jnp.expand_dims(scale, tuple(range(x.ndim - 1)))
    return (wide * jax.lax.rsqrt(power + epsilon) * scale).astype(x.dtype)


def _mean_square(x):
    """mean(x²) of the last axis, kept; of one row, as in decoding, in the pass that makes x on a CPU."""
    mean = lambda x: jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    if any(size != 1 for size in x.shape[:-1]):
        return mean(x)
    by_stages = lambda x: over_last(jnp.sum, jnp.square(x)) / x.shape[-1]
    return jax.lax.platform_dependent(x, cpu=by_stages, default=mean)


def over_last(reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """A reduction of the last axis, kept; by two stages, which XLA fuses with what makes x on a CPU.

    It cuts a reduction of more than 32 numbers in windows, whose pass is one of its own and slow.

    >>> over_last(jnp.sum, jnp.ones((2, 96))).tolist()
    [[96.0], [96.0]]
    """
    size = x.shape[-1]
    lanes = [lanes for lanes in (32, 24, 16, 8) if isinstance(size, int) and size > 32 and size % lanes == 0]
    if lanes:
        x = jax.lax.optimization_barrier(reduce(x.reshape(*x.shape[:-1], -1, lanes[0]), axis=-2))
    return reduce(x, axis=-1, keepdims=True)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Layer normalisation over the last axis: (x − mean) / √(var + ε) · scale + bias.

    Computed in float32 and returned in the dtype of `x`. Source: Ba et al. 2016.

    >>> layer_norm(jnp.array([[3.0, 1.0]]), jnp.array([1.0, 2.0]), jnp.array([0.0, 5.0]), 0.0).tolist()
    [[1.0, 3.0]]
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    power = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    scale, bias = (jnp.expand_dims(part, tuple(range(x.ndim - 1))) for part in (scale, bias))
    return (centred * jax.lax.rsqrt(power + epsilon) * scale + bias).astype(x.dtype)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Bounds x smoothly: c·tanh(x/c), or x where c is None.

    >>> soft_cap(jnp.array([1e6, 0.0]), 30.0).tolist()
    [30.0, 0.0]
    """
    return x if cap is None else cap * jnp.tanh(x / cap)
