"""Functions g on the weights, each next to its proximal operator.

A `Penalty` is the pair (value, prox). It works on one array or on a tree of them, and takes
strengths that may be traced, so that a sweep over strengths is a `jax.vmap`.

>>> import jax.numpy as jnp
>>> penalty = l1(0.5)
>>> penalty.prox({"w": jnp.array([2.0, -0.1])}, step_size=1.0)["w"].tolist()
[1.5, 0.0]
"""

from proxlm.penalties.base import Penalty
from proxlm.penalties.calculus import shift
from proxlm.penalties.groups import group_lasso
from proxlm.penalties.norms import l1, squared_l2

__all__ = ["Penalty", "group_lasso", "l1", "shift", "squared_l2"]
