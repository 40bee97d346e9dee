"""New penalties out of old ones, on the same weights.

Each makes a penalty h of a `penalty` g, and its step sizes are those that g allows unless it says otherwise.
"""

import operator

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _trees, base

__all__ = ["add_linear", "add_quadratic", "scale", "translate"]


def scale(penalty: base.Penalty, factor: chex.Numeric) -> base.Penalty:
    """A multiple of a penalty: h(x) = c·g(x), with prox_th = prox_(tc)g.

    A set stays what it is, also for c = 0. The factor may be a schedule's number that changes
    from step to step.

    Args:
      factor: c ≥ 0, one number. May be traced.

    Raises:
      ValueError: if an argument is invalid.

    Convex: if g is. Separable: as g. Metric: as g. Cost: that of g.

    Source: Parikh & Boyd 2014, section 2.1.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> scale(convex.l1(0.5), 2.0).prox(jnp.array([3.0, 0.5]), 1.0).tolist()
    [2.0, 0.0]
    """
    base.require_penalty("scale", penalty=penalty)
    _validation.tree_at_least(0, "scale", factor=factor)
    longer = lambda steps: jax.tree.map(lambda t: base.pull(factor, t), steps)

    def value(x):
        g = penalty.value(x)
        return jnp.where(jnp.isinf(g), g, base.times(factor, jnp.where(jnp.isinf(g), 0.0, g)))

    def residual(x, v):
        safe = jnp.where(factor == 0, 1.0, factor)
        left = base.residual_of(penalty)(x, jax.tree.map(lambda leaf: leaf / safe, v))
        return jax.tree.map(lambda a, b: jnp.where(factor == 0, b, safe * a), left, v)

    prox = lambda x, step_size: penalty.prox(x, longer(step_size))
    scaled = base.Penalty(value, prox, penalty.residual and residual)
    return scaled.described("scale", penalty, factor)


def translate(penalty: base.Penalty, anchor: chex.ArrayTree) -> base.Penalty:
    """Moves the centre of a penalty from the origin to an anchor: h(x) = g(x - a).

    prox_th(x) = a + prox_tg(x - a). With `l1` the weights differ from the anchor in few places,
    with `group_lasso` in few groups, with `nuclear` by a matrix of low rank, and with `squared_l2`
    they stay near it (L2-SP, FedProx). Where the prox of g moves nothing, x is returned bit for
    bit.

    Args:
      anchor: a, with the structure and shapes of x. May also have leaves where x has holes (`None`,
        `optax.MaskedNode`).

    Raises:
      ValueError: if `penalty` is not a Penalty; and, on use, if x does not match the anchor.

    Convex: if g is. Separable: as g. Metric: as g. Cost: that of g and two passes.

    Source: Parikh & Boyd 2014, section 2.1 (precomposition); L2-SP is Li, Grandvalet & Davoine
    2018, FedProx is Li et al. 2020.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> near = translate(convex.l1(1.0), {"w": jnp.array([5.0, 5.0])})
    >>> near.prox({"w": jnp.array([5.5, 8.0])}, 1.0)["w"].tolist()
    [5.0, 7.0]
    >>> float(near.value({"w": jnp.array([5.5, 8.0])}))
    3.5
    """
    base.require_penalty("translate", penalty=penalty)

    def split(x):
        # What the penalty cannot take, it refuses itself.
        wide = _trees.promote(x)
        centre = _beside("translate", "anchor", anchor, x)
        return wide, centre, jax.tree.map(jnp.subtract, wide, centre)

    def value(x):
        return penalty.value(split(x)[2])

    def prox(x, step_size):
        wide, centre, displacement = split(x)
        moved = penalty.prox(displacement, step_size)
        join = lambda x, centre, old, new: base.keep_bits(new == old, x, centre + new)
        return _trees.narrow(jax.tree.map(join, wide, centre, displacement, moved), x)

    def residual(x, v):
        return base.residual_of(penalty)(split(x)[2], v)

    translated = base.Penalty(value, prox, penalty.residual and residual)
    return translated.described("translate", penalty, anchor)


