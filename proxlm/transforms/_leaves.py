"""The leaves that a transformation acts on, and what it emits for the others.

A leaf whose update is None is frozen, as for Optax's own transformations, and a leaf of integers or
booleans cannot be trained. Both are holes in the trees that a transformation sees; a penalty must
leave the latter out, or refuses them. States keep their form, whichever leaves are frozen in an update.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _tree_paths, _validation
from proxlm.penalties import _trees, base
from proxlm.transforms import _arguments, _updates

Init = Callable[[chex.ArrayTree], Any]
Step = Callable[[chex.ArrayTree, Any, chex.ArrayTree, dict[str, Any]], tuple[chex.ArrayTree, Any]]


class Penalised(optax.GradientTransformationExtraArgs):
    """A transformation that knows its own update without the penalty, to which `debias` turns.

    Attributes:
      unpenalised: called as `update` is.
    """

    unpenalised: Callable[..., tuple[Any, Any]]


def penalised(init: Any, update: Any, unpenalised: Callable[..., tuple[Any, Any]]) -> Penalised:
    """A transformation with its update without the penalty.

    >>> penalised(None, None, abs).unpenalised(-1)
    1
    """
    made = Penalised(init, update)
    made.unpenalised = unpenalised
    return made


def optimizer(
    name: str, penalty: base.Penalty, init: Init, step: Step, widens: bool = True
) -> optax.GradientTransformationExtraArgs:
    """An optimizer out of a step from one point to the next.

    Args:
      name: the function that the user called, for messages.
      penalty: g, which must leave out what cannot be trained.
      init: params ↦ state.
      step: (gradients, state, params, extra arguments) ↦ (next params, state). It and `init` see trees with
        holes where a leaf is not trained.
      widens: whether these trees come in at least 32 bits, or as they are.

    >>> halve = lambda gradients, state, params, extra: (jax.tree.map(lambda x: x / 2, params), state)
    >>> zero = base.Penalty(lambda x: jnp.zeros(()), lambda x, step_size: x)
    >>> tx = optimizer("doc", zero, lambda params: (), halve)
    >>> tx.update({"a": jnp.ones(1), "b": None}, (), {"a": jnp.ones(1), "b": jnp.ones(2)})[0]
    {'a': Array([-0.5], dtype=float32), 'b': None}
    """
    promote = _trees.promote if widens else lambda tree: tree

    def outer_init(params):
        require_trainable(name, penalty, params)
        return init(promote(trainable(params)))

    def outer_update(updates, state, params=None, **extra_args):
        params = _arguments.require_params(name, params)
        require_trainable(name, penalty, params)

        def inner(updates, state, params):
            point, state = step(promote(updates), state, promote(params), extra_args)
            return _updates.updates_to(point, params), state

        return over_trainable(name, inner, updates, state, params)

    return optax.GradientTransformationExtraArgs(outer_init, outer_update)


def over_trainable(
    name: str,
    step: Callable[..., tuple[Any, Any]],
    updates: Any,
    state: Any,
    params: chex.ArrayTree,
    passes: bool = False,
    only: Callable[[chex.ArrayTree], chex.ArrayTree] | None = None,
) -> tuple[chex.ArrayTree, Any]:
    """Calls step (updates, state, params) on the leaves that are trained; gives updates and state.

    Args:
      name: the function that the user called, for messages.
      step: what sees the trees with holes.
      updates: as given; None where a leaf is frozen.
      state: as given.
      params: as given.
      passes: whether the update of a leaf of integers or booleans is emitted as given; otherwise it is 0.
      only: makes holes of the params to leave out; None for `trainable`.

    >>> over_trainable("doc", lambda u, s, p: (p, s), {"a": 1.0, "b": None}, (), {"a": 2.0, "b": 3.0})
    ({'a': 2.0, 'b': None}, ())
    """
    only = only or trainable
    full = only(params)
    params_left = only(_with_holes_of(name, updates, params))
    if jax.tree.structure(params_left) == jax.tree.structure(params):
        return step(updates, state, params)
    updates_left = jax.tree.map(_unless_none, params_left, updates, is_leaf=_is_none)
    moved, after = step(updates_left, _hollow(state, full, params_left), params_left)

    def emit(update, new, param):
        if update is None or new is not None:
            return new
        return update if passes else jnp.zeros_like(param)

    return jax.tree.map(emit, updates, moved, params, is_leaf=_is_none), _filled(state, after, full)


def trainable(params: chex.ArrayTree) -> chex.ArrayTree:
    """Makes holes of the leaves that hold no real or complex floating-point numbers.

    >>> trainable({"a": 1.0, "steps": 3})
    {'a': 1.0, 'steps': None}
    """
    return jax.tree.map(lambda leaf: leaf if _is_inexact(leaf) else None, params)


def require_trainable(name: str, penalty: base.Penalty, params: chex.ArrayTree) -> None:
    """Raises the penalty's own ValueError if it does not leave out the leaves that cannot be trained.

    >>> from proxlm import penalties
    >>> require_trainable("rda", penalties.l1(), {"steps": jnp.arange(3)})
    Traceback (most recent call last):
        ...
    ValueError: l1: x at steps must be a real floating-point array, got dtype('int32'). ...
    """
    if not all(map(_is_inexact, jax.tree.leaves(params))):
        _trees.map_with_path(functools.partial(_trees.require_array, name, argument="params"), params)
        jax.eval_shape(lambda x: penalty.prox(x, 0.0), params)


def _with_holes_of(name, updates, params):
    """The params with holes where updates are None."""
    try:
        return jax.tree.map(_unless_none, updates, params, is_leaf=_is_none)
    except (ValueError, TypeError) as error:
        paths = lambda tree: {
            _tree_paths.names(path) for path, _ in _trees.flatten(tree, is_leaf=_is_none)[0]
        }
        other = sorted(paths(updates) ^ paths(params))
        given = f"one that differs at {'/'.join(other[0])}" if other else "one of another structure"
        remedy = "Give the gradients with respect to the params."
        raise _validation.invalid(
            "updates", _validation.Verbatim(given), "a tree like params", remedy, name
        ) from error


def _is_none(node):
    return node is None


def _unless_none(given, other):
    return None if given is None else other


def _is_inexact(leaf):
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)


def _hollow(state, full, left):
    """The state with holes in every tree like the params, where these have some now."""
    like = lambda node: _like(full, node)
    hollow = lambda node: jax.tree.map(_unless_none, left, node, is_leaf=_is_none)
    return jax.tree.map(lambda node: hollow(node) if like(node) else node, state, is_leaf=like)


def _filled(before, after, full):
    """The state after an update, with what the holes held before."""
    like = lambda node: _like(full, node)
    fill = lambda new, old: old if new is None else new
    filled = lambda old, new: jax.tree.map(fill, new, old, is_leaf=_is_none) if like(old) else new
    return jax.tree.map(filled, before, after, is_leaf=like)


def _like(full, node):
    structure = jax.tree.structure(full)
    return structure.num_nodes > 1 and jax.tree.structure(node) == structure
