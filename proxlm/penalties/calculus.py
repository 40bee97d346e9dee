"""New penalties out of old ones."""

import chex
import jax
import jax.numpy as jnp

from proxlm.penalties import base, trees


def shift(penalty: base.Penalty, anchor: chex.ArrayTree) -> base.Penalty:
    """Moves the centre of a penalty from the origin to an anchor: h(x) = g(x - a).

    prox_th(x) = a + prox_tg(x - a). With `l1` the weights differ from the anchor in few places,
    with `group_lasso` in few groups, and with `squared_l2` they stay near it (L2-SP, FedProx).
    Where the prox of g moves nothing, x is returned bit for bit.

    Args:
      penalty: g.
      anchor: a, with the structure and shapes of x. May also have leaves where x has holes
        (`None`, `optax.MaskedNode`).

    Returns:
      The penalty h, with the step sizes that g allows.

    Raises:
      ValueError: if `penalty` is not a Penalty; and, on use, if x does not match the anchor.

    Source: Parikh & Boyd 2014, section 2.1 (precomposition); L2-SP is Li, Grandvalet & Davoine
    2018, FedProx is Li et al. 2020.

    >>> from proxlm.penalties import norms
    >>> near = shift(norms.l1(1.0), {"w": jnp.array([5.0, 5.0])})
    >>> near.prox({"w": jnp.array([5.5, 8.0])}, 1.0)["w"].tolist()
    [5.0, 7.0]
    >>> float(near.value({"w": jnp.array([5.5, 8.0])}))
    3.5
    """
    base.require_penalty("shift: penalty", penalty)

    def value(x):
        return penalty.value(_split(x, anchor)[2])

    def prox(x, step_size):
        wide, centre, displacement = _split(x, anchor)
        moved = penalty.prox(displacement, step_size)
        return trees.narrow(jax.tree.map(_join, wide, centre, displacement, moved), x)

    def residual(x, v):
        return penalty.residual(_split(x, anchor)[2], v)

    return base.Penalty(value, prox, penalty.residual and residual)


def _split(x, anchor):
    """Gives widened x, the anchor and x - anchor, each with the structure of x."""
    wide = trees.widen("shift", x)
    leaves, structure = jax.tree_util.tree_flatten_with_path(wide)
    centre = trees.pair("shift", "anchor", anchor, x)
    for (path, leaf), a in zip(leaves, centre, strict=True):
        if jnp.shape(a) != leaf.shape:
            raise ValueError(
                f"shift: anchor of shape {jnp.shape(a)} at {trees.place(path)}, where x has shape "
                f"{leaf.shape}. Give the anchor the shapes of x."
            )
    centre = [jnp.asarray(a, leaf.dtype) for (_, leaf), a in zip(leaves, centre, strict=True)]
    centre = jax.tree.unflatten(structure, centre)
    return wide, centre, jax.tree.map(jnp.subtract, wide, centre)


def _join(x, centre, displacement, moved):
    return base.keep_bits(moved == displacement, x, centre + moved)
