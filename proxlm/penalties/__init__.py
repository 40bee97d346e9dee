"""Functions g on the weights, each next to its proximal operator.

A `Penalty` is a pair (value, prox). It works on one array or on a tree of them, and takes strengths
that may be traced, so that a sweep over strengths is a `jax.vmap`.

>>> import jax.numpy as jnp
>>> penalty = l1(0.5)
>>> penalty.prox({"w": jnp.array([2.0, -0.1])}, step_size=1.0)["w"].tolist()
[1.5, 0.0]
"""

from proxlm.penalties.base import Penalty
from proxlm.penalties.basis import change_basis, reshaped
from proxlm.penalties.calculus import add_quadratic, scale, shift, tilt
from proxlm.penalties.checking import Law, Report, check
from proxlm.penalties.duality import conjugate, envelope
from proxlm.penalties.groups import group_lasso
from proxlm.penalties.norms import elastic_net, l1, non_negative_l1, squared_l2, zero
from proxlm.penalties.parts import masked, separable_sum, whole

__all__ = [
    "Law",
    "Penalty",
    "Report",
    "add_quadratic",
    "change_basis",
    "check",
    "conjugate",
    "elastic_net",
    "envelope",
    "group_lasso",
    "l1",
    "masked",
    "non_negative_l1",
    "reshaped",
    "scale",
    "separable_sum",
    "shift",
    "squared_l2",
    "tilt",
    "whole",
    "zero",
]
