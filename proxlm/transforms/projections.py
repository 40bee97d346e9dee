"""Projections on sets: as the last link of a chain, and exact to the last bit after `apply_updates`."""

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import _indicator, _trees, base
from proxlm.transforms import _leaves, _updates, steps

__all__ = ["apply_prox_updates", "project", "project_exactly"]


def project(constraint: base.Penalty, *, every: int = 1) -> optax.GradientTransformationExtraArgs:
    """Ends a chain with a projection: u ↦ P(params + u) - params, P the prox of a set.

    Projected gradient descent: `apply_prox` without a learning rate, on which the prox of a set
    does not depend. It must be the last link.

    `optax.apply_updates` then computes p + (P - p), which is P where P = 0, and elsewhere up to
    rounding: zeros, groups and rank hold exactly, other bounds and levels to half a unit in the
    last place. `project_exactly` puts params on them exactly.

    Args:
      constraint: a set, such as `box`, `top_k`, `rank_ball` or `simplex`, or a penalty of your own.

    Raises:
      ValueError: as `apply_prox`, and if the penalty is known to be no set, such as `l1`.

    Source: Bertsekas 1976 (projected gradient).

    >>> from proxlm import penalties
    >>> tx = optax.chain(optax.sgd(1.0), project(penalties.box(-1.0, 1.0)))
    >>> params = jnp.array([0.5, 0.5])
    >>> updates, _ = tx.update(jnp.array([0.25, -4.0]), tx.init(params), params)
    >>> optax.apply_updates(params, updates).tolist()
    [0.25, 1.0]
    """
    _indicator.require_set("project", constraint=constraint)
    return steps.apply_prox(constraint, 1.0, every=every)


def project_exactly(params: chex.ArrayTree, penalty: base.Penalty) -> chex.ArrayTree:
    """Puts params on a set, such as levels, exactly: P(params), rounded to their dtype once.

    For use after `optax.apply_updates`, and by what applies updates on its own, such as Flax's TrainState: no
    update u makes p + u = 0.73 in float32 from p = 5. Twice is once, bit for bit, for `box`,
    `quantization_grid` and all sets of whose projection this holds. In bfloat16 a bound that is no bfloat16
    number is missed by its rounding, once for all.

    Args:
      penalty: a set. Any other penalty would be applied once more at each call.

    Raises:
      ValueError: if `penalty` is not a Penalty, or known to be no set.

    >>> from proxlm import penalties
    >>> project_exactly(jnp.array([0.74, -3.0]), penalties.quantization_grid([-1.0, 0.0, 1.0])).tolist()
    [1.0, -1.0]
    """
    _indicator.require_set("project_exactly", penalty=penalty)
    return _moved("project_exactly", params, jax.tree.map(jnp.zeros_like, params), penalty, 1.0)


def apply_prox_updates(
    params: chex.ArrayTree,
    updates: chex.ArrayTree,
    penalty: base.Penalty,
    step_size: chex.Numeric | chex.ArrayTree = 1.0,
) -> chex.ArrayTree:
    """Applies updates and then a prox: prox_tg(params + u), exactly, rounded to the params' dtype.

    It stands in for `optax.apply_updates` after a chain that does not end with `apply_prox`. The
    result is that of the prox itself, to the last bit, where params + (prox - params) has rounding:
    of weights on levels in float32 it leaves twice as many values as there are levels.

    Args:
      updates: u, a tree like params, from a chain without prox; None where a leaf stays.
      step_size: t, the learning rate that scaled u; one number or, where g allows it, a tree of arrays. A set
        does not depend on it.

    Raises:
      ValueError: if `penalty` is not a Penalty, or t is negative.

    Source: projecting after `apply_updates` is how Optax documents constraints.

    >>> from proxlm import penalties
    >>> ternary = penalties.ternary(0.73)
    >>> new = apply_prox_updates(jnp.array([5.0, 0.1]), jnp.array([-4.0, 0.1]), ternary)
    >>> (new == jnp.array([0.73, 0.0])).tolist()
    [True, True]
    """
    base.require_penalty("apply_prox_updates", penalty=penalty)
    return _moved("apply_prox_updates", params, updates, penalty, step_size)


def _moved(name, params, updates, penalty, step_size):
    _leaves.require_trainable(name, penalty, params)

    def step(updates, state, params):
        target = jax.tree.map(jnp.add, _trees.promote(params), _trees.promote(updates))
        dtypes = jax.tree.map(jnp.result_type, params)
        rounded = lambda moved, dtype: _updates.rounded(moved, dtype).astype(dtype)
        return jax.tree.map(rounded, penalty.prox(target, step_size), dtypes), state

    points, _ = _leaves.over_trainable(name, step, updates, (), params)
    stays = lambda new, old, trained: old if new is None or trained is None else new
    return jax.tree.map(stays, points, params, _leaves.trainable(params), is_leaf=lambda node: node is None)
