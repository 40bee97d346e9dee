"""The iteration: where it begins, one step of it, and its run until it is over."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from proxlm.solvers import _problem, _progress, _steps

CONVERGED, EXHAUSTED, NOT_FINITE, PRECISION, UNFINISHED = range(5)


class Static(NamedTuple):
    """Settings that are compiled in."""

    objective: _problem.Objective
    rule: _steps.Rule
    callback: Callable[["Iteration"], Any] | None = None
    verbose: bool = False
    implicit: bool = True


class Numbers(NamedTuple):
    """Settings that may be traced."""

    tolerance: chex.Numeric | None
    relative_tolerance: chex.Numeric
    max_iterations: chex.Numeric
    step_size: chex.Numeric | None
    max_step_size: chex.Numeric
    metric: Any


class SolverState(NamedTuple):
    """State of a solver between two steps, also in `Solution.state`.

    Attributes:
      moving: state of the rule: its point, step size, evaluations and memory.
      progress: the best point so far.
      error: as in `Solution`, at the point.
      scale: the largest entry of the gradient at the start, the unit of `relative_tolerance`.
      iterations: done.
      status: as in `Solution`; 4 before it is over.
      aux: of f at the params, or None.
    """

    moving: _steps.State
    progress: _progress.Progress
    error: jax.Array
    scale: jax.Array
    iterations: jax.Array
    status: jax.Array
    aux: Any = None


class Iteration(NamedTuple):
    """Argument of a callback, in NumPy arrays.

    Attributes:
      iterations: done.
      params: the iterate.
      objective: f + g there.
      error: as in `Solution`.
      step_size: the next to try.
    """

    iterations: Any
    params: Any
    objective: Any
    error: Any
    step_size: Any


def pose(static: Static, numbers: Numbers, params: Any, args: tuple) -> tuple[_problem.Problem, jax.Array]:
    """The problem on vectors, and the params as one.

    >>> from proxlm import penalties
    >>> static = Static(_problem.Objective(jnp.sum, penalties.zero()), None)
    >>> pose(static, Numbers(0.0, 0.0, 1, None, jnp.inf, None), {"w": jnp.ones((1, 2))}, ())[1].shape
    (2,)
    """
    return _problem.flatten(static.objective, params, args, numbers.metric, numbers.max_step_size)


def init(static: Static, numbers: Numbers, params: Any, args: tuple) -> SolverState:
    """The state before the first step."""
    problem, x = pose(static, numbers, params, args)
    state = _begin(static, numbers, problem, x)
    return state._replace(aux=_problem.aux(static.objective, params, args))


def update(static: Static, numbers: Numbers, params: Any, state: SolverState, args: tuple) -> tuple:
    """One step on these data; `(params, state)`."""
    problem, x = pose(static, numbers, params, args)
    point = problem.measured(problem.at(x), state.moving.step_size)
    moving = static.rule.refresh(problem, state.moving, point)
    error = problem.error(moving.point)
    begun = state._replace(moving=moving, progress=_progress.init(moving.point, error), aux=None)
    state = _advance(static, numbers, problem, begun)
    params = problem.unravel(state.moving.point.x)
    return params, state._replace(aux=_problem.aux(static.objective, params, args))


def run(static: Static, numbers: Numbers, params: Any, args: tuple) -> tuple:
    """Iterates until it is over; `(params, objective, error, state)`."""
    problem, start = pose(static, numbers, params, args)
    start = jax.lax.stop_gradient(start)
    step_size = jax.lax.stop_gradient(_step_size(numbers, problem, problem.at(start)))

    def iterate(start):
        state = descend(static, numbers._replace(step_size=step_size), problem, start)
        return best(state), state

    if static.implicit:
        x, state = _differentiable(problem, iterate, start, step_size)
        point = problem.measured(problem.at(x), state.moving.step_size)
        objective, error = point.total, problem.error(point)
    else:
        x, state = iterate(start)
        over, progress = state.status == CONVERGED, state.progress
        objective = jnp.where(over, state.moving.point.total, progress.total)
        error = jnp.where(over, state.error, progress.error)
    params = problem.unravel(x)
    state = state._replace(aux=_problem.aux(static.objective, params, args))
    return params, objective, error, state


def descend(static: Static, numbers: Numbers, problem: _problem.Problem, x: jax.Array) -> SolverState:
    """Iterates from x until it is over."""
    unfinished = lambda state: state.status == UNFINISHED
    advance = lambda state: _advance(static, numbers, problem, state)
    return jax.lax.while_loop(unfinished, advance, _begin(static, numbers, problem, x))


def best(state: SolverState) -> jax.Array:
    """The point to return, as a vector: the last if it converged, else the best."""
    return jnp.where(state.status == CONVERGED, state.moving.point.x, state.progress.best)


def _begin(static, numbers, problem, x):
    point = problem.at(x)
    step_size = _step_size(numbers, problem, point)
    point = problem.measured(point, step_size)
    moving, error = static.rule.init(problem, point, step_size), problem.error(point)
    scale = jnp.max(jnp.abs(point.gradient), initial=0.0)
    begun = SolverState(
        moving, _progress.init(point, error), error, scale, jnp.int32(0), jnp.int32(UNFINISHED)
    )
    over = {"finite": jnp.isfinite(point.smooth), "near": jnp.isfinite(point.total)}
    return begun._replace(status=_status(numbers, begun, **over))


def _advance(static, numbers, problem, state):
    moving = static.rule.step(problem, state.moving)
    point = moving.point
    error = problem.error(point)
    has_value = static.objective.penalty.value is not None
    progress = _progress.observe(state.progress, point, error, has_value)
    state = SolverState(moving, progress, error, state.scale, state.iterations + 1, state.status)
    status = _status(numbers, state, finite=jnp.isfinite(point.total))
    shown = state.iterations, problem.unravel(point.x), point.total, error, moving.step_size
    if static.callback is not None:
        jax.debug.callback(lambda *shown: static.callback(Iteration(*shown)), *shown)
    if static.verbose:
        jax.debug.print("iteration {}: objective {}, error {}, step size {}", shown[0], *shown[2:])
    return state._replace(status=status)


def _status(numbers, state, finite, near: Any = True):
    """The status here; without a tolerance the number of iterations alone ends them."""
    status = jnp.where(state.iterations < numbers.max_iterations, UNFINISHED, EXHAUSTED)
    if numbers.tolerance is not None:
        near &= state.error <= numbers.tolerance + numbers.relative_tolerance * state.scale
        exhausted = _progress.exhausted(state.progress, state.moving.step_size)
        status = jnp.where(near, CONVERGED, jnp.where(exhausted, PRECISION, status))
    return jnp.where(finite, status, NOT_FINITE).astype(jnp.int32)


def _step_size(numbers, problem, point):
    """The given step size, or the inverse of the curvature of f along its gradient."""
    if numbers.step_size is not None:
        return jnp.asarray(numbers.step_size, point.x.dtype)
    way = point.gradient / problem.metric
    size = jnp.sqrt(jnp.sum(problem.metric * jnp.square(way)))
    nudge = 1e-3 * jnp.maximum(jnp.linalg.norm(point.x), 1.0) / jnp.where(size > 0, size, 1.0)
    bend = problem.at(point.x - nudge * way).gradient - point.gradient
    curvature = jnp.sqrt(jnp.sum(jnp.square(bend) / problem.metric)) / (nudge * size)
    usable = jnp.isfinite(curvature) & (curvature > 0)
    return jnp.where(usable, 1.0 / jnp.where(usable, curvature, 1.0), 1.0)


def _differentiable(problem, iterate, start, step_size):
    """The solution with derivatives by the implicit function theorem at x = prox_tg(x - t∇f(x))."""
    template = jax.eval_shape(iterate, start)[1]
    # The state travels as floats, since custom_root wants a tangent of everything.
    to_float = lambda leaf: leaf.astype(jnp.result_type(leaf, start.dtype))
    back = lambda leaf, like: jax.lax.stop_gradient(leaf).astype(like.dtype)

    def solve(_, start):
        x, state = iterate(start)
        return x, jax.tree.map(to_float, state)

    gap = lambda x: x - problem.step(problem.at(x), step_size)
    x, state = jax.lax.custom_root(gap, start, solve, _solve_linear, has_aux=True)
    return x, jax.tree.map(back, state, template)


def _solve_linear(matvec, b):
    """Solves (I - J)x = b, J the derivative of the fixed-point map."""
    if b.size <= 256:
        matrix = jax.jacfwd(matvec)(jnp.zeros_like(b))
        # Directions in which the solution is not unique do not move.
        return jnp.linalg.solve(matrix, b)
    solution, _ = jax.scipy.sparse.linalg.gmres(matvec, b, tol=1e-10, restart=50, maxiter=20)
    return solution
