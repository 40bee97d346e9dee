"""The parts of a decoder block as pure functions of arrays.

Activations are flat, `[N, D]` with N = B·T: on a CPU the gradient of a matrix product over
`[B, T, D]` leaves the fast kernels, and on a GPU the reshape is free.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm import sharding
from proxlm.lm._layer_kernels import LayerKernel, product

HIDDEN = -1e30  # finite, so that a row with no visible key gives a uniform average and not NaN

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class GroupMask(NamedTuple):
    """The mask of rows that hold a prompt and the answers to it, none of which sees another.

    Attributes:
      prompt: bool `[N or 1, 1, P, P]`.
      answers: bool `[N or 1, G, S, P + S]`: which keys of the prompt and of its own an answer's query sees.
    """

    prompt: jax.Array
    answers: jax.Array


def linear(x: jax.Array, kernel: jax.Array | LayerKernel, bias: jax.Array | None = None) -> jax.Array:
    """Applies x·W (+ b), `[N, D]` -> `[N, F]`, every axis of the kernel after the first as output.

    >>> linear(jnp.ones((2, 3)), jnp.ones((3, 4, 5))).shape
    (2, 20)
    """
    if isinstance(kernel, LayerKernel):
        y = product(x, kernel)
    else:
        y = x @ kernel.reshape(x.shape[1], -1).astype(x.dtype)
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
    power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    scale = jnp.expand_dims(scale, tuple(range(x.ndim - 1)))
    return (wide * jax.lax.rsqrt(power + epsilon) * scale).astype(x.dtype)


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


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | GroupMask,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Grouped-query attention softmax(q·kᵀ·scale)·v, the softmax in float32.

    Args:
      query: `[B, H, T, d]`; query head h reads key-value head h // (H / H_kv).
      key: `[B, H_kv, S, d]`.
      value: `[B, H_kv, S, d]`.
      visible: bool, `[B or 1, 1, T, S]`: which keys a query may see; or a `GroupMask`, as of packed groups.
      scale: of the scores; None: d^(−1/2).
      cap: of `soft_cap` on the scores.

    Returns:
      `[B, H, T, d]`. Source: Ainslie et al. 2023.

    >>> attend(*[jnp.ones((2, h, 3, 4)) for h in (4, 2, 2)], jnp.ones((1, 1, 3, 3), bool)).shape
    (2, 4, 3, 4)
    """
    if isinstance(visible, GroupMask):
        return _attend_in_groups(query, key, value, visible, scale, cap)
    batch, heads, length, width = query.shape
    weights = attention(query, key, visible, scale, cap).astype(value.dtype)
    weights = weights.reshape(batch, key.shape[1], -1, key.shape[2])
    return jnp.einsum("bgqk,bgkd->bgqd", weights, value).reshape(batch, heads, length, width)


def attend_by_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | GroupMask,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """`attend` by cuDNN's kernel on GPUs; not in packed groups, nor over an odd number of columns.

    >>> heads = [jnp.ones((2, h, 4, 8), jnp.bfloat16) for h in (4, 2, 2)]
    >>> attend_by_cudnn(*heads, jnp.ones((1, 1, 4, 4), bool)).shape
    (2, 4, 4, 8)
    """
    is_odd = query.shape[2] % 2 or key.shape[2] % 2
    if jax.default_backend() != "gpu" or isinstance(visible, GroupMask) or is_odd:
        return attend(query, key, value, visible, scale, cap)
    heads = (x.swapaxes(1, 2) for x in (query, key, value))
    by_kernel = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return by_kernel(*heads, mask=visible, scale=scale).swapaxes(1, 2)


