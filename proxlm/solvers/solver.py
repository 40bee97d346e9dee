"""min f(x) + g(x) to a tolerance or step by step, inside jit, differentiable through the solution."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import base
from proxlm.solvers import _compiled, _iterate, _problem, _steps, rules
from proxlm.solvers._iterate import SolverState
from proxlm.solvers._solution import Solution

__all__ = ["Options", "Solution", "Solver", "proximal_gradient"]


class Options(TypedDict, total=False):
    """The options of `Solver`."""

    rule: _steps.Rule | None
    tolerance: chex.Numeric | None
    relative_tolerance: chex.Numeric
    max_iterations: chex.Numeric
    step_size: chex.Numeric | None
    max_step_size: chex.Numeric
    backtracking: _problem.Backtracking | None
    metric: Any
    has_aux: bool
    value_and_grad: bool
    implicit: bool
    callback: Callable[[_iterate.Iteration], Any] | None
    verbose: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """A problem min f(x) + g(x) and a way to solve it, to a tolerance or step by step.

    Outside of `jit` its functions are compiled once for each shape, so `fun` should depend on its
    arguments alone.

    Attributes:
      fun: (params, *args) ↦ f, or (f, aux) with `has_aux`, smooth.
      penalty: g. Without a value, `Penalty(None, prox)`, it gets a rule that needs none.
      rule: how to move; None for `barzilai_borwein()`, and for `fista()` where the penalty has no value or
        the step size is constant. See `proxlm.solvers.rules`.
      tolerance: for `Solution.error`, in units of the gradient; None for `max_iterations` exactly.
      relative_tolerance: added to the tolerance in units of the largest entry of ∇f at the start.
      step_size: the first to try; None measures the curvature of f along its gradient.
      max_step_size: the largest allowed.
      backtracking: how a step is shortened; None for a constant `step_size`.
      metric: D > 0, a tree like the params: x_i takes steps of t/D_i, g too, whose prox must allow it.
      value_and_grad: whether `fun` gives its gradient too: (f, ∇f), or ((f, aux), ∇f).
      implicit: whether the solution can be differentiated; False saves the linearisation.
      callback: called on the host after every iteration, with an `Iteration`.
      verbose: whether every iteration prints a line.

    Raises:
      ValueError: if an argument is invalid.

    >>> from proxlm import penalties
    >>> fun = lambda x, target: 0.5 * jnp.sum(jnp.square(x - target))
    >>> solver = Solver(fun, penalties.l1(1.0), rule=rules.ista(), step_size=0.5, backtracking=None)
    >>> params, target = jnp.zeros(2), jnp.array([3.0, 0.5])
    >>> state = solver.init(params, target)
    >>> params, state = solver.update(params, state, target)
    >>> params.tolist(), solver.run(params, target).params.round(4).tolist()
    ([1.0, 0.0], [2.0, 0.0])
    """

    fun: Callable
    penalty: base.Penalty
    _: dataclasses.KW_ONLY
    rule: _steps.Rule | None = None
    tolerance: chex.Numeric | None = 1e-5
    relative_tolerance: chex.Numeric = 0.0
    max_iterations: chex.Numeric = 1000
    step_size: chex.Numeric | None = None
    max_step_size: chex.Numeric = jnp.inf
    backtracking: _problem.Backtracking | None = dataclasses.field(default_factory=_problem.Backtracking)
    metric: Any = None
    has_aux: bool = False
    value_and_grad: bool = False
    implicit: bool = True
    callback: Callable[[_iterate.Iteration], Any] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        """Validates the settings."""
        base.require_penalty("proximal_gradient", penalty=self.penalty)
        _validation.a_function("proximal_gradient", fun=self.fun)
        if self.callback is not None:
            _validation.a_function("proximal_gradient", callback=self.callback)
        if self.tolerance is not None:
            _validation.tree_at_least(0, "proximal_gradient", tolerance=self.tolerance)
        _validation.tree_at_least(0, "proximal_gradient", relative_tolerance=self.relative_tolerance)
        if _validation.is_known(self.max_iterations) or self.max_iterations is None:
            _validation.to_int(0, "proximal_gradient", max_iterations=self.max_iterations)
        for size in ("step_size", "max_step_size", "metric"):
            if getattr(self, size) is not None or size == "max_step_size":
                _validation.tree_positive("proximal_gradient", **{size: getattr(self, size)})
        for name in ("tolerance", "relative_tolerance", "step_size", "max_step_size"):
            _validation.scalar("proximal_gradient", **{name: getattr(self, name)})
        for name in ("has_aux", "value_and_grad", "implicit", "verbose"):
            _validation.one_of((True, False), "proximal_gradient", **{name: getattr(self, name)})
        _require_rule(self)

    def run(self, params: chex.ArrayTree, *args: Any) -> Solution:
        """Solves the problem on these data, from these params."""
        _require_params(params)
        static, numbers = _split(self)
        params, objective, error, state = _compiled.run(static, numbers, params, args)
        moving, aux = state.moving, state.aux
        counts = state.iterations, moving.evaluations, moving.step_size, state.status
        return Solution(params, objective, error, *counts, aux, state)

    def init(self, params: chex.ArrayTree, *args: Any) -> SolverState:
        """The state before the first step."""
        _require_params(params)
        return _iterate.init(*_split(self), params, args)

    def update(self, params: chex.ArrayTree, state: SolverState, *args: Any) -> tuple[Any, SolverState]:
        """One step on these data, which may be others than those before; gives the params and the state."""
        static, numbers = _split(self)
        return _compiled.update(static, numbers, params, state, args)


def proximal_gradient(
    fun: Callable, params: chex.ArrayTree, penalty: base.Penalty, *args: Any, **options: Unpack[Options]
) -> Solution:
    """Minimises f(x) + g(x), f smooth and g a penalty, until -∇f(x) is all but a subgradient of g.

    May be jitted, and vmapped over whatever `fun` and `penalty` close over. The solution has
    derivatives with respect to the same, by the implicit function theorem at its fixed point
    x = prox_tg(x - t∇f(x)): the cost of the iterations is not differentiated, and derivatives are
    as exact as the solution is. Outside of `jit` a second call with the same function and shapes is not
    compiled again.

    Args:
      fun: (params, *args) ↦ f, or (f, aux) with `has_aux`.
      params: where to start.
      *args: data, for `fun`.
      **options: of `Solver`.

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
    >>> jax.jit(jax.jacobian(solve))(1.0).tolist()
    [-1.0, 0.0]
    """
    return Solver(fun, penalty, **options).run(params, *args)


def _split(solver):
    """Divides the settings into those that are compiled in and the numbers."""
    rule = _chosen_rule(solver)
    flags = solver.backtracking, solver.has_aux, solver.value_and_grad
    objective = _problem.Objective(solver.fun, solver.penalty, *flags)
    static = _iterate.Static(objective, rule, solver.callback, solver.verbose, solver.implicit)
    tolerances = solver.tolerance, solver.relative_tolerance, solver.max_iterations
    return static, _iterate.Numbers(*tolerances, solver.step_size, solver.max_step_size, solver.metric)


def _chosen_rule(solver):
    if solver.rule is not None:
        return solver.rule
    plain = solver.penalty.value is None or solver.backtracking is None
    return rules.fista() if plain else rules.barzilai_borwein()


def _require_rule(solver):
    """Raises ValueError for a rule that does not go with the penalty or the step size."""
    rule, name = solver.rule, "proximal_gradient"
    if rule is not None and not isinstance(rule, _steps.Rule):
        raise _validation.invalid("rule", rule, "a Rule", "Call one: solvers.fista().", name)
    if rule is not None and rule.needs_value and solver.penalty.value is None:
        remedy = "Use fista() or ista(), or leave the rule out."
        raise _validation.invalid("rule", rule.key, "one that needs no value of the penalty", remedy, name)
    if solver.backtracking is None and solver.step_size is None:
        raise _validation.invalid("step_size", None, "given where backtracking is None", "", name)


def _require_params(params):
    """Raises ValueError for params that are not real floating-point arrays."""
    _validation.arrays("proximal_gradient", params=params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            argument = f"params at {place}" if place else "params"
            given = _validation.Verbatim(jnp.result_type(leaf))
            remedy = "Convert it: jnp.asarray(x, jnp.float32)."
            raise _validation.invalid(argument, given, "of real floating-point", remedy, "proximal_gradient")
