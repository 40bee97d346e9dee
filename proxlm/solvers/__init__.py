"""Proximal gradient methods to a tolerance, for problems whose gradient is exact."""

from proxlm.solvers._steps import Rule
from proxlm.solvers.paths import path, strength_max
from proxlm.solvers.proximal_gradient_method import Solution, proximal_gradient
from proxlm.solvers.rules import anderson, barzilai_borwein, fista, ista

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
