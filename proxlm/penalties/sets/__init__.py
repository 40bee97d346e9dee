"""Indicators of sets, whose proximal operators are projections, and the norms dual to them.

- `boxes_and_halfspaces`: `box` `non_negative` `linf_ball` `halfspace` `hyperplane`
- `balls`: `l1_ball` `l2_ball` `l1_sphere` `l2_sphere`
- `simplices`: `simplex` `capped_simplex` `sparse_simplex`
- `cardinality`: `top_k` `n_m`; `two_four`: `soft_two_four`
- `linear`: `affine_set` `polyhedron` `box_section`; `transports`: `transport` `birkhoff`
- `sorted_norms`: `linf` `slope`
- `kl_projections`, in another geometry and no penalties: `kl_box_section` `kl_transport`
"""

from proxlm.penalties.sets import (
    balls,
    boxes_and_halfspaces,
    cardinality,
    kl_projections,
    linear,
    simplices,
    sorted_norms,
    transports,
    two_four,
)

__all__ = [
    "balls",
    "boxes_and_halfspaces",
    "cardinality",
    "kl_projections",
    "linear",
    "simplices",
    "sorted_norms",
    "transports",
    "two_four",
]
