"""Proximal gradient methods to a tolerance, for problems whose gradient is exact.

- the solver: `proximal_gradient` gives a `Solution`, with the reason why it stopped
- its rules: `barzilai_borwein` (the default) `fista` `ista` `anderson`, each a `Rule`
- over strengths: `path`, from `strength_max` down

>>> import jax.numpy as jnp
>>> from proxlm import penalties
>>> fun = lambda x: 0.5 * jnp.sum(jnp.square(x - jnp.array([3.0, 0.5])))
>>> proximal_gradient(fun, jnp.zeros(2), penalties.l1(1.0)).params.tolist()
[2.0, 0.0]
"""

from proxlm.solvers._steps import Rule
from proxlm.solvers.regularisation_path import path, strength_max
from proxlm.solvers.rules import anderson, barzilai_borwein, fista, ista
from proxlm.solvers.solver import Solution, proximal_gradient

__all__ = [
    "Rule",
    "Solution",
    "anderson",
    "barzilai_borwein",
    "fista",
    "ista",
    "path",
    "proximal_gradient",
    "strength_max",
]
