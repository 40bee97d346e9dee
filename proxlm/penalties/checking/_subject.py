"""A penalty on trial: what the laws ask of it, compiled once and for batches.

What is compared is computed by JAX; the comparing is NumPy's, in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm.penalties import base

ROWS = 64  # of a compiled call; any number of points is cut into such batches


class Subject(NamedTuple):
    """A penalty on vectors [n], and what it is tried on.

    Attributes:
      penalty: on vectors.
      x: points [P, n], of several sizes.
      others: as many more.
      noise: [N, n], standard normal.
      step_size: t.
      is_set: whether g is the indicator of a set.
      value: [B, n] ↦ [B], compiled; and so for prox (x, t), both Jacobians of the prox at
        step_size [B, n, n], the slopes of the value and of the Moreau envelope [B, n], and the
        residual (x, v).
    """

    penalty: base.Penalty
    x: np.ndarray
    others: np.ndarray
    noise: np.ndarray
    step_size: float
    is_set: bool
    value: Callable
    prox: Callable
    forwards: Callable
    backwards: Callable
    slope: Callable
    envelope_slope: Callable
    residual: Any  # a function, or None


def subject_of(
    penalty: base.Penalty,
    x: jax.Array,
    others: jax.Array,
    noise: jax.Array,
    step_size: float,
    is_set: bool = False,
) -> Subject:
    """Compiles what the laws ask of a penalty on vectors.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> ones = jnp.ones((2, 3))
    >>> subject_of(convex.l1(0.25), ones, ones, ones, 1.0).prox(ones, 2.0).tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    step = jnp.asarray(step_size, x.dtype)

    def envelope(x):
        z = penalty.prox(x, step)
        return penalty.value(z) + 0.5 * jnp.sum(jnp.square(z - x)) / step

    move = lambda x: penalty.prox(x, step)
    per_row = _batched(penalty.prox)
    return Subject(
        penalty,
        np.asarray(x),
        np.asarray(others),
        np.asarray(noise),
        step_size,
        is_set,
        value=_batched(penalty.value),
        prox=lambda x, t: per_row(x, np.broadcast_to(t, (len(x), *np.shape(t)))),
        forwards=_batched(jax.jacfwd(move)),
        backwards=_batched(jax.jacrev(move)),
        slope=_batched(jax.grad(penalty.value)),
        envelope_slope=_batched(jax.grad(envelope)),
        residual=penalty.residual and _batched(penalty.residual),
    )


def _batched(function):
    compiled = jax.jit(jax.vmap(function))

    def call(*rows):
        count = len(rows[0])
        padded = [_padded(np.asarray(a, rows[0].dtype)) for a in rows]
        batches = [np.asarray(compiled(*(a[i : i + ROWS] for a in padded))) for i in range(0, count, ROWS)]
        return np.concatenate(batches)[:count]

    return call


def _padded(rows):
    return np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % ROWS, axis=0)])
