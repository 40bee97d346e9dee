"""Paths of the leaves of a tree, the same whatever boxes a leaf.

Flax wraps an array in a box that is a node of its own (`nnx.Param`, `nn.Partitioned`), which JAX counts as
one more step of the path: "up/kernel/value" for "up/kernel". Here that step is left out, and steps are
compared by their names alone, so that a leaf has one path in a dict, a module and a state. This module
imports nothing of proxlm, and no Flax.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

Path = tuple[Any, ...]

_BOX_METHODS = ("unbox", "get_metadata")


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[tuple[Path, Any]], Any]:
    """As `jax.tree_util.tree_flatten_with_path`, without the steps into boxes.

    >>> leaves, structure = flatten({"up": {"kernel": 1.0}})
    >>> [(place(path), leaf) for path, leaf in leaves]
    [('up/kernel', 1.0)]
    """
    structure = jax.tree.structure(tree, is_leaf=is_leaf)
    ends = is_leaf or (lambda node: False)
    return ([((), tree)] if ends(tree) else list(_leaves(tree, ends))), structure


def map_with_path(fn: Callable[[Path, Any], Any], tree: Any) -> Any:
    """The tree of fn(path, leaf), with the paths of `flatten`.

    >>> map_with_path(lambda path, leaf: place(path), {"a": {"b": 1}})
    {'a': {'b': 'a/b'}}
    """
    leaves, structure = flatten(tree)
    return jax.tree.unflatten(structure, [fn(path, leaf) for path, leaf in leaves])


def names(path: Path) -> tuple[str, ...]:
    """The names of the steps of a path, by which two paths are compared.

    >>> names((jax.tree_util.DictKey("w"), jax.tree_util.SequenceKey(0)))
    ('w', '0')
    """
    return tuple(jax.tree_util.keystr((step,), simple=True) for step in path)


def place(path: Path, root: str = "the root") -> str:
    """Writes a path: block_0/mlp/kernel; `root` for the path without steps.

    >>> place(())
    'the root'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/") or root


def is_box(node: Any) -> bool:
    """Whether a node is a box around one value: it has a Flax box's methods, and one child named `value`.

    >>> is_box({"value": 1.0})
    False
    """
    return _may_be_box(type(node)) and _child_names(node) == ["value"]


def _leaves(node, ends):
    """Yields pairs of path and leaf; of a box without its first step."""
    skipped = is_box(node)
    stops = lambda other: other is not node and (ends(other) or is_box(other))
    for path, leaf in jax.tree_util.tree_flatten_with_path(node, is_leaf=stops)[0]:
        if is_box(leaf) and not ends(leaf):
            yield from ((path[skipped:] + below, value) for below, value in _leaves(leaf, ends))
        else:
            yield path[skipped:], leaf


@functools.lru_cache(maxsize=4096)
def _may_be_box(kind):
    return any(hasattr(kind, method) for method in _BOX_METHODS)


def _child_names(node):
    children = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
    if children is None:
        return []
    return [jax.tree_util.keystr((step,), simple=True) for step, _ in children[0]]
