"""Penalties that act on every coordinate by itself.

- `convex`: `zero` `l1` `non_negative_l1` `squared_l2` `elastic_net`
- `nonconvex`: `l0` `mcp` `scad` `log_sum`
- `powers`: `l_half` `l_two_thirds`
- `quantized`: `binary` `ternary` `quantization_grid` `prox_quant`
"""

from proxlm.penalties.coordinatewise import convex, nonconvex, powers, quantized

__all__ = ["convex", "nonconvex", "powers", "quantized"]
