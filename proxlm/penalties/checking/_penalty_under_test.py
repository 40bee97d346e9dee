"""A penalty on vectors with the points it is tried at, compiled once for batches.

What is compared is computed by JAX in two programs, one of values and one of derivatives; the comparison is
NumPy's, in float64.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from proxlm.penalties import base
from proxlm.penalties.coordinatewise import convex

ROWS = 64  # of a compiled call: any number of points is cut into such batches


class Derivatives(NamedTuple):
    """Derivatives at points x [B, n].

    Attributes:
      forwards: the Jacobian of x ↦ prox(x, t) by forward-mode differentiation, [B, n, n].
      backwards: the same by reverse-mode differentiation.
      slope: the gradient of the value, [B, n].
    """

    forwards: np.ndarray
    backwards: np.ndarray
    slope: np.ndarray


class PenaltyUnderTest(NamedTuple):
    """A penalty on vectors [n], and the points it is tried at.

    Attributes:
      penalty: the penalty.
      x: points [P, n], of several sizes.
      others: as many more.
      noise: standard normal numbers, [N, n].
      step_size: t.
      is_set: whether g is the indicator of a set.
      evaluate: (x [B, n], t) ↦ (value(x) [B], prox(x, t) [B, n]), t one number or a vector [n].
      differentiate: (x [B, n], t) ↦ `Derivatives`, t one number.
      residual: (x [B, n], v [B, n]) ↦ [B, n]; None where the penalty has none.
    """

    penalty: base.Penalty
    x: np.ndarray
    others: np.ndarray
    noise: np.ndarray
    step_size: float
    is_set: bool
    evaluate: Callable[..., tuple[np.ndarray, np.ndarray]]
    differentiate: Callable[..., Derivatives]
    residual: Callable[[np.ndarray, np.ndarray], np.ndarray] | None

    def value(self, x: np.ndarray) -> np.ndarray:
        """Values of rows, [B, n] ↦ [B]."""
        return self.evaluate(x, self.step_size)[0]

    def prox(self, x: np.ndarray, step_size: float | np.ndarray) -> np.ndarray:
        """The prox of rows, [B, n] ↦ [B, n]."""
        return self.evaluate(x, step_size)[1]


def under_test(
    penalty: base.Penalty,
    x: jax.typing.ArrayLike,
    others: jax.typing.ArrayLike,
    noise: jax.typing.ArrayLike,
    step_size: float,
    is_set: bool = False,
) -> PenaltyUnderTest:
    """Compiles, at first use, what the laws ask of a penalty on vectors.

    >>> ones = np.ones((2, 3), np.float32)
    >>> under_test(convex.l1(0.25), ones, ones, ones, 1.0).prox(ones, 2.0).tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """

    def differentiate(x, t):
        move = lambda x: penalty.prox(x, t)
        return Derivatives(jax.jacfwd(move)(x), jax.jacrev(move)(x), jax.grad(penalty.value)(x))

    return PenaltyUnderTest(
        penalty,
        np.asarray(x),
        np.asarray(others),
        np.asarray(noise),
        step_size,
        is_set,
        evaluate=_in_batches(lambda x, t: (penalty.value(x), penalty.prox(x, t))),
        differentiate=_in_batches(differentiate),
        residual=penalty.residual and _in_batches(penalty.residual),
    )


def _in_batches(function):
    """(x [B, n], y) ↦ function of each row; y is laid beside each row unless it has rows of its own."""
    compiled = jax.jit(jax.vmap(function))

    def call(x, y):
        rows = y if np.ndim(y) == 2 else np.broadcast_to(y, (len(x), *np.shape(y)))
        padded = [_padded(np.asarray(a, x.dtype)) for a in (x, rows)]
        batches = [compiled(*(a[i : i + ROWS] for a in padded)) for i in range(0, len(x), ROWS)]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(x)], *batches)

    return call


def _padded(rows):
    return np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % ROWS, axis=0)])


def worst(violations: jax.typing.ArrayLike) -> float:
    """The largest violation, NaN if any is.

    >>> worst(np.array([0.5, 2.0]))
    2.0
    """
    return float(np.max(violations))


def count(bad: jax.typing.ArrayLike) -> float:
    """The number of violations.

    >>> count(np.array([True, False]))
    1.0
    """
    return float(np.sum(bad))


@functools.cache
def example() -> PenaltyUnderTest:
    """The lasso of strength 0.5 in three coordinates, for the examples of the laws.

    >>> example().x.shape
    (4, 3)
    """
    x, others, noise = (np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32) for i in range(3))
    return under_test(convex.l1(0.5), x, others, noise, 0.6)
