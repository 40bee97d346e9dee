"""Result of a solver."""

from typing import Any, NamedTuple

import jax

from proxlm.solvers import _iterate
from proxlm.solvers._iterate import SolverState

__all__ = ["Solution"]

REASONS = (
    "converged: the error is within the tolerance",
    "stopped at max_iterations: allow more of them, or a larger tolerance",
    "stopped where the objective was not finite: check fun, or give a smaller step_size",
    "stopped at the precision of the dtype: give a larger tolerance, or float64 for a smaller error",
)


class Solution(NamedTuple):
    """Result of a solver, with the reason why it stopped.

    Attributes:
      params: the best point that it met.
      objective: f + g there; f where the penalty has no value.
      error: how far -∇f is from ∂g there: the largest entry of the difference to the nearest
        subgradient; of a penalty without a residual, to the one that its prox took.
      iterations: done.
      evaluations: of f with its gradient.
      step_size: the last.
      status: 0 converged, 1 out of iterations, 2 not finite, 3 the precision of the dtype; `reason` says it
        in words.
      aux: of f at params, or None.
      state: from which `Solver.update` goes on.
    """

    params: Any
    objective: jax.Array
    error: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    step_size: jax.Array
    status: jax.Array
    aux: Any
    state: SolverState

    @property
    def converged(self) -> jax.Array:
        """Whether the error is within the tolerance."""
        return self.status == _iterate.CONVERGED

    @property
    def reason(self) -> str:
        """Why it stopped, in words; of a concrete solution."""
        return REASONS[int(self.status)]
