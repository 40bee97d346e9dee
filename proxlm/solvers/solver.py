"""min f(x) + g(x) to a tolerance, inside jit, differentiable through the solution."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import base
from proxlm.solvers import _problem as problem_lib
from proxlm.solvers import _steps, rules

__all__ = ["Solution", "proximal_gradient"]

CONVERGED, EXHAUSTED, NOT_FINITE = 0, 1, 2
REASONS = (
    "converged: the error is within the tolerance",
    "stopped at max_iterations: allow more of them, or a larger tolerance",
    "stopped where the objective was not finite: check fun, or give a smaller step_size",
)


class Solution(NamedTuple):
    """Result of a solver, with the reason why it stopped.

    Attributes:
      params: where it stopped.
      objective: f + g there.
      error: how far -∇f is from ∂g there: the largest entry of the difference to the nearest
        subgradient; of a penalty without a residual, of (x - prox_tg(x - t∇f(x)))/t.
      iterations: done.
      evaluations: of f with its gradient.
      step_size: the last.
      status: 0 converged, 1 out of iterations, 2 not finite; `reason` says it in words.
      aux: of f at params, or None.
    """

    params: Any
    objective: jax.Array
    error: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    step_size: jax.Array
    status: jax.Array
    aux: Any

    @property
    def converged(self) -> jax.Array:
        """Whether the error is within the tolerance."""
        return self.status == CONVERGED

    @property
    def reason(self) -> str:
        """Why it stopped, in words; of a concrete solution."""
        return REASONS[int(self.status)]


def proximal_gradient(
    fun: Callable,
    params: chex.ArrayTree,
    penalty: base.Penalty,
    *,
    rule: _steps.Rule | None = None,
    tolerance: chex.Numeric = 1e-5,
    max_iterations: chex.Numeric = 1000,
    step_size: chex.Numeric | None = None,
    has_aux: bool = False,
    implicit: bool = True,
) -> Solution:
    """Minimises f(x) + g(x), f smooth and g a penalty, until -∇f(x) is all but a subgradient of g.

    May be jitted, and vmapped over whatever `fun` and `penalty` close over. The solution has
    derivatives with respect to the same, by the implicit function theorem at its fixed point
    x = prox_tg(x - t∇f(x)): the cost of the iterations is not differentiated, and derivatives are
    as exact as the solution is.

    Args:
      fun: params ↦ f, or (f, aux) with `has_aux`.
      params: where to start.
      rule: how to move; None for `barzilai_borwein()`. See `proxlm.solvers.rules`.
      tolerance: for `Solution.error`, in units of the gradient.
      step_size: the first to try; None measures the curvature of f along its gradient.
      implicit: whether the solution can be differentiated; False saves the linearisation.

    Raises:
      ValueError: if an argument is invalid.

    Source: Beck & Teboulle 2009; Wright, Nowak & Figueiredo 2009; implicit differentiation as in
    Bertrand et al. 2020.

    >>> from proxlm import penalties
    >>> fun = lambda x: 0.5 * jnp.sum(jnp.square(x - jnp.array([3.0, 0.5])))
    >>> solution = proximal_gradient(fun, jnp.zeros(2), penalties.l1(1.0))
    >>> solution.params.tolist(), solution.reason
    ([2.0, 0.0], 'converged: the error is within the tolerance')
    >>> solve = lambda strength: proximal_gradient(fun, jnp.zeros(2), penalties.l1(strength)).params
    >>> jax.jacobian(solve)(1.0).tolist()
    [-1.0, 0.0]
    """
    rule = rules.barzilai_borwein() if rule is None else rule
    _require(fun, params, penalty, rule, tolerance, max_iterations, step_size)
    problem, start = problem_lib.flatten(fun, params, penalty, has_aux)
    first = _first_step(problem, start) if step_size is None else jnp.asarray(step_size)
    first = jax.lax.stop_gradient(first.astype(start.dtype))

    def run(start):
        state, iterations, status = _iterate(problem, rule, start, first, tolerance, max_iterations)
        counts = jnp.stack([iterations, state.evaluations, status]).astype(start.dtype)
        return state.point.x, (counts, state.step_size)

    if implicit:
        # The counts travel as floats, since custom_root wants a tangent of everything.
        x, (counts, last) = jax.lax.custom_root(
            lambda x: x - problem.prox(x - first * problem.at(x).gradient, first),
            jax.lax.stop_gradient(start),
            lambda _, start: run(start),
            _solve_linear,
            has_aux=True,
        )
    else:
        x, (counts, last) = run(start)
    iterations, evaluations, status = jax.lax.stop_gradient(counts).astype(jnp.int32)
    last = jax.lax.stop_gradient(last)
    point = problem.at(x)
    found = problem.unravel(x), point.total, problem.error(point, last)
    return Solution(*found, iterations, evaluations, last, status, point.aux)


def _require(fun, params, penalty, rule, tolerance, max_iterations, step_size):
    """Raises ValueError for invalid arguments of `proximal_gradient`."""
    base.require_penalty("proximal_gradient", penalty=penalty)
    _validation.tree_at_least(0, "proximal_gradient", tolerance=tolerance)
    _validation.a_function("proximal_gradient", fun=fun)
    _validation.arrays("proximal_gradient", params=params)
    if _validation.is_known(max_iterations):
        _validation.integer(0, "proximal_gradient", max_iterations=max_iterations)
    if step_size is not None:
        _validation.tree_positive("proximal_gradient", step_size=step_size)
    if not isinstance(rule, _steps.Rule):
        raise _validation.invalid("rule", rule, "a Rule", "Call one: solvers.fista().", "proximal_gradient")


def _iterate(problem, rule, start, step_size, tolerance, max_iterations):
    """Runs the rule; gives its last state, the iterations done and why they ended."""

    def judge(state):
        error = problem.error(state.point, state.step_size)
        finite = jnp.isfinite(state.point.total)
        return jnp.where(finite, jnp.where(error <= tolerance, CONVERGED, EXHAUSTED), NOT_FINITE)

    def unfinished(carry):
        _, iterations, status = carry
        return (status == EXHAUSTED) & (iterations < max_iterations)

    def advance(carry):
        state, iterations, _ = carry
        state = rule.step(problem, state)
        return state, iterations + 1, judge(state)

    state = rule.init(problem, problem.at(start), step_size)
    return jax.lax.while_loop(unfinished, advance, (state, jnp.int32(0), judge(state)))


def _first_step(problem, x):
    """The inverse of the curvature of f along its gradient."""
    point = problem.at(x)
    size = jnp.linalg.norm(point.gradient)
    scale = jnp.maximum(jnp.linalg.norm(x), 1.0)
    nudge = 1e-3 * scale / jnp.where(size > 0, size, 1.0)
    there = problem.at(x - nudge * point.gradient)
    curvature = jnp.linalg.norm(there.gradient - point.gradient) / (nudge * size)
    usable = jnp.isfinite(curvature) & (curvature > 0)
    return jnp.where(usable, 1.0 / jnp.where(usable, curvature, 1.0), 1.0)


def _solve_linear(matvec, b):
    """Solves (I - J)x = b, J the derivative of the fixed-point map."""
    if b.size <= 256:
        matrix = jax.jacfwd(matvec)(jnp.zeros_like(b))
        # Directions in which the solution is not unique do not move.
        return jnp.linalg.solve(matrix, b)
    solution, _ = jax.scipy.sparse.linalg.gmres(matvec, b, tol=1e-10, restart=50, maxiter=20)
    return solution
