"""Second-order steps in the coordinates that the penalty does not hold at zero."""

import jax
import jax.numpy as jnp

from proxlm.solvers import _quasi_newton
from proxlm.solvers._problem import Point, Problem

# Of the quasi-Newton model, for each proximal step.
STEPS = 4


def step(problem: Problem, old: Point, point: Point, pairs: jax.Array) -> tuple:
    """Goes on from the point that a proximal step has reached; `(point, pairs, evaluations)`.

    By Newton where the Hessian is known and the proximal step has kept the face, else by the pairs.
    """
    quasi_newton = lambda: _quasi_newton_steps(problem, point, pairs)
    if problem.hessian is None:
        return quasi_newton()
    still = jnp.all((old.x != 0) == (point.x != 0))
    newton = lambda: (_newton_step(problem, point), pairs, jnp.int32(1))
    return jax.lax.cond(still, newton, quasi_newton)


def _quasi_newton_steps(problem, point, pairs):
    """Steps of limited-memory BFGS as long as they go down, at most so many."""

    def advance(carry):
        point, pairs, steps, _ = carry
        new, pairs = _quasi_newton_step(problem, point, pairs)
        return new, pairs, steps + 1, new.total < point.total

    goes_on = lambda carry: carry[3] & (carry[2] < STEPS)
    return jax.lax.while_loop(goes_on, advance, (point, pairs, jnp.int32(0), jnp.array(True)))[:3]


def _quasi_newton_step(problem, point, pairs):
    """A step of limited-memory BFGS, if it goes down."""
    live = (point.x != 0) | ~problem.kinks
    direction = _quasi_newton.direction(pairs, jnp.where(live, problem.descent(point), 0.0), live)
    goal = point.x + direction
    goal = jnp.where(problem.kinks & (jnp.sign(goal) != jnp.sign(point.x)), 0.0, goal)
    trial = problem.at(goal)
    better = trial.total < point.total
    pushed = _quasi_newton.push(pairs, goal - point.x, trial.gradient - point.gradient)
    choose = lambda new, old: jnp.where(better, new, old)
    return jax.tree.map(choose, trial, point), jax.tree.map(choose, pushed, pairs)


def _newton_step(problem, point):
    """A step of Newton, else up to where the first coordinate meets 0, if it goes down."""
    x, live = point.x, (point.x != 0) | ~problem.kinks
    descent = lambda x: problem.descent(point._replace(x=x))
    # The curvature of g, if it is a sum over coordinates.
    downhill, bends = jax.jvp(descent, (x,), (jnp.ones_like(x),))
    dtype = problem.hessian.dtype
    floor = 10.0 * jnp.finfo(dtype).eps * jnp.max(jnp.diagonal(problem.hessian))
    diagonal = jnp.where(live, jnp.maximum(-bends, 0.0) + floor, 1.0).astype(dtype)
    matrix = jnp.where(live[:, None] & live[None], problem.hessian, 0.0) + jnp.diag(diagonal)
    scale = jnp.maximum(jnp.max(jnp.abs(downhill), where=live, initial=0.0), jnp.finfo(x.dtype).tiny)
    unit = jnp.where(live, downhill / scale, 0.0).astype(dtype)
    solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), unit)
    direction = scale * solved.astype(x.dtype)
    crosses = problem.kinks & (x * (x + direction) < 0)
    meets = jnp.where(crosses, -x / direction, jnp.inf)

    def attempt(carry):
        _, tries = carry
        t = jnp.where(tries == 0, 1.0, jnp.min(meets))
        return problem.at(jnp.where(t >= meets, 0.0, x + t * direction)), tries + 1

    higher = lambda carry: (carry[1] == 0) | ((carry[1] == 1) & ~(carry[0].total < point.total))
    trial, _ = jax.lax.while_loop(higher, attempt, (point, jnp.int32(0)))
    return jax.tree.map(lambda new, old: jnp.where(trial.total < point.total, new, old), trial, point)
