"""Checks on trees of numbers or arrays, which name the path of a leaf."""

from typing import Any

import jax
import jax.core
import numpy as np

from proxlm._validation._message import Verbatim, invalid, is_real

SCHEDULES = "A schedule goes through optax.inject_hyperparams around the function that builds this."


def known(function: str, argument: str, tree: Any) -> list[np.ndarray]:
    """Lists the numbers of a tree whose value is known now; ValueError for a leaf that is not numeric.

    >>> known("l1", "strength", {"w": 2.0, "b": 0.5})
    [array(0.5), array(2.)]
    """
    return [number for _, number in _labelled(argument, tree, function)]


def tree_at_least(bound: float, /, function: str = "", remedy: str = "", **trees: Any) -> None:
    """Raises ValueError unless a tree holds numbers, of which those that are known are ≥ `bound`.

    >>> tree_at_least(0, "l1", strength={"w": 1.0, "b": np.array([0.5, -1.0])})
    Traceback (most recent call last):
        ...
    ValueError: l1: strength at b must be a number ≥ 0, got -1.0 at index (1,).
    """
    _require_trees(trees, lambda x: x >= bound, f"a number ≥ {bound}", remedy, function)


def tree_positive(function: str = "", remedy: str = "", **trees: Any) -> None:
    """Raises ValueError unless a tree holds numbers, of which those that are known are > 0.

    >>> tree_positive("l2_ball", radius=0.0)
    Traceback (most recent call last):
        ...
    ValueError: l2_ball: radius must be a number > 0, got 0.0.
    """
    _require_trees(trees, lambda x: x > 0, "a number > 0", remedy, function)


def tree_finite(function: str = "", remedy: str = "", **trees: Any) -> None:
    """Raises ValueError unless a tree holds numbers, of which those that are known are finite.

    >>> tree_finite("simplex", radius=np.inf)
    Traceback (most recent call last):
        ...
    ValueError: simplex: radius must be a finite number, got inf.
    """
    _require_trees(trees, np.isfinite, "a finite number", remedy, function)


def arrays(function: str = "", **trees: Any) -> None:
    """Raises ValueError for a tree without leaves, or with one that is not a numeric array.

    >>> arrays("fit", params={"w": np.ones(2), "activation": "relu"})
    Traceback (most recent call last):
        ...
    ValueError: fit: params at activation must be a numeric array, got 'relu'. Keep the params apart from ...
    """
    remedy = "Keep the params apart from what is not learnt, as with eqx.partition or nnx.split."
    for argument, tree in trees.items():
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves:
            raise invalid(argument, tree, "a tree of arrays", "", function)
        for path, leaf in leaves:
            if not (is_real(leaf) or np.iscomplexobj(leaf)):
                raise invalid(_label(argument, path), leaf, "a numeric array", remedy, function)


def _require_trees(trees, holds, expected, remedy, function):
    for argument, tree in trees.items():
        for label, number in _labelled(argument, tree, function):
            refused = np.argwhere(~holds(number))
            if len(refused):
                index = tuple(map(int, refused[0]))
                place = f" at index {index}" if index else ""
                raise invalid(label, Verbatim(f"{number[index]}{place}"), expected, remedy, function)


def _labelled(argument, tree, function):
    """Lists (argument and path, number) for the leaves whose value is known."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is None)
    if not leaves:
        raise invalid(argument, tree, "a number, an array or a tree of these", "", function)
    found = []
    for path, leaf in leaves:
        label = _label(argument, path)
        if isinstance(leaf, jax.core.Tracer) or (leaf is None and path):
            continue
        if not is_real(leaf):
            raise invalid(label, leaf, "a number, an array or a tree of these", SCHEDULES, function)
        found.append((label, np.asarray(leaf)))
    return found


def _label(argument, path):
    place = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{argument} at {place}" if place else argument
