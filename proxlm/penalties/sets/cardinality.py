"""Sets of arrays with few nonzero coordinates: k of a group, or n of every m in a row."""

import math

import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, _trees, base
from proxlm.penalties.sets import _ranking

__all__ = ["n_m", "top_k"]

LARGEST_PAIRED = 64  # m up to which comparing all pairs of a block is faster than bisection


def top_k(k: int, axis: int | tuple[int, ...] | None = None) -> base.Penalty:
    """At most k nonzero coordinates in each group: g(x) = 0 if |x_G|₀ ≤ k for all G, else +inf.

    prox_tg(x) keeps the k largest |x_i| of each group, with their bits, and sets the others to 0;
    of equals it keeps the first in row-major order. In a diagonal metric the k largest |x_i|/√t_i
    are kept. The k-th largest is found by bisection on the bits of |x|, which as integers are
    ordered like the numbers: some thirty comparisons of the whole array instead of a sort.

    Args:
      k: number of coordinates to keep, ≥ 0.

    Raises:
      ValueError: if k is not an integer ≥ 0; and, on use, naming the leaf, if it does not have these axes or
        a group has fewer than k coordinates. Empty leaves pass.

    Convex: no. Separable: over groups. Metric: any diagonal. Cost: about thirty passes.

    Source: Blumensath & Davies 2009 (iterative hard thresholding).

    >>> top_k(2).prox(jnp.array([-3.0, 1.0, 2.0, -2.0]), 1.0).tolist()
    [-3.0, 0.0, 2.0, 0.0]
    >>> float(top_k(1, axis=0).value(jnp.array([[-3.0, 1.0], [0.0, 2.0]])))
    inf
    """
    k = _validation.to_int(0, "top_k", k=k)
    axes = _slots.axes_of("top_k", axis)

    def group(path, leaf):
        size = math.prod(leaf.shape[i] for i in _slots.inside("top_k", axes, leaf, path))
        if leaf.size and k > size:
            expected = f"at most {size}, the size of a group at {_trees.place(path)}"
            raise _validation.invalid("k", k, expected, f"Lower it, or {_slots.LEAVE_OUT}", "top_k")
        return ()

    def value(x, k_as_float):
        del k_as_float
        return _at_most(k, x, _slots.inside("top_k", axes, x))

    def prox(x, step_size, k_as_float):
        del k_as_float
        if k == 0 or x.size == 0:
            return jnp.where(jnp.isnan(x), x, 0.0)
        keep = _ranking.largest(_ranking.bits_of_size(x, step_size), k, _slots.inside("top_k", axes, x))
        return jnp.where(keep | jnp.isnan(x), x, 0.0)

    # The slot is where a leaf meets its path: it checks k, which is the same for every leaf.
    made = base.leafwise("top_k", value, prox, {"k_as_float": (k, group)}, _slots.coordinates)
    return made.described("top_k", k=k, axis=axis)


def n_m(n: int, m: int, axis: int = -1) -> base.Penalty:
    """At most n nonzeros of every m in a row: g(x) = 0 if so for all blocks along axis, else +inf.

    prox_tg(x) keeps the n largest |x_i| of each block of m consecutive coordinates along the axis,
    with their bits, and sets the others to 0; of equals it keeps the first. In a diagonal metric
    the n largest |x_i|/√t_i are kept. `n_m(2, 4)` is the pattern that sparse tensor cores multiply.

    Args:
      n: number of coordinates to keep in a block, ≥ 0.
      m: size of a block, ≥ 1. n = m permits everything.
      axis: the axis along which blocks follow one another. For a kernel [inputs, units] the hardware wants
        the inputs: 0.

    Raises:
      ValueError: if n or m is not an integer, n < 0 or n > m; and, on use, naming the leaf, if it does not
        have the axis or its size along the axis is not a multiple of m.

    Convex: no. Separable: over blocks. Metric: any diagonal. Cost: one pass, m comparisons a
    coordinate.

    Source: Mishra et al. 2021 (2:4); Zhou et al. 2021 (n:m).

    >>> n_m(2, 4).prox(jnp.array([-3.0, 1.0, 2.0, -2.0]), 1.0).tolist()
    [-3.0, 0.0, 2.0, 0.0]
    >>> float(n_m(1, 2).value(jnp.array([-3.0, 0.0, 2.0, 1.0])))
    inf
    """
    n = _validation.to_int(0, "n_m", n=n)
    m = _validation.to_int(1, "n_m", m=m)
    if n > m:
        raise _validation.invalid("n", n, f"at most m = {m}", "The order is n_m(n, m).", "n_m")

    def value(x, n_as_float):
        del n_as_float
        return _at_most(n, *_ranking.blocks("n_m", x, m, axis))

    def prox(x, step_size, n_as_float):
        del n_as_float
        bits, inside = _ranking.blocks("n_m", _ranking.bits_of_size(x, step_size), m, axis)
        if m <= LARGEST_PAIRED or n == 0 or x.size == 0:
            keep = _ranking.ranks_in_block(bits, *inside) < n
        else:
            keep = _ranking.largest(bits, n, inside)
        return jnp.where(keep.reshape(x.shape) | jnp.isnan(x), x, 0.0)

    parameters = {"n_as_float": (n, _ranking.blocks_slot("n_m", m, axis))}
    made = base.leafwise("n_m", value, prox, parameters, _slots.coordinates)
    return made.described("n_m", n=n, m=m, axis=axis)


def _at_most(k, x, inside):
    excess = jnp.max(jnp.sum(x != 0, axis=inside) - k, initial=0)
    return _indicator.indicator(jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, excess.astype(x.dtype)), 0.0)