def attend_by_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """`attend` where no query sees a later key, by up to 8 blocks of queries with the keys up to their end.

    On a CPU a group's heads at a time, whose scores stay in the cache: 1,024 tokens, 9 and 3 heads of 64 took
    0.020 CPU s, all at once 0.037, PyTorch's kernel 0.016 (best of 7, one Xeon core, other work beside it).

    >>> heads = [jnp.ones((2, h, 200, 4)) for h in (4, 2, 2)]
    >>> jax.eval_shape(attend_by_blocks, *heads, jnp.ones((1, 1, 200, 200), bool)).shape
    (2, 4, 200, 4)
    """
    (batch, _, length, width), kv_heads = query.shape, key.shape[1]
    size = max(128, -(-length // 8))

    def by_blocks(query, key, value, visible):
        def of_block(i):
            own, seen = slice(i, i + size), slice(i + size)
            keys = key[:, :, seen], value[:, :, seen]
            return attend(query[:, :, own], *keys, visible[:, :, own, seen], scale, cap)

        return jnp.concatenate([of_block(i) for i in range(0, length, size)], axis=2)

    def by_groups(query, key, value, visible):
        def of_group(i):
            row, group = i // kv_heads, i % kv_heads
            of = lambda x: x.reshape(batch, kv_heads, -1, length, width)[row, group][None]
            return by_blocks(of(query), of(key), of(value), visible[None, row % len(visible)])[0]

        return jax.lax.map(of_group, jnp.arange(batch * kv_heads)).reshape(query.shape)

    if length <= size or sharding.has_mesh():
        return by_blocks(query, key, value, visible)
    return jax.lax.platform_dependent(query, key, value, visible, cpu=by_groups, default=by_blocks)


def _attend_in_groups(query, key, value, visible, scale, cap):
    """Attention of the prompt to itself, and of each answer to the prompt and to itself."""
    (batch, heads, _, width), kv_heads = query.shape, key.shape[1]
    length, (group, size) = visible.prompt.shape[-1], visible.answers.shape[1:3]
    prompt, rest = (lambda x: x[:, :, :length]), (lambda x: x[:, :, length:])
    first = attend(prompt(query), prompt(key), prompt(value), visible.prompt, scale, cap)
    query = rest(query) * (width**-0.5 if scale is None else scale)
    query = query.reshape(batch, kv_heads, -1, group, size, width)
    own_key, own_value = (rest(x).reshape(batch, kv_heads, group, size, width) for x in (key, value))
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_prompt = einsum("bkhgqd,bkpd->bkhgqp", query, prompt(key))
    to_own = einsum("bkhgqd,bkgsd->bkhgqs", query, own_key)
    scores = soft_cap(jnp.concatenate([to_prompt, to_own], axis=-1), cap)
    weights = jax.nn.softmax(jnp.where(visible.answers[:, None, None], scores, HIDDEN), axis=-1)
    weights = weights.astype(value.dtype)
    mixed = jnp.einsum("bkhgqp,bkpd->bkhgqd", weights[..., :length], prompt(value))
    mixed += jnp.einsum("bkhgqs,bkgsd->bkhgqd", weights[..., length:], own_value)
    return jnp.concatenate([first, mixed.reshape(batch, heads, group * size, width)], axis=2)


def attention(
    query: jax.Array, key: jax.Array, visible: jax.Array, scale: float | None = None, cap: float | None = None
) -> jax.Array:
    """The weights of `attend`, softmax(q·kᵀ·scale) over the visible keys: float32 `[B, H, T, S]`.

    >>> visible = jnp.tril(jnp.ones((1, 1, 2, 2), bool))
    >>> weights = attention(jnp.ones((1, 2, 2, 4)), jnp.ones((1, 1, 2, 4)), visible)
    >>> weights[0, 1].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    batch, heads, length, width = query.shape
    # The heads of a group and the queries share one matrix product with the group's keys.
    query = (query * (width**-0.5 if scale is None else scale)).reshape(batch, key.shape[1], -1, width)
    scores = jnp.einsum("bgqd,bgkd->bgqk", query, key, preferred_element_type=jnp.float32)
    scores = soft_cap(scores.reshape(batch, heads, length, -1), cap)
    return jax.nn.softmax(jnp.where(visible, scores, HIDDEN), axis=-1)
