"""Penalties and sets that act on the singular values of matrices.

- `norms`: `nuclear` `spectral_norm` `schatten` `rank`, and `spectral` for any penalty on the values
- `sets`: `nuclear_ball` `spectral_ball` `rank_ball` `stiefel`
"""

from proxlm.penalties.singular_values import norms, sets

__all__ = ["norms", "sets"]
