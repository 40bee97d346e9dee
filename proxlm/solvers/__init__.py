"""Proximal gradient methods to a tolerance, for problems whose gradient is exact.

- to a tolerance: `proximal_gradient` gives a `Solution`, with the reason why it stopped
- step by step: a `Solver`, whose `init` and `update` carry a `SolverState`; of its `Options`, `Backtracking`
  is the search for a step size, and `Iteration` the argument of a callback
- rules: `barzilai_borwein` (the default) `fista` `ista` `anderson`, each a `Rule`
- linear models: `LinearLoss`, of an array or `SparseFeatures`, and its rule `working_sets`
- over strengths: `path`, from `strength_max` down
- in scikit-learn's manner: the module `proxlm.solvers.estimators`, which needs the extra of that name

>>> import jax.numpy as jnp
>>> from proxlm import penalties
>>> fun = lambda x: 0.5 * jnp.sum(jnp.square(x - jnp.array([3.0, 0.5])))
>>> proximal_gradient(fun, jnp.zeros(2), penalties.l1(1.0)).params.tolist()
[2.0, 0.0]
"""

from proxlm.solvers._iterate import Iteration, SolverState
from proxlm.solvers._problem import Backtracking
from proxlm.solvers._steps import Rule
from proxlm.solvers.linear_models import LinearLoss, SparseFeatures, working_sets
from proxlm.solvers.regularisation_path import path, strength_max
from proxlm.solvers.rules import anderson, barzilai_borwein, fista, ista
from proxlm.solvers.solver import Options, Solution, Solver, proximal_gradient

__all__ = [
    "Backtracking",
    "Iteration",
    "LinearLoss",
    "Options",
    "Rule",
    "Solution",
    "Solver",
    "SolverState",
    "SparseFeatures",
    "anderson",
    "barzilai_borwein",
    "fista",
    "ista",
    "path",
    "proximal_gradient",
    "strength_max",
    "working_sets",
]