def add_linear(penalty: base.Penalty, slope: chex.ArrayTree) -> base.Penalty:
    """Adds a linear function: h(x) = g(x) + ⟨s, x⟩, with prox_th(x) = prox_tg(x - t s).

    Args:
      slope: s, with the structure and shapes of x.

    Raises:
      ValueError: if `penalty` is not a Penalty; and, on use, if x does not match the slope.

    Convex: if g is. Separable: as g. Metric: as g. Cost: that of g and one pass.

    Source: Parikh & Boyd 2014, section 2.1 (affine addition).

    >>> from proxlm.penalties.coordinatewise import convex
    >>> add_linear(convex.l1(1.0), jnp.array([0.5, -1.0])).prox(jnp.array([3.0, 1.0]), 1.0).tolist()
    [1.5, 1.0]
    """
    base.require_penalty("add_linear", penalty=penalty)
    slope_of = lambda x: _beside("add_linear", "slope", slope, x)

    def value(x):
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), _trees.widen("add_linear", x), slope_of(x))
        return penalty.value(x) + jax.tree.reduce(operator.add, products, 0.0)

    def prox(x, step_size):
        wide = _trees.widen("add_linear", x)
        steps = _trees.spread_tree("add_linear", "step_size", step_size, wide)
        lowered = jax.tree.map(lambda leaf, t, s: leaf - t * s, wide, steps, slope_of(x))
        return _trees.narrow(penalty.prox(lowered, step_size), x)

    def residual(x, v):
        return base.residual_of(penalty)(x, jax.tree.map(jnp.subtract, v, slope_of(x)))

    added = base.Penalty(value, prox, penalty.residual and residual)
    return added.described("add_linear", penalty, slope)


def add_quadratic(penalty: base.Penalty, strength: chex.Numeric) -> base.Penalty:
    """Adds a quadratic: h(x) = g(x) + ½ μ |x|².

    prox_th(x) = prox_sg(x / (1 + t μ)) with s = t / (1 + t μ). A quadratic around a point c is
    this and a `add_linear` by -μ c, up to a constant.

    Args:
      strength: μ ≥ 0, one number. May be traced.

    Raises:
      ValueError: if an argument is invalid.

    Convex: if g is. Separable: as g. Metric: as g. Cost: that of g and one pass.

    Source: Parikh & Boyd 2014, section 2.1 (regularisation).

    >>> from proxlm.penalties.coordinatewise import convex
    >>> add_quadratic(convex.l1(0.5), 1.0).prox(jnp.array([-3.0, 0.25]), 1.0).tolist()
    [-1.25, 0.0]
    """
    base.require_penalty("add_quadratic", penalty=penalty)
    _validation.tree_at_least(0, "add_quadratic", strength=strength)

    def value(x):
        leaves = jax.tree.leaves(_trees.widen("add_quadratic", x))
        squares = sum((jnp.sum(jnp.square(leaf)) for leaf in leaves), start=jnp.zeros(()))
        return penalty.value(x) + 0.5 * base.times(strength, squares)

    def prox(x, step_size):
        wide = _trees.widen("add_quadratic", x)
        steps = _trees.spread_tree("add_quadratic", "step_size", step_size, wide)
        shrunk = jax.tree.map(lambda leaf, t: leaf / (1.0 + base.pull(t, strength)), wide, steps)
        shorter = jax.tree.map(lambda t: _damped(t, strength), step_size)
        return _trees.narrow(penalty.prox(shrunk, shorter), x)

    def residual(x, v):
        left = jax.tree.map(lambda leaf, b: b - base.times(strength, leaf), x, v)
        return base.residual_of(penalty)(x, left)

    added = base.Penalty(value, prox, penalty.residual and residual)
    return added.described("add_quadratic", penalty, strength)


def _damped(step_size, strength):
    """The step size t / (1 + t μ), which is 1/μ for an infinite t."""
    far = jnp.isinf(step_size)
    near = jnp.where(far, 1.0, step_size)
    return jnp.where(far, 1.0 / jnp.where(far, strength, 1.0), near / (1.0 + base.pull(near, strength)))


def _beside(name, argument, tree, x):
    """Gives arrays shaped like those of x, in its structure and widened dtypes."""
    leaves, structure = _trees.flatten(_trees.promote(x))
    beside = _trees.pair(name, argument, tree, x)
    for (path, leaf), other in zip(leaves, beside, strict=True):
        if jnp.shape(other) != leaf.shape:
            shown = _validation.Verbatim(f"shape {jnp.shape(other)}")
            expected = f"of shape {leaf.shape}, as x is"
            raise _validation.invalid(_trees.label(argument, path), shown, expected, "", name)
    arrays = [jnp.asarray(b, leaf.dtype) for (_, leaf), b in zip(leaves, beside, strict=True)]
    return jax.tree.unflatten(structure, arrays)
