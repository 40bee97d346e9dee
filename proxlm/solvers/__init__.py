"""Proximal gradient methods to a tolerance, for problems whose gradient is exact."""

from proxlm.solvers.path import path, strength_max
from proxlm.solvers.proximal_gradient import Solution, proximal_gradient
from proxlm.solvers.rules import anderson, barzilai_borwein, fista, ista
from proxlm.solvers.steps import Rule

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
