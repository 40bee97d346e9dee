"""A proximal gradient step with a backtracked step size, and the form of a rule made of such steps.

A rule is `(init, step)`. `init(problem, point, step_size)` gives a state, `step(problem, state)`
the next one; of a state the solver reads `point`, `step_size` and `evaluations` alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm.solvers._problem import Point, Problem


class Rule(NamedTuple):
    """A way to move; see the module.

    Attributes:
      init: (Problem, Point, step_size) ↦ state.
      step: (Problem, state) ↦ state.
    """

    init: Callable
    step: Callable


class State(NamedTuple):
    """State of a rule: the point and step size that every rule has, and its own memory.

    Attributes:
      point: the iterate.
      step_size: of the last step, or the next one to try.
      evaluations: of f and its gradient so far.
      memory: of the rule.
    """

    point: Point
    step_size: jax.Array
    evaluations: jax.Array
    memory: Any


def backtrack(problem: Problem, start: Point, step_size: jax.Array) -> tuple:
    """A step whose quadratic model bounds f from above; `(point, t, tries)`."""
    rounding = 10.0 * jnp.finfo(start.x.dtype).eps

    def bounded(new, t):
        move = new.x - start.x
        bound = start.smooth + inner(start.gradient, move) + square(move) / (2.0 * t)
        return new.smooth <= bound + rounding * jnp.abs(start.smooth)

    return halve_until(problem, start, step_size, bounded)


def halve_until(
    problem: Problem, start: Point, step_size: jax.Array, accept: Callable[[Point, jax.Array], jax.Array]
) -> tuple:
    """Halves t until the step is accepted; gives the point, t and the number of tries."""
    move = lambda t: problem.at(problem.prox(start.x - t * start.gradient, t))

    def refused(carry):
        point, t, tries = carry
        return ~accept(point, t) & (tries < 60)

    def retry(carry):
        _, t, tries = carry
        return move(0.5 * t), 0.5 * t, tries + 1

    return jax.lax.while_loop(refused, retry, (move(step_size), step_size, jnp.int32(1)))


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """⟨x, y⟩, in all the bits of the dtype on every device.

    >>> inner(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])).item()
    3.0
    """
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)


def square(x: jax.Array) -> jax.Array:
    """|x|².

    >>> square(jnp.array([3.0, 4.0])).item()
    25.0
    """
    return inner(x, x)
