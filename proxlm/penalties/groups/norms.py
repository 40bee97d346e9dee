"""Named penalties on the norms of groups, each a line of `group`; shared arguments as in `group_lasso`."""

import chex

from proxlm.penalties import base
from proxlm.penalties.coordinatewise import nonconvex, powers
from proxlm.penalties.groups import _norm_prox_in_metric
from proxlm.penalties.groups import penalties as groups

__all__ = ["group_l_half", "group_mcp", "l2"]


def l2(strength: base.Strength = 1.0, axis: groups.Axis = None) -> base.Penalty:
    """The Euclidean norm, not squared: g(x) = λ |x|₂ of each leaf, or of slices along axes.

    prox_tg(x) = x max(1 - t λ / |x|₂, 0). `flattened(l2(λ))` is the norm of a whole tree.

    Convex: yes. Separable: by group. Metric: yes. Cost: two passes over x.

    Raises:
      ValueError: as `group_lasso`.

    Source: Parikh & Boyd 2014, section 6.5.1.

    >>> import jax.numpy as jnp
    >>> l2(1.0).prox(jnp.array([3.0, 4.0]), 2.5).tolist()
    [1.5, 2.0]
    """
    return groups.group_lasso(strength, axis, "none").described("l2", strength=strength, axis=axis)


def group_mcp(
    strength: chex.Numeric = 1.0, gamma: chex.Numeric = 3.0, axis: groups.Axis = 0, weight: str = "sqrt_size"
) -> base.Penalty:
    """The minimax concave penalty of group norms: g(x) = Σ_G w_G² φ(|x_G|₂ / w_G).

    φ is `mcp`: groups within the threshold t λ w_G become zero as a whole, as in
    `group_lasso`, and groups longer than γ λ w_G are not shortened at all.

    Convex: no. Separable: by group. Metric: yes; where t_i ≥ γ for some but not all coordinates of
    a group the result is no worse than x or 0, and may not be the best. Cost: two passes over x.

    Args:
      gamma: γ > 0, one number, as is λ; t below γ keeps the prox continuous.

    Raises:
      ValueError: as `group` and `mcp`.

    Source: Huang, Breheny & Ma 2012; Deleu & Bengio 2021 for the metric.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[3.0, 0.3], [4.0, 0.4]])
    >>> group_mcp(1.0, gamma=3.0, weight="none").prox(x, 1.0).tolist()
    [[3.0, 0.0], [4.0, 0.0]]
    """
    over_norms = nonconvex.mcp(strength, gamma)
    made = groups.group(over_norms, axis, weight, _norm_prox_in_metric.Slope(strength, 1.0 / gamma))
    return made.described("group_mcp", strength=strength, gamma=gamma, axis=axis, weight=weight)


def group_l_half(
    strength: chex.Numeric = 1.0, axis: groups.Axis = 0, weight: str = "sqrt_size"
) -> base.Penalty:
    """The square roots of group norms: g(x) = λ Σ_G w_G² (|x_G|₂ / w_G)^½.

    prox_tg scales each group as `l_half` does a number: up to a threshold it becomes zero,
    beyond that long groups are shortened less than short ones.

    Convex: no. Separable: by group. Metric: no. Cost: two passes over x.

    Args:
      strength: λ ≥ 0, one number.

    Raises:
      ValueError: as `group` and `l_half`.

    Source: Hu, Li, Meng, Qin & Yang 2017 (group lp,q regularisation).

    >>> import jax.numpy as jnp
    >>> group_l_half(1.0, weight="none").prox(jnp.array([[0.3], [0.4]]), 1.0).tolist()
    [[0.0], [0.0]]
    """
    made = groups.group(powers.l_half(strength), axis, weight)
    return made.described("group_l_half", strength=strength, axis=axis, weight=weight)
