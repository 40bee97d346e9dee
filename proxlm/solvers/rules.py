"""Rules by which a solver moves: momentum, spectral steps, extrapolation.

A `Rule` is given to `proximal_gradient`. An iteration evaluates f and its gradient twice (`ista` once,
`barzilai_borwein` up to five times), and once more for each halving of the step size, which recovers by the
factor `grow` ≥ 1.

Mirror descent and block coordinate descent are left out, since the default rule is as fast where they are
at home. To a relative error of 1e-6 on the simplex, entropic mirror descent with backtracking took 1575, 815,
26, 224 and 1588 evaluations, the default 15, 25, 5, 11 and 107 (least squares with a sparse and with an inner
solution, a portfolio, a mixture, a smoothed game; 200 to 2000 entries). Of group lassos of 1000 x 300 x 10,
λmax/10 and /100, block coordinate descent took .8 and 1.3 of the default's CPU time, 1.6 and 1.4 where
neighbouring features correlate by .9 (n=3, a shared Xeon core).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.solvers import _extrapolation, _face, _quasi_newton
from proxlm.solvers._problem import Point
from proxlm.solvers._steps import Rule, State, backtrack, grown, inner, refresh_or_reset, shorten_until

__all__ = ["anderson", "barzilai_borwein", "fista", "ista"]


class Momentum(NamedTuple):
    """Memory of `fista`: the point it starts its step from, and its weight t_k."""

    start: Point
    weight: jax.Array


@_validation.typed
def fista(restart: bool = True, strong_convexity: float = 0.0, grow: float = 1.1) -> Rule:
    """Proximal gradient with Nesterov's momentum and backtracking.

    x⁺ = prox_tg(z - t ∇f(z)), then z⁺ = x⁺ + β (x⁺ - x); t is halved until
    f(x⁺) ≤ f(z) + ⟨∇f(z), x⁺ - z⟩ + |x⁺ - z|²/2t and grows by a factor afterwards. β follows the
    sequence t_k of Beck & Teboulle, or is (1 - √(tμ))/(1 + √(tμ)) where the strong convexity μ is
    known.

    Args:
      restart: drop the momentum when it points uphill, ⟨z - x⁺, x⁺ - x⟩ > 0: worth several times the speed
        where f + g is strongly convex near the solution.
      strong_convexity: μ of f, if known.

    Raises:
      ValueError: if an argument is invalid.

    Source: Beck & Teboulle 2009; restart by the gradient of O'Donoghue & Candès 2015; Nesterov
    2004, section 2.2 for known μ.

    >>> fista().step is not None
    True
    """
    _validation.at_least(0, "fista", strong_convexity=strong_convexity)
    _validation.at_least(1, "fista", grow=grow)

    def init(problem, point, step_size):
        one = jnp.ones((), point.x.dtype)
        return State(point, step_size, jnp.int32(1), Momentum(point, one))

    def step(problem, state):
        z, weight = state.memory
        point, t, tries = backtrack(problem, z, state.step_size)
        move = point.x - state.point.x
        if strong_convexity:
            root = jnp.sqrt(jnp.minimum(t * strong_convexity, 1.0))
            next_weight, beta = weight, (1.0 - root) / (1.0 + root)
        else:
            next_weight = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * jnp.square(weight)))
            beta = (weight - 1.0) / next_weight
        uphill = restart & (inner(z.x - point.x, move) > 0)
        beta = jnp.where(uphill, 0.0, beta)
        next_weight = jnp.where(uphill, 1.0, next_weight).astype(weight.dtype)
        start = problem.at(point.x + beta * move)
        memory = Momentum(start, next_weight)
        return State(point, grown(problem, t, grow), state.evaluations + tries + 1, memory)

    def refresh(problem, state, point):
        moved = jnp.any(point.x != state.point.x)
        start = problem.at(jnp.where(moved, point.x, state.memory.start.x))
        weight = jnp.where(moved, 1.0, state.memory.weight)
        return State(point, state.step_size, state.evaluations + 2, Momentum(start, weight))

    key = ("fista", restart, strong_convexity, grow)
    return Rule(init, step, refresh, needs_value=False, key=key)


@_validation.typed
def ista(grow: float = 1.1) -> Rule:
    """Proximal gradient with backtracking: x⁺ = prox_tg(x - t ∇f(x)); g may be nonconvex.

    Raises:
      ValueError: if `grow` is below 1.

    Source: Daubechies, Defrise & De Mol 2004; Beck & Teboulle 2009.

    >>> ista().step is not None
    True
    """
    _validation.at_least(1, "ista", grow=grow)

    def init(problem, point, step_size):
        return State(point, step_size, jnp.int32(1), ())

    def step(problem, state):
        point, t, tries = backtrack(problem, state.point, state.step_size)
        return State(point, grown(problem, t, grow), state.evaluations + tries, ())

    def refresh(problem, state, point):
        return state._replace(point=point, evaluations=state.evaluations + 1)

    return Rule(init, step, refresh, needs_value=False, key=("ista", grow))


@_validation.typed
def anderson(memory: int = 5, grow: float = 1.0) -> Rule:
    """Proximal gradient steps, each followed by Anderson's extrapolation of the last few.

    Of the last steps x_i ↦ T(x_i), T(x) = prox_tg(x - t ∇f(x)), the combination Σ c_i T(x_i) with
    Σ c_i = 1 is tried whose |Σ c_i (T(x_i) - x_i)| is least, and kept if it lowers f + g. What is 0
    in all T(x_i) stays 0.

    Args:
      memory: how many steps, static.
      grow: at 1 the last few T soon are the same map, which the extrapolation relies on.

    Raises:
      ValueError: if `memory` is not an integer ≥ 2, or `grow` below 1.

    Source: Anderson 1965; Mai & Johansson 2020 and Bertrand & Massias 2021 for the safeguard.

    >>> anderson().step is not None
    True
    """
    _validation.integer(2, "anderson", "Use ista for none.", memory=memory)
    _validation.at_least(1, "anderson", grow=grow)

    def init(problem, point, step_size):
        return State(point, step_size, jnp.int32(1), _extrapolation.init(memory, point.x))

    def step(problem, state):
        point, t, tries = backtrack(problem, state.point, state.step_size)
        history = _extrapolation.push(state.memory, state.point.x, point.x)
        trial = problem.measured(problem.at(_extrapolation.extrapolate(history)), t)
        better = trial.total < point.total
        point = jax.tree.map(lambda new, old: jnp.where(better, new, old), trial, point)
        return State(point, grown(problem, t, grow), state.evaluations + tries + 1, history)

    return Rule(init, step, refresh_or_reset(init), key=("anderson", memory, grow))


class Recent(NamedTuple):
    """Memory of `barzilai_borwein`: recent objectives, and pairs for the steps on the manifold."""

    totals: jax.Array
    pairs: jax.Array


@_validation.typed
def barzilai_borwein(patience: int = 10, memory: int = 8) -> Rule:
    """Proximal gradient with spectral step sizes, and quasi-Newton steps on the nonzeros between.

    t = |Δx|²/⟨Δx, Δ∇f⟩, the inverse curvature along the last move, accepted if f + g is below the
    largest of its last few values; each step is followed by up to four of limited-memory BFGS in the
    coordinates that g does not hold at zero, along the smallest subgradient, in which none may change
    its sign where g has a kink at 0. They are kept while they lower f + g, so g may be what it likes;
    penalties without a residual get the spectral steps alone.

    Args:
      patience: how many objectives a step may be compared with, static.
      memory: pairs of the quasi-Newton model, static; 0 leaves these steps out.

    Raises:
      ValueError: if `patience` is not an integer ≥ 1, or `memory` not an integer ≥ 0.

    Source: Barzilai & Borwein 1988; Wright, Nowak & Figueiredo 2009 (SpaRSA); Byrd, Lu, Nocedal &
    Zhu 1995 for minimising in the face that the first step found.

    >>> barzilai_borwein().step is not None
    True
    """
    _validation.integer(1, "barzilai_borwein", patience=patience)
    _validation.integer(0, "barzilai_borwein", memory=memory)

    def init(problem, point, step_size):
        totals = jnp.full((patience,), point.total)
        pairs = _quasi_newton.init(memory, point.x)
        return State(point, step_size, jnp.int32(1), Recent(totals, pairs))

    def step(problem, state):
        old, (totals, pairs) = state.point, state.memory
        length = lambda move: inner(problem.metric * move, move)
        # Differences below the rounding of the objective say nothing; infinite is a start outside the set.
        known = jnp.max(totals, initial=-jnp.inf, where=jnp.isfinite(totals))
        highest = jnp.where(known > -jnp.inf, known, jnp.inf)
        highest += 2.0 * jnp.finfo(old.x.dtype).eps * jnp.abs(old.smooth)
        accept = lambda new, t: new.total <= highest - 1e-4 * length(new.x - old.x) / (2.0 * t)
        point, t, tries = shorten_until(problem, old, state.step_size, accept)
        move, bend = point.x - old.x, point.gradient - old.gradient
        if problem.backtracking is not None:
            pair = jnp.stack([problem.metric * move, bend])
            products = jnp.matmul(pair, move, precision=jax.lax.Precision.HIGHEST)
            t = _spectral(products[0], products[1], t)
        if memory and problem.descent is not None:
            pairs = _quasi_newton.push(pairs, move, bend)
            point, pairs, more = _face.step(problem, old, point, pairs)
            tries = tries + more
        totals = jnp.concatenate([totals[1:], point.total[None]])
        return State(point, t, state.evaluations + tries, Recent(totals, pairs))

    return Rule(init, step, refresh_or_reset(init), key=("barzilai_borwein", patience, memory))


def _spectral(length, curvature, t):
    """The inverse curvature along a move; 2t where there is none."""
    tiny = jnp.finfo(length.dtype).tiny
    spectral = jnp.where(curvature > tiny, length / jnp.maximum(curvature, tiny), 2 * t)
    return jnp.where(jnp.isfinite(spectral) & (spectral > 0), spectral, t)
