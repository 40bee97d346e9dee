"""Proximal gradient methods to a tolerance, for problems whose gradient is exact."""

from proxlm.solvers.path import path, strength_max
from proxlm.solvers.proximal_gradient import Solution, proximal_gradient
from proxlm.solvers.rules import Rule, barzilai_borwein, fista, ista

__all__ = [
    "Rule",
    "Solution",
    "barzilai_borwein",
    "fista",
    "ista",
    "path",
    "proximal_gradient",
    "strength_max",
]
