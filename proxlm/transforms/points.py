"""What links share that compute the next point themselves: the way there, rates, checks."""

import chex
import jax
import jax.numpy as jnp
import optax
from optax._src import base as optax_base

from proxlm.penalties import base, numbers


def updates_to(point: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    """Gives the updates point - params in the dtype of the params, so that zeros arrive exact.

    The point is rounded to the dtype of the params first: p + (0 - p) is 0 in any dtype, and other
    entries arrive within one rounding.

    >>> updates_to(jnp.array([0.0, 1.5]), jnp.array([0.25, 1.0], jnp.bfloat16)).tolist()
    [-0.25, 0.5]
    """

    def leaf_update(x, param):
        # The rounding is explicit: the compiler may drop a cast to bfloat16 and back.
        bits = jnp.finfo(param.dtype)
        rounded = jax.lax.reduce_precision(x, exponent_bits=bits.nexp, mantissa_bits=bits.nmant)
        return (rounded - param.astype(rounded.dtype)).astype(param.dtype)

    return jax.tree.map(leaf_update, point, params)


def left_over(target: jax.Array, point: jax.Array, step: jax.Array, before: jax.Array) -> jax.Array:
    """(target - point)/step, the subgradient of g at point = prox(target, step) that it shows.

    Where the step is 0 it shows none, and the one before stays.

    >>> left_over(jnp.array([3.0, 1.0]), jnp.ones(2), jnp.array([2.0, 0.0]), jnp.full(2, 0.5))
    Array([1. , 0.5], dtype=float32)
    """
    shown = (target - point) / jnp.where(step > 0, step, 1.0)
    return jnp.where(step > 0, shown, before)


def rate_at(learning_rate: optax.ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """Reads a learning rate, which may be a schedule, at a count; in at least float32.

    >>> rate_at(lambda count: 0.5 * count, jnp.array(3)).item()
    1.5
    """
    rate = learning_rate(count) if callable(learning_rate) else learning_rate
    return jnp.asarray(rate, jnp.zeros([]).dtype)


def require_params(params: chex.ArrayTree | None) -> None:
    """Raises Optax's own ValueError where a link was not given the params.

    >>> require_params({"w": jnp.ones(2)})
    """
    if params is None:
        raise ValueError(optax_base.NO_PARAMS_MSG)


def require_rate(name: str, argument: str, learning_rate: optax.ScalarOrSchedule) -> None:
    """Raises ValueError for what is neither a schedule nor one number ≥ 0.

    >>> require_rate("rda", "learning_rate", -0.1)
    Traceback (most recent call last):
        ...
    ValueError: rda: learning_rate must be ≥ 0 everywhere, got -0.1. Use 0 to switch it off.
    """
    if callable(learning_rate):
        return
    numbers.require_nonnegative(name, argument, learning_rate)
    if jnp.ndim(learning_rate) != 0:
        raise ValueError(
            f"{name}: {argument} must be one number, got shape {jnp.shape(learning_rate)}. "
            "Let strengths differ instead, as in penalties.l1(array)."
        )


def require(name: str, penalty: base.Penalty, learning_rate: optax.ScalarOrSchedule) -> None:
    """Raises ValueError, in the name of a link, for a bad penalty or learning rate.

    >>> require("rda", None, 0.1)
    Traceback (most recent call last):
        ...
    ValueError: rda: penalty: expected a Penalty, got None. Build one, as in ...
    """
    base.require_penalty(f"{name}: penalty", penalty)
    require_rate(name, "learning_rate", learning_rate)


def require_optimizer(name: str, inner: optax.GradientTransformation) -> None:
    """Raises ValueError unless `inner` is a transformation.

    >>> require_optimizer("aprox", 0.1)
    Traceback (most recent call last):
        ...
    ValueError: aprox: inner must be an Optax transformation, got 0.1. Give the optimizer first, ...
    """
    if hasattr(inner, "init") and hasattr(inner, "update"):
        return
    raise ValueError(
        f"{name}: inner must be an Optax transformation, got {inner!r}. Give the optimizer first, "
        f"as in {name}(optax.sgd(0.1), penalties.l1(0.01), 0.1)."
    )
