"""How a solver moves: rules of pure functions, each a way to take one proximal gradient step.

A rule is `(init, step)`. `init(problem, point, step_size)` gives a state, `step(problem, state)`
the next one; of a state the solver reads `point`, `step_size` and `evaluations` alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm.solvers import problem as problem_lib
from proxlm.solvers import quasi_newton

Point = problem_lib.Point


class Rule(NamedTuple):
    """A way to move; see the module.

    Attributes:
      init: (Problem, Point, step_size) ↦ state.
      step: (Problem, state) ↦ state.
    """

    init: Callable
    step: Callable


class State(NamedTuple):
    """What every rule keeps, and what it keeps besides.

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


class Momentum(NamedTuple):
    """Memory of `fista`: the point it starts its step from, and its weight t_k."""

    start: Point
    weight: jax.Array


def fista(restart: bool = True, strong_convexity: float = 0.0, grow: float = 1.1) -> Rule:
    """Proximal gradient with Nesterov's momentum and backtracking.

    x⁺ = prox_tg(z - t ∇f(z)), then z⁺ = x⁺ + β (x⁺ - x); t is halved until
    f(x⁺) ≤ f(z) + ⟨∇f(z), x⁺ - z⟩ + |x⁺ - z|²/2t and grows by a factor afterwards. β follows the
    sequence t_k of Beck & Teboulle, or is (1 - √(tμ))/(1 + √(tμ)) where the strong convexity μ is
    known.

    Args:
      restart: drop the momentum when it points uphill, ⟨z - x⁺, x⁺ - x⟩ > 0: worth several times
        the speed where f + g is strongly convex near the solution.
      strong_convexity: μ of f, if known.
      grow: the factor ≥ 1 by which the step size recovers.

    Returns:
      The rule. An iteration evaluates f and its gradient twice, and once more for each halving.

    Source: Beck & Teboulle 2009; restart by the gradient of O'Donoghue & Candès 2015; Nesterov
    2004, section 2.2 for known μ.

    >>> fista().step is not None
    True
    """

    def init(problem, point, step_size):
        one = jnp.ones((), point.x.dtype)
        return State(point, step_size, jnp.int32(1), Momentum(point, one))

    def step(problem, state):
        z, weight = state.memory
        point, t, tries = _backtrack(problem, z, state.step_size)
        move = point.x - state.point.x
        if strong_convexity:
            root = jnp.sqrt(jnp.minimum(t * strong_convexity, 1.0))
            next_weight, beta = weight, (1.0 - root) / (1.0 + root)
        else:
            next_weight = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * jnp.square(weight)))
            beta = (weight - 1.0) / next_weight
        uphill = restart & (jnp.vdot(z.x - point.x, move) > 0)
        beta = jnp.where(uphill, 0.0, beta)
        next_weight = jnp.where(uphill, 1.0, next_weight).astype(weight.dtype)
        start = problem.at(point.x + beta * move)
        memory = Momentum(start, next_weight)
        return State(point, grow * t, state.evaluations + tries + 1, memory)

    return Rule(init, step)


def ista(grow: float = 1.1) -> Rule:
    """Proximal gradient with backtracking: x⁺ = prox_tg(x - t ∇f(x)); g may be nonconvex.

    Args:
      grow: the factor ≥ 1 by which the step size recovers.

    Returns:
      The rule. An iteration evaluates f and its gradient once, and once more for each halving.

    Source: Daubechies, Defrise & De Mol 2004; Beck & Teboulle 2009.

    >>> ista().step is not None
    True
    """

    def init(problem, point, step_size):
        return State(point, step_size, jnp.int32(1), ())

    def step(problem, state):
        point, t, tries = _backtrack(problem, state.point, state.step_size)
        return State(point, grow * t, state.evaluations + tries, ())

    return Rule(init, step)


class Recent(NamedTuple):
    """Memory of `barzilai_borwein`: recent objectives, and pairs for the steps on the manifold."""

    totals: jax.Array
    pairs: quasi_newton.Pairs


