"""From one point to the next: updates that arrive at it, and the rates on the way."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax


def updates_to(point: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    """Gives the updates point - params in the dtype of the params, so that zeros arrive exact.

    The point is rounded to the dtype of the params first: p + (0 - p) is 0 in any dtype, and other
    entries arrive within one rounding.

    >>> updates_to(jnp.array([0.0, 1.5]), jnp.array([0.25, 1.0], jnp.bfloat16)).tolist()
    [-0.25, 0.5]
    """

    def leaf_update(x, param):
        wide = x.dtype
        return (rounded(x, param.dtype) - param.astype(wide)).astype(param.dtype)

    return jax.tree.map(leaf_update, point, params)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rounds to the precision of a narrower dtype, and keeps its own.

    It is explicit, since the compiler may drop a cast there and back.

    >>> rounded(jnp.array([1.0 + 2.0**-12]), jnp.bfloat16).tolist()
    [1.0]
    """
    if dtype == x.dtype:
        return x
    if dtype == jnp.bfloat16 and x.dtype == jnp.float32:
        # Cheaper on a CPU than lax.reduce_precision.
        bits = jax.lax.bitcast_convert_type(x.astype(dtype), jnp.uint16).astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(bits << 16, x.dtype)
    bits = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, exponent_bits=bits.nexp, mantissa_bits=bits.nmant)


@rounded.defjvp
def _rounded_jvp(dtype, primals, tangents):
    return rounded(*primals, dtype), tangents[0]


def left_over(target: jax.Array, point: jax.Array, step: jax.Array, before: jax.Array) -> jax.Array:
    """(target - point)/step, the subgradient of g at point = prox(target, step) that it shows.

    Where the step is 0 it shows none, and the one before stays.

    >>> left_over(jnp.array([3.0, 1.0]), jnp.ones(2), jnp.array([2.0, 0.0]), jnp.full(2, 0.5))
    Array([1. , 0.5], dtype=float32)
    """
    shown = (target - point) / jnp.where(step > 0, step, 1.0)
    return jnp.where(step > 0, shown, before)


def zero(params: chex.ArrayTree) -> jax.Array:
    """A scalar 0 in the widest real dtype of the params, at least float32: the dtype of rates and their sums.

    >>> zero({"w": jnp.ones(2, jnp.bfloat16)}).dtype
    dtype('float32')
    """
    inexact = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    widest = functools.reduce(jnp.promote_types, inexact, jnp.dtype(jnp.float32))
    return jnp.zeros([], jnp.finfo(widest).dtype)


def rate_at(learning_rate: optax.ScalarOrSchedule, count: jax.Array, like: jax.Array) -> jax.Array:
    """Reads a learning rate, which may be a schedule, at a count, in the dtype of another scalar.

    >>> rate_at(lambda count: 0.5 * count, jnp.array(3), jnp.zeros([])).item()
    1.5
    """
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    return jnp.asarray(rate, like.dtype)


def increment(count: jax.Array) -> jax.Array:
    """The next count, which stays at its largest integer rather than overflow.

    >>> increment(jnp.int32(2)).item()
    3
    """
    return jnp.asarray(optax.safe_increment(count))


def beside(scalar: chex.Numeric, leaf: jax.Array) -> jax.Array:
    """Gives a scalar in the real dtype of a leaf, so that their product has the leaf's dtype.

    >>> beside(jnp.float32(2.0), jnp.ones(1, jnp.bfloat16)).dtype
    dtype(bfloat16)
    """
    return jnp.asarray(scalar, jnp.finfo(leaf.dtype).dtype)


def square(leaf: jax.Array) -> jax.Array:
    """|x|², real also where x is complex.

    >>> square(jnp.array([3.0 + 4.0j])).tolist()
    [25.0]
    """
    return jnp.real(leaf * jnp.conj(leaf))
