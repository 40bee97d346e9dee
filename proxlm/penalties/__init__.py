"""Functions g on the weights, each next to its proximal operator.

A `Penalty` is a pair (value, prox). It works on one array or on a tree of them, and takes strengths
that may be traced, so that a sweep over strengths is a `jax.vmap`. A `Strength` is a number, an array
or a tree of these.

- norms: `zero` `l1` `non_negative_l1` `elastic_net` `squared_l2` `l2` `linf` `slope`
- neighbours: `total_variation` `fused_lasso`
- groups: `group_lasso` `sparse_group_lasso` `group_mcp` `group_l_half` `group`, over axes, or
  over a `grouping`: `grouping.heads` `.blocks` `.slices` `.by_label` `.by_index` `.linked` (across leaves)
- singular values: `nuclear` `spectral_norm` `rank` `schatten` `spectral`; sets `nuclear_ball`
  `spectral_ball` `rank_ball` `stiefel`
- sets: `box` `non_negative` `linf_ball` `simplex` `capped_simplex` `sparse_simplex` `l1_ball`
  `l2_ball` `l1_sphere` `l2_sphere` `halfspace` `hyperplane` `affine_set` `polyhedron` `box_section`
  `transport` `birkhoff`; by the KL divergence: the module `sets.kl_projections`
- not convex: `l0` `l_half` `l_two_thirds` `mcp` `scad` `log_sum` `top_k` `n_m` `soft_two_four`
- quantised: `binary` `ternary` `quantization_grid` `prox_quant`
- made of others: `scale` `translate` `add_linear` `add_quadratic` `change_basis` `reshaped` `conjugate`
  `envelope` `restrict_to_non_negative` `separable_sum` `masked` `flattened`
- tried on their laws: `check` returns a `Report`, a `Law` a line; `step_sizes` of a preconditioner

Arguments that many of them share:

    strength      λ ≥ 0: a number; or an array that broadcasts to x, one entry for each coordinate, or,
                  on groups or matrices, one for each of these (the shape of the leaf, with 1 for the axes
                  inside); or a tree of these in the structure of x. May be traced
    radius scale  r, s > 0, in the same forms
    axis          the axes inside a group, counted from the end if negative; None for the whole leaf
    tolerance     how far outside of a set `value` still gives 0, in the measure that is said. None is 1e-5,
                  and 1e-2 for leaves below 32 bits, whose own rounding is 4e-3 in bfloat16
    rows columns method   the axes that make a matrix, and the route to its singular values; see `spectral`

Metric: yes means that the step size may be an array shaped like x, or a tree of such; otherwise it is one
number. The projection on a set does not depend on the latter.

>>> import jax.numpy as jnp
>>> penalty = l1(0.5)
>>> penalty.prox({"w": jnp.array([2.0, -0.1])}, 1.0)["w"].tolist()
[1.5, 0.0]
"""

from proxlm.penalties._metric import step_sizes
from proxlm.penalties.base import Penalty, Strength
from proxlm.penalties.checking.checker import Law, Report, check
from proxlm.penalties.compose.calculus import add_linear, add_quadratic, scale, translate
from proxlm.penalties.compose.moreau import conjugate, envelope
from proxlm.penalties.compose.over_trees import flattened, masked, separable_sum
from proxlm.penalties.compose.reparametrised import change_basis, reshaped
from proxlm.penalties.compose.restricted import restrict_to_non_negative
from proxlm.penalties.coordinatewise.convex import elastic_net, l1, non_negative_l1, squared_l2, zero
from proxlm.penalties.coordinatewise.nonconvex import l0, log_sum, mcp, scad
from proxlm.penalties.coordinatewise.powers import l_half, l_two_thirds
from proxlm.penalties.coordinatewise.quantized import binary, prox_quant, quantization_grid, ternary
from proxlm.penalties.differences import fused_lasso, total_variation
from proxlm.penalties.groups import grouping
from proxlm.penalties.groups.norms import group_l_half, group_mcp, l2
from proxlm.penalties.groups.penalties import group, group_lasso, sparse_group_lasso
from proxlm.penalties.sets.balls import l1_ball, l1_sphere, l2_ball, l2_sphere
from proxlm.penalties.sets.boxes_and_halfspaces import box, halfspace, hyperplane, linf_ball, non_negative
from proxlm.penalties.sets.cardinality import n_m, top_k
from proxlm.penalties.sets.linear import affine_set, box_section, polyhedron
from proxlm.penalties.sets.simplices import capped_simplex, simplex, sparse_simplex
from proxlm.penalties.sets.sorted_norms import linf, slope
from proxlm.penalties.sets.transports import birkhoff, transport
from proxlm.penalties.sets.two_four import soft_two_four
from proxlm.penalties.singular_values.norms import nuclear, rank, schatten, spectral, spectral_norm
from proxlm.penalties.singular_values.sets import nuclear_ball, rank_ball, spectral_ball, stiefel

__all__ = [
    "Law",
    "Penalty",
    "Report",
    "Strength",
    "add_linear",
    "add_quadratic",
    "affine_set",
    "binary",
    "birkhoff",
    "box",
    "box_section",
    "capped_simplex",
    "change_basis",
    "check",
    "conjugate",
    "elastic_net",
    "envelope",
    "flattened",
    "fused_lasso",
    "group",
    "group_l_half",
    "group_lasso",
    "group_mcp",
    "grouping",
    "halfspace",
    "hyperplane",
    "l0",
    "l1",
    "l1_ball",
    "l1_sphere",
    "l2",
    "l2_ball",
    "l2_sphere",
    "l_half",
    "l_two_thirds",
    "linf",
    "linf_ball",
    "log_sum",
    "masked",
    "mcp",
    "n_m",
    "non_negative",
    "non_negative_l1",
    "nuclear",
    "nuclear_ball",
    "polyhedron",
    "prox_quant",
    "quantization_grid",
    "rank",
    "rank_ball",
    "reshaped",
    "restrict_to_non_negative",
    "scad",
    "scale",
    "schatten",
    "separable_sum",
    "simplex",
    "slope",
    "soft_two_four",
    "sparse_group_lasso",
    "sparse_simplex",
    "spectral",
    "spectral_ball",
    "spectral_norm",
    "squared_l2",
    "step_sizes",
    "stiefel",
    "ternary",
    "top_k",
    "total_variation",
    "translate",
    "transport",
    "zero",
]
