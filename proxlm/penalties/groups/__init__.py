"""Penalties on groups of coordinates, and the groupings they act on.

- `penalties`: `group_lasso` `sparse_group_lasso` `group`, for any penalty on the norms of groups
- `norms`: `l2` `group_mcp` `group_l_half`, each a line of `group`
- `grouping`: `axes` `slices` `heads` `blocks`, `by_label` `by_index`, and `linked` across leaves
"""

from proxlm.penalties.groups import grouping, norms, penalties

__all__ = ["grouping", "norms", "penalties"]
