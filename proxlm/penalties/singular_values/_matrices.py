"""The leaves of a tree as stacks of matrices, and penalties on what each matrix is scaled by."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, _trees, base
from proxlm.penalties.singular_values import _functions

Axis = int | Sequence[int]


def matrixwise(
    name: str,
    vector: Callable[..., base.Penalty],
    parameters: Mapping[str, base.Strength],
    rows: Axis,
    columns: Axis,
    method: str = "svd",
    slack: float = 0.0,
) -> base.Penalty:
    """Carries a penalty on singular values over a tree: g(x) = Σ over matrices of value(σ(X)).

    Args:
      vector: **parameters ↦ the penalty on σ [q], which must be symmetric under permutations.
      parameters: name ↦ a number, or an array with one entry a matrix (the shape of the leaf, with 1 for the
        rows and columns), or a tree of these.
      rows: the axes of a leaf that together are the rows of a matrix; those of neither count matrices.
      slack: see `_functions.apply`.

    >>> from proxlm.penalties.coordinatewise import convex
    >>> nuclear = matrixwise("nuclear", convex.l1, {"strength": 1.0}, -2, -1)
    >>> jax.jit(nuclear.prox)({"w": jnp.array([[0.0, 3.0], [-0.5, 0.0]])}, 1.0)["w"].tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    """
    axes = _axes(name, "rows", rows), _axes(name, "columns", columns)
    _validation.one_of(_functions.ROUTES, name, method=method)

    def value(x, **given):
        if not x.size:
            return jnp.zeros((), x.dtype)
        measure = lambda matrix, own: vector(**own).value(_functions.singular_values(matrix))
        return jnp.sum(jax.vmap(measure)(*_stack(name, axes, x, given)))

    def prox(x, step_size, **given):
        if not x.size:
            return x

        def move(matrix, own):
            function = lambda values: vector(**own).prox(values, step_size)
            return _functions.apply(function, matrix, method, slack)

        return _unstack(name, axes, jax.vmap(move)(*_stack(name, axes, x, given)), x)

    def slot(path, leaf):
        inside = sum(_inside(name, axes, leaf.shape, path), ())
        return tuple(1 if i in inside else size for i, size in enumerate(leaf.shape))

    def on_matrices(function):
        def checked(x, *others):
            for path, leaf in _trees.flatten(x)[0]:
                _inside(name, axes, jnp.shape(leaf), path)
            return function(x, *others)

        return checked

    slots = {key: (given, slot) for key, given in parameters.items()}
    penalty = base.leafwise(name, value, prox, slots)
    made = base.Penalty(on_matrices(penalty.value), on_matrices(penalty.prox))
    return made.described(name, **parameters, rows=rows, columns=columns, method=method)


def tolerant(name: str, make: Callable[[Any], base.Penalty], tolerance: float | None) -> base.Penalty:
    """Gives each leaf the tolerance of its dtype, for a value that asks for one.

    Args:
      make: tolerances (a number, or a tree of them like x) ↦ the penalty.

    >>> told = tolerant("told", lambda t: base.Penalty(lambda x: t, lambda x, step_size: x), None)
    >>> told.value({"a": jnp.ones(1), "b": jnp.ones(1, jnp.bfloat16)})
    {'a': 1e-05, 'b': 0.01}
    """
    if tolerance is not None:
        _validation.tree_at_least(0, name, tolerance=tolerance)

    def value(x):
        return make(jax.tree.map(lambda leaf: _indicator.tolerance_of(leaf, tolerance), x)).value(x)

    return base.Penalty(value, make(_indicator.TOLERANCE).prox)


def _axes(name, argument, given):
    if given is None:
        raise _validation.invalid(argument, None, "an integer or a tuple of integers", "", name)
    return _slots.axes_of(name, given, argument)


def _inside(name, axes, shape, path=()):
    """The axes of rows and of columns, counted from the front."""
    counted = [tuple(i + len(shape) if i < 0 else i for i in part) for part in axes]
    every = sum(counted, ())
    if len(set(every)) == len(every) and all(0 <= i < len(shape) for i in every):
        return counted
    expected = f"different axes of the leaf of shape {shape} at {_trees.place(path)}"
    given = _validation.Verbatim(f"{axes[0]} and {axes[1]}")
    raise _validation.invalid(
        "rows and columns", given, expected, f"Name others, or {_slots.LEAVE_OUT}", name
    )


def _order(name, axes, x):
    rows, columns = _inside(name, axes, x.shape)
    batch = tuple(i for i in range(x.ndim) if i not in rows + columns)
    return batch, rows, columns


def _stack(name, axes, x, given):
    """Gives the matrices [B, m, n] of a leaf, and beside them their numbers, [B] each."""
    batch, rows, columns = _order(name, axes, x)
    count, *shape = (math.prod(x.shape[i] for i in part) for part in (batch, rows, columns))
    matrices = jnp.transpose(x, batch + rows + columns).reshape(count, *shape)
    sizes = tuple(1 if i in rows + columns else size for i, size in enumerate(x.shape))
    own = {
        key: jnp.broadcast_to(number if number.ndim else number.reshape((1,) * x.ndim), sizes)
        for key, number in given.items()
    }
    return matrices, {key: number.reshape(count) for key, number in own.items()}


def _unstack(name, axes, matrices, x):
    order = sum(_order(name, axes, x), ())
    moved = matrices.reshape([x.shape[i] for i in order])
    return jnp.transpose(moved, [order.index(i) for i in range(x.ndim)])
