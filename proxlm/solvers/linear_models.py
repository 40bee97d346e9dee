"""Sparse linear models: their loss, and a rule that works on few of their coefficients at a time."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.solvers import _iterate, _problem, rules
from proxlm.solvers._linear_loss import LinearLoss, SparseFeatures
from proxlm.solvers._steps import Rule, State, backtrack

__all__ = ["LinearLoss", "SparseFeatures", "working_sets"]

# Of the error of the whole problem, which is left in that of a working set, without and with its Hessian.
SHARE, SHARE_OF_NEWTON = 0.1, 1e-3


@_validation.typed
def working_sets(sizes: Sequence[int] = (256, 1024), rule: Rule | None = None) -> Rule:
    """Solves for the coefficients that are not zero or should not be, and looks for others afterwards.

    For `LinearLoss` and penalties of single coordinates whose solutions are sparse: an iteration
    takes the nonzeros and the coordinates farthest from optimal, solves the problem in these alone by
    the inner rule, from their columns of X, and then computes the gradient of all. Should f + g not be
    lower, it makes a step of proximal gradient, so that it converges for any penalty. Sets take the place of
    screening: started from the last solution of a `path`, one is the old nonzeros and the next candidates.
    For 100 lassos of 1000 x 5000 from λmax to λmax/100, each to an error of λ/1000, that took 199 gradients
    of all coefficients and 1643 inside of sets; started from 0, 440 and 8340; by the default rule, from the
    last solution, 1795 of all.

    Args:
      sizes: of the sets, static, of which each iteration takes the smallest that holds the nonzeros and some
        more; each is compiled. Solutions of more nonzeros than the largest are found slowly.
      rule: for the problem in a set; `barzilai_borwein()` by default.

    Raises:
      ValueError: if a size is not an integer ≥ 1, or in use if the function is no `LinearLoss`.

    Source: Massias, Gramfort & Salmon 2018 (Celer); Bertrand et al. 2022 (skglm).

    >>> working_sets().step is not None
    True
    """
    inner = rules.barzilai_borwein() if rule is None else rule
    sizes = tuple(sorted({_validation.to_int(1, "working_sets", sizes=size) for size in sizes}))

    def init(problem, point, step_size):
        return State(point, step_size, jnp.int32(1), _structure(problem).predict(point.x))

    def step(problem, state):
        point, eta = state.point, state.memory
        error = problem.error(point)
        # Twice the gradient also ranks the coordinates that are optimal at zero.
        ahead = point._replace(gradient=2.0 * point.gradient)
        distance = jnp.abs(point.gap if problem.descent is None else problem.descent(ahead))
        live = jnp.sum(point.x != 0)
        widths = sorted({min(size, point.x.size) for size in sizes})
        solve = [functools.partial(_solve, problem, inner, width) for width in widths]
        # Room for newcomers beside the nonzeros.
        which = jnp.sum(jnp.asarray(widths[:-1]) < live + live // 8 + 8)
        x, eta, t = jax.lax.switch(which, solve, point, eta, state.step_size, distance, error)
        trial = problem.measured(_structure(problem).at(x, eta), t)
        fall, rounding = point.total - trial.total, 2.0 * jnp.finfo(x.dtype).eps * jnp.abs(point.smooth)
        better = (fall > rounding) | ((fall >= -rounding) & (problem.error(trial) < problem.error(point)))

        def simple_step():
            new, t, tries = backtrack(problem, point, state.step_size)
            return State(new, t, state.evaluations + 1 + tries, _structure(problem).predict(new.x))

        accepted = State(trial, t, state.evaluations + 1, eta)
        return jax.lax.cond(better, lambda: accepted, simple_step)

    def refresh(problem, state, point):
        return init(problem, point, state.step_size)._replace(evaluations=state.evaluations + 1)

    return Rule(init, step, refresh, key=("working_sets", sizes, inner.key))


def _solve(problem, rule, width, point, eta, step_size, distance, error):
    """The point with the best values of so many coordinates, its predictions, and the last step size."""
    live = point.x != 0
    # Nonzeros belong to the set, unless there are too many: then those farthest from optimal.
    score = distance + jnp.where(live & (jnp.sum(live) <= width), 1.0 + jnp.max(distance), 0.0)
    # XLA's kernel of top_k on CPU is for float32 alone, ten times as fast as the sort of others.
    chosen = jax.lax.top_k((score / jnp.maximum(jnp.max(score), 1e-30)).astype(jnp.float32), width)[1]
    objective, part, z, columns = _structure(problem).restrict(point.x, eta, chosen)
    tolerance = (SHARE if part.hessian is None else SHARE_OF_NEWTON) * error
    numbers = _iterate.Numbers(tolerance, 0.0, 1000, step_size, problem.largest, None)
    state = _iterate.descend(_iterate.Static(objective, rule), numbers, part, z)
    best = _iterate.best(state)
    return point.x.at[chosen].set(best), eta + columns(best - z), state.moving.step_size


def _structure(problem) -> _problem.Linear:
    if problem.linear is None:
        raise _validation.invalid("fun", None, "a LinearLoss", "Use another rule.", "working_sets")
    return problem.linear
