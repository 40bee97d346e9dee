"""Step sizes for a prox in the metric of a diagonal preconditioner, such as Adam's."""

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _trees


def step_sizes(
    learning_rate: chex.Numeric,
    diagonal: chex.ArrayTree,
    *,
    floor: chex.Numeric = 1e-2,
    cap: chex.Numeric = 10.0,
) -> chex.ArrayTree:
    """t_i = min(η / max(D_i, floor · rms(D)), cap), rms(D) the root mean square over the leaf.

    After Adam's step x - η m/D with D = √v̂ + ε, the penalty g itself is minimised only by a prox
    in the metric D: argmin_z g(z) + Σ_i D_i (z_i - x_i)²/2η, whose step sizes are t_i = η/D_i. But
    a weight that never saw a gradient (the row of an unseen token, a dead expert) has D_i = ε, and
    its threshold λη/ε sets it to 0 in one step. The floor binds such a weight to the others of its
    leaf; the cap holds where the whole leaf has seen nothing, and η/0 is the cap (0 if η is).

    Where neither binds, t is exact. If the gradient's step takes the same t, x - t m, a fixed point
    solves the stated problem wherever they bind.

    Args:
      diagonal: D ≥ 0, a tree of arrays; for Adam √v̂ + ε. All numbers may be traced.
      floor: least D_i in units of the leaf's rms. At the default no weight of a leaf steps more than 100
        times as far as one of rms D. 0 switches it off.
      cap: largest t_i. The default lets gradients of 1e-4 a weight and learning rates of 1e-3 pass, and takes
        at most 10 λ from a weight in one step. jnp.inf switches it off.

    Returns:
      t, a tree like `diagonal`, in at least float32.

    Raises:
      ValueError: if a known number is invalid.

    Source: Yun, Lozano & Yang 2021 (ProxGen) for the metric; the floor and the cap are ours.

    >>> step_sizes(1.0, {"w": jnp.array([3.0, 4.0, 0.0, 0.0])}, cap=8.0)["w"][2:].tolist()
    [8.0, 8.0]
    >>> step_sizes(0.5, jnp.array([2.0, 4.0])).tolist()
    [0.25, 0.125]
    """
    _validation.tree_at_least(0, "step_sizes", learning_rate=learning_rate)
    _trees.require_beside(diagonal, "step_sizes", diagonal=diagonal)
    _validation.tree_at_least(0, "step_sizes", floor=floor)
    _validation.tree_positive("step_sizes", cap=cap)

    def leaf_sizes(d):
        # In units of the largest entry, whose square may be out of range.
        top = jnp.max(d, initial=0.0)
        unit = jnp.where(top > 0, top, 1.0)
        rms = unit * jnp.sqrt(jnp.mean(jnp.square(d / unit)))
        bounded = jnp.maximum(d, floor * rms)
        at_zero = jnp.where(jnp.asarray(learning_rate) > 0, jnp.inf, 0.0)
        quotient = learning_rate / jnp.where(bounded > 0, bounded, 1.0)
        return jnp.minimum(jnp.where(bounded > 0, quotient, at_zero), cap).astype(d.dtype)

    return jax.tree.map(leaf_sizes, _trees.widen("step_sizes", diagonal))
