"""Attention: grouped queries, all at once, by blocks, in packed groups of answers, and by a GPU's kernel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm import sharding
from proxlm.lm._layers import over_last, soft_cap

HIDDEN = -1e30  # finite, so that a row with no visible key gives a uniform average and not NaN
BLOCK = 128  # queries


class GroupMask(NamedTuple):
    """The mask of rows that hold a prompt and the answers to it, none of which sees another.

    Attributes:
      prompt: bool `[N or 1, 1, P, P]`.
      answers: bool `[N or 1, G, S, P + S]`: which keys of the prompt and of its own an answer's query sees.
    """

    prompt: jax.Array
    answers: jax.Array


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
    options = {"scale": scale, "cap": cap}
    normalised_first = functools.partial(_attend, **options)
    if query.shape[2] == 1 and query.shape[0] != 1:
        return normalised_first(query, key, value, visible)
    by_cpu = functools.partial(_attend_and_normalise, **options)
    return jax.lax.platform_dependent(query, key, value, visible, cpu=by_cpu, default=normalised_first)


def _attend(query, key, value, visible, scale, cap):
    return _mix(attention(query, key, visible, scale, cap).astype(value.dtype), value)


def _attend_and_normalise(query, key, value, visible, scale, cap):
    """(exp(s − max s)·v) / Σ exp(s − max s) of scores s: half the passes over [B, H, T, S] and the space."""
    scores = _scores(query, key, visible, scale, cap)
    weights = jnp.exp(scores - jax.lax.stop_gradient(over_last(jnp.max, scores)))
    mixed = _mix(weights.astype(value.dtype), value).astype(jnp.promote_types(value.dtype, jnp.float32))
    return (mixed / over_last(jnp.sum, weights)).astype(value.dtype)


def _mix(weights, value):
    """Weights times values, `[B, H, T, S]` and `[B, H_kv, S, d]` -> `[B, H, T, d]`."""
    batch, heads, length, _ = weights.shape
    weights = weights.reshape(batch, value.shape[1], -1, value.shape[2])
    return jnp.einsum("bgqk,bgkd->bgqd", weights, value).reshape(batch, heads, length, value.shape[-1])


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
    by_blocks = functools.partial(_by_blocks, scale=scale, cap=cap)

    def by_groups(query, key, value, visible):
        def of_group(i):
            row, group = i // kv_heads, i % kv_heads
            of = lambda x: x.reshape(batch, kv_heads, -1, length, width)[row, group][None]
            return by_blocks(of(query), of(key), of(value), visible[None, row % len(visible)])[0]

        return jax.lax.map(of_group, jnp.arange(batch * kv_heads)).reshape(query.shape)

    if length <= BLOCK or sharding.has_mesh():
        return by_blocks(query, key, value, visible)
    return jax.lax.platform_dependent(query, key, value, visible, cpu=by_groups, default=by_blocks)


def attend_causally(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | GroupMask,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """`attend` where no query sees a later key: on a CPU by `attend_by_blocks`' blocks, all heads at once.

    16 x 6 heads of 256 tokens took 71 CPU ms with their gradient in place of 104 with products by Eigen, 84
    in place of 90 by YNNPACK (best of 7 and 9, one Xeon core, other work beside it).

    >>> heads = [jnp.ones((2, h, 200, 4)) for h in (4, 2, 2)]
    >>> jax.eval_shape(attend_causally, *heads, jnp.ones((1, 1, 200, 200), bool)).shape
    (2, 4, 200, 4)
    """
    numbers = {"scale": scale, "cap": cap}
    length = query.shape[2]
    if isinstance(visible, GroupMask) or not isinstance(length, int) or length <= BLOCK:
        return attend(query, key, value, visible, **numbers)
    forms = {
        "cpu": functools.partial(_by_blocks, **numbers),
        "default": functools.partial(_attend, **numbers),
    }
    return jax.lax.platform_dependent(query, key, value, visible, **forms)


def _by_blocks(query, key, value, visible, scale, cap):
    """Up to 8 blocks of queries, each with the keys up to its end."""
    length = query.shape[2]
    size = max(BLOCK, -(-length // 8))

    def of_block(i):
        own, seen = slice(i, i + size), slice(i + size)
        return attend(
            query[:, :, own], key[:, :, seen], value[:, :, seen], visible[:, :, own, seen], scale, cap
        )

    return jnp.concatenate([of_block(i) for i in range(0, length, size)], axis=2)


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
    return jax.nn.softmax(_scores(query, key, visible, scale, cap), axis=-1)


def _scores(query, key, visible, scale, cap):
    """q·kᵀ·scale, capped, and `HIDDEN` where a key is not visible: float32 `[B, H, T, S]`."""
    batch, heads, length, width = query.shape
    # The heads of a group and the queries share one matrix product with the group's keys.
    query = (query * (width**-0.5 if scale is None else scale)).reshape(batch, key.shape[1], -1, width)
    scores = jnp.einsum("bgqd,bgkd->bgqk", query, key, preferred_element_type=jnp.float32)
    return jnp.where(visible, soft_cap(scores.reshape(batch, heads, length, -1), cap), HIDDEN)
