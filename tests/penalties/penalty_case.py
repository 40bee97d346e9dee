"""A penalty under test, and what is known of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from proxlm import penalties
from tests.arrays import numpy_normal as normal

SHAPE = (4, 3)


class Case(NamedTuple):
    """One line of a table: every law of `test_penalty_laws` that applies is then checked.

    Attributes:
      make: strength ↦ penalty on an array of SHAPE; a set ignores the strength.
      convex: whether g is convex (the prox is then firmly nonexpansive, else it must not be).
      is_set: whether g is the indicator of a set.
      metric: whether the step size may be shaped like x.
      pointwise: (z, strength) ↦ g of single coordinates, elementwise in NumPy, for a brute-force
        grid; None unless g is the same sum over coordinates.
      dual_prox: (y, s) ↦ prox of s·g* at y for strength 0.7, written without the library; None
        where no closed form is known.
      largest_step: the prox is defined for t up to here (MCP and SCAD want t below their γ).
    """

    make: Callable[[float], penalties.Penalty]
    convex: bool = True
    is_set: bool = False
    metric: bool = False
    pointwise: Callable | None = None
    dual_prox: Callable | None = None
    largest_step: float = 1.0


def ramp() -> np.ndarray:
    """Positive numbers of SHAPE, all different."""
    return np.linspace(0.2, 1.8, 12, dtype=np.float32).reshape(SHAPE)


def anchor() -> np.ndarray:
    """A point to measure from."""
    return normal(100, SHAPE)


def compiled(penalty: penalties.Penalty) -> penalties.Penalty:
    """The penalty with its members compiled: one program each, where op by op every operation is one.

    Results that are not traced are NumPy's, so that what a test does with them compiles nothing.
    """
    return penalty._replace(value=in_numpy(penalty.value), prox=in_numpy(penalty.prox))


def in_numpy(function: Callable) -> Callable:
    """The function compiled, with results in NumPy unless they are traced."""
    program = jax.jit(function)
    leaf = lambda a: a if isinstance(a, jax.core.Tracer) else np.asarray(a)
    return lambda *args: jax.tree.map(leaf, program(*args))
