"""A proximal gradient step with a backtracked step size, and the form of a rule made of such steps."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm.solvers._problem import Point, Problem


@dataclasses.dataclass(frozen=True)
class Rule:
    """A way to move; of its states a solver reads `point`, `step_size` and `evaluations` alone.

    Attributes:
      init: (Problem, Point, step_size) ↦ state.
      step: (Problem, state) ↦ state.
      refresh: (Problem, state, Point) ↦ the state that goes on from this point, whose f may have other data.
      needs_value: whether it compares values of g.
      key: rules of equal keys are the same rule.
    """

    init: Callable = dataclasses.field(compare=False)
    step: Callable = dataclasses.field(compare=False)
    refresh: Callable = dataclasses.field(compare=False)
    needs_value: bool = True
    key: Hashable = dataclasses.field(default_factory=object)


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


def refresh_or_reset(init: Callable) -> Callable:
    """A `refresh` for memories of one f: begins anew if the gradient at the point is another one."""

    def refresh(problem, state, point):
        old = state.point
        size = jnp.maximum(jnp.max(jnp.abs(old.gradient)), jnp.max(jnp.abs(point.gradient)))
        rounding = jnp.sqrt(jnp.finfo(size.dtype).eps) * size
        same = jnp.all(old.x == point.x) & jnp.all(jnp.abs(old.gradient - point.gradient) <= rounding)
        anew = init(problem, point, state.step_size)
        memory = jax.tree.map(lambda kept, new: jnp.where(same, kept, new), state.memory, anew.memory)
        return State(point, state.step_size, state.evaluations + 1, memory)

    return refresh


def grown(problem: Problem, step_size: jax.Array, grow: float) -> jax.Array:
    """The step size to try next; a constant one stays."""
    return step_size if problem.backtracking is None else grow * step_size


def backtrack(problem: Problem, start: Point, step_size: jax.Array) -> tuple:
    """A step whose quadratic model bounds f from above; `(point, t, tries)`."""
    rounding = 10.0 * jnp.finfo(start.x.dtype).eps

    def bounded(new, t):
        move = new.x - start.x
        length = inner(problem.metric * move, move)
        above = new.smooth - start.smooth - inner(start.gradient, move)
        # Where f and its linear model agree up to rounding, the change of the gradient tells.
        bends = inner(new.gradient - start.gradient, move) <= length / t
        level = jnp.abs(above) <= rounding * jnp.abs(start.smooth)
        return (above <= length / (2.0 * t)) | (level & bends)

    return shorten_until(problem, start, step_size, bounded)


def shorten_until(
    problem: Problem, start: Point, step_size: jax.Array, accept: Callable[[Point, jax.Array], jax.Array]
) -> tuple:
    """Shortens t until the step is accepted; gives the point, t and the number of tries."""
    t = jnp.minimum(step_size, problem.largest).astype(start.x.dtype)
    if problem.backtracking is None:
        return problem.moved(start, t), t, jnp.int32(1)
    factor, limit = problem.backtracking.factor, problem.backtracking.limit

    def refused(carry):
        point, t, tries = carry
        return (tries == 0) | (~accept(point, t) & (tries < limit))

    def attempt(carry):
        _, t, tries = carry
        t = jnp.where(tries == 0, t, factor * t)
        return problem.moved(start, t), t, tries + 1

    return jax.lax.while_loop(refused, attempt, (start, t, jnp.int32(0)))


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """⟨x, y⟩, in all the bits of the dtype on every device.

    >>> inner(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])).item()
    3.0
    """
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)
