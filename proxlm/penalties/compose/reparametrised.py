"""Penalties on weights seen in another shape or another orthonormal basis."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _slots, _trees, base

__all__ = ["change_basis", "reshaped"]


@_validation.typed
def change_basis(
    penalty: base.Penalty,
    forward: Callable[[jax.Array], jax.Array],
    backward: Callable[[jax.Array], jax.Array],
) -> base.Penalty:
    """A penalty on weights seen in another orthonormal basis: h(x) = g(Q x).

    prox_th(x) = Qᵀ prox_tg(Q x), and x bit for bit where that of g moves nothing. Q may be a
    rotation, a cosine transform or a permutation; that Qᵀ Q = I is for the caller to see to. A zero
    of Q x is not an exact one after the way back, so there is no residual.

    Args:
      forward: leaf ↦ Q leaf, in any shape.
      backward: Qᵀ, back to the shape of the leaf.

    Raises:
      ValueError: if `penalty` is not a Penalty; and, on use, if the step size is not one number.

    Convex: if g is. Separable: no. Metric: no. Cost: that of g, of Q and of Qᵀ.

    Source: Parikh & Boyd 2014, section 2.1 (orthogonal precomposition).

    >>> turn = jnp.array([[0.6, 0.8], [-0.8, 0.6]])
    >>> from proxlm.penalties.coordinatewise import convex
    >>> along = change_basis(convex.l1(1.0), lambda x: turn @ x, lambda x: turn.T @ x)
    >>> [round(value, 4) for value in along.prox(jnp.array([3.0, 4.0]), 1.0).tolist()]
    [2.4, 3.2]
    """
    base.require_penalty("change_basis", penalty=penalty)
    turned = lambda x: jax.tree.map(forward, _trees.widen("change_basis", x))

    def prox(x, step_size):
        wide = _trees.widen("change_basis", x)
        _trees.spread("change_basis", "step_size", step_size, _slots.one_number, wide)
        turned_x = jax.tree.map(forward, wide)
        moved = penalty.prox(turned_x, step_size)
        # Qᵀ Q x is x only up to rounding.
        back = lambda leaf, old, new: base.keep_bits(jnp.all(new == old), leaf, backward(new))
        return _trees.narrow(jax.tree.map(back, wide, turned_x, moved), x)

    changed = base.Penalty(lambda x: penalty.value(turned(x)), prox)
    return changed.described("change_basis", penalty, forward, backward)


@_validation.typed
def reshaped(penalty: base.Penalty, shape: Sequence[int]) -> base.Penalty:
    """A penalty on each leaf seen in another shape: a fused axis taken apart, blocks, pages.

    Args:
      penalty: g, on arrays of that shape; step sizes are laid out like x.
      shape: static; one entry may be -1.

    Raises:
      ValueError: if `penalty` is not a Penalty; and, on use, where a leaf does not fit the shape.

    Convex: if g is. Separable: as g. Metric: as g. Cost: that of g.

    >>> from proxlm.penalties.groups import penalties
    >>> pairs = reshaped(penalties.group_lasso(1.0, axis=-1, weight="none"), (-1, 2))
    >>> pairs.prox(jnp.array([3.0, 4.0, 0.6, 0.8]), 2.5).tolist()
    [1.5, 2.0, 0.0, 0.0]
    """
    base.require_penalty("reshaped", penalty=penalty)
    shape = tuple(shape)

    def view(x):
        def one(path, leaf):
            try:
                return leaf.reshape(shape)
            except TypeError as error:
                expected = f"of as many coordinates as the leaf of shape {leaf.shape} at {_trees.place(path)}"
                remedy = f"Give another, or {_slots.LEAVE_OUT}"
                raise _validation.invalid("shape", shape, expected, remedy, "reshaped") from error

        return _trees.map_with_path(one, _trees.widen("reshaped", x))

    def back(moved, x):
        like = lambda leaf, other: leaf.reshape(jnp.shape(other))
        return _trees.narrow(jax.tree.map(like, moved, x), x)

    def prox(x, step_size):
        if any(jnp.ndim(t) for t in jax.tree.leaves(step_size)):
            steps = _trees.steps_like("reshaped", step_size, x)
            step_size = jax.tree.map(lambda t: t.reshape(shape), steps)
        return back(penalty.prox(view(x), step_size), x)

    residual = lambda x, v: back(base.residual_of(penalty)(view(x), view(v)), x)
    viewed = base.Penalty(lambda x: penalty.value(view(x)), prox, penalty.residual and residual)
    return viewed.described("reshaped", penalty, shape)
