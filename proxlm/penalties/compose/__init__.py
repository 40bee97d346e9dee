"""Penalties made of other penalties.

- `calculus`: `scale` `translate` `add_linear` `add_quadratic`
- `restricted`: `restrict_to_non_negative`
- `moreau`: `conjugate` `envelope`
- `reparametrised`: `change_basis` `reshaped`
- `over_trees`: `separable_sum` `masked` `flattened`
"""

from proxlm.penalties.compose import calculus, moreau, over_trees, reparametrised

__all__ = ["calculus", "moreau", "over_trees", "reparametrised"]