def barzilai_borwein(patience: int = 10, memory: int = 8) -> Rule:
    """Proximal gradient with spectral step sizes, and quasi-Newton steps on the nonzeros between.

    t = |Δx|²/⟨Δx, Δ∇f⟩, the inverse curvature along the last move, accepted if f + g is below the
    largest of its last few values; each step is followed by one of limited-memory BFGS in the
    coordinates that are not zero, along the smallest subgradient, in which no coordinate may change
    its sign. It is kept if it lowers f + g, so g may be what it likes; penalties without a residual
    get the spectral steps alone.

    Args:
      patience: how many objectives a step may be compared with, static.
      memory: pairs of the quasi-Newton model, static; 0 leaves these steps out.

    Returns:
      The rule. An iteration evaluates f and its gradient twice, and once more for each halving.

    Source: Barzilai & Borwein 1988; Wright, Nowak & Figueiredo 2009 (SpaRSA); Byrd, Lu, Nocedal &
    Zhu 1995 for minimising in the face that the first step found.

    >>> barzilai_borwein().step is not None
    True
    """

    def init(problem, point, step_size):
        totals = jnp.full((patience,), point.total)
        pairs = quasi_newton.init(memory, point.x)
        return State(point, step_size, jnp.int32(1), Recent(totals, pairs))

    def step(problem, state):
        old, (totals, pairs) = state.point, state.memory
        highest = jnp.max(totals)
        accept = lambda new, t: new.total <= highest - 1e-4 * _square(new.x - old.x) / (2.0 * t)
        point, t, tries = _halve_until(problem, old, state.step_size, accept)
        move, bend = point.x - old.x, point.gradient - old.gradient
        curvature = jnp.vdot(move, bend)
        tiny = jnp.finfo(move.dtype).tiny
        spectral = jnp.where(curvature > tiny, _square(move) / jnp.maximum(curvature, tiny), 2 * t)
        t = jnp.where(jnp.isfinite(spectral) & (spectral > 0), spectral, t)
        if memory and problem.descent is not None:
            pairs = quasi_newton.push(pairs, move, bend)
            point, pairs = _on_the_nonzeros(problem, point, pairs)
            tries = tries + 1
        totals = jnp.concatenate([totals[1:], point.total[None]])
        return State(point, t, state.evaluations + tries, Recent(totals, pairs))

    return Rule(init, step)


def _on_the_nonzeros(problem, point, pairs):
    """A quasi-Newton step in the face of the nonzeros, if it goes down."""
    live = point.x != 0
    direction = quasi_newton.direction(pairs, jnp.where(live, problem.descent(point), 0.0), live)
    goal = point.x + direction
    goal = jnp.where(jnp.sign(goal) == jnp.sign(point.x), goal, 0.0)
    trial = problem.at(goal)
    better = trial.total < point.total
    pushed = quasi_newton.push(pairs, goal - point.x, trial.gradient - point.gradient)
    choose = lambda new, old: jnp.where(better, new, old)
    return jax.tree.map(choose, trial, point), jax.tree.map(choose, pushed, pairs)


def _backtrack(problem, start, step_size):
    """A step whose quadratic model bounds f from above."""
    rounding = 10.0 * jnp.finfo(start.x.dtype).eps

    def bounded(new, t):
        move = new.x - start.x
        bound = start.smooth + jnp.vdot(start.gradient, move) + _square(move) / (2.0 * t)
        return new.smooth <= bound + rounding * jnp.abs(start.smooth)

    return _halve_until(problem, start, step_size, bounded)


def _halve_until(problem, start, step_size, accept):
    """Halves t until the step is accepted; gives the point, t and the number of tries."""
    move = lambda t: problem.at(problem.prox(start.x - t * start.gradient, t))

    def refused(carry):
        point, t, tries = carry
        return ~accept(point, t) & (tries < 60)

    def retry(carry):
        _, t, tries = carry
        return move(0.5 * t), 0.5 * t, tries + 1

    return jax.lax.while_loop(refused, retry, (move(step_size), step_size, jnp.int32(1)))


def _square(x):
    return jnp.vdot(x, x)
