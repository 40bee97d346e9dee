"""Trees of arrays with holes: dtypes, and numbers laid beside the leaves they belong to."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import chex
import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _tree_paths, _validation
from proxlm._tree_paths import Path, flatten, map_with_path, place
from proxlm.penalties import _slots

METRIC_REMEDY = (
    "This penalty has no prox in a diagonal metric: give one number, as the decoupled form "
    "does, or take a penalty that allows it, such as l1 or group_lasso."
)
COMPLEX_REMEDY = "Take group_lasso(strength, axis=()), for which a complex number is a group of two; or "

# A number, an array or a tree of these: strengths, radii, bounds and step sizes. May be traced.
Numbers: TypeAlias = chex.Numeric | Mapping[Any, Any] | tuple[Any, ...] | list[Any]


def widen(name: str, x: chex.ArrayTree, with_complex: bool = False) -> chex.ArrayTree:
    """Gives each leaf as an array of at least 32 bits; ValueError for leaves that are not real.

    Complex ones pass where `with_complex` says so.

    >>> widen("l1", {"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype
    dtype('float32')
    """

    def widen_leaf(path, leaf):
        leaf = jnp.asarray(require_array(name, path, leaf))
        if jnp.iscomplexobj(leaf) and with_complex:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            expected = "a real floating-point array"
            remedy = COMPLEX_REMEDY if jnp.iscomplexobj(leaf) else "Cast it, or "
            raise _validation.invalid(label("x", path), leaf.dtype, expected, remedy + _slots.LEAVE_OUT, name)
        return leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 32 else leaf

    return map_with_path(widen_leaf, x)


def require_array(name: str, path: Path, leaf: Any, argument: str = "x") -> chex.Numeric:
    """Gives a leaf that is an array or a number; ValueError for others.

    >>> require_array("l1", (jax.tree_util.DictKey("activation"),), jnp.tanh)
    Traceback (most recent call last):
        ...
    ValueError: l1: x at activation must be an array, got ... Give the arrays alone, with None for ...
    """
    is_complex = isinstance(leaf, np.ndarray | jax.Array | np.number) and jnp.iscomplexobj(leaf)
    if _validation.is_real(leaf) or is_complex:
        return leaf
    remedy = "Give the arrays alone, with None for other leaves, as in eqx.filter(model, eqx.is_array)."
    raise _validation.invalid(label(argument, path), leaf, "an array", remedy, name)


def promote(x: Any) -> Any:
    """Gives each leaf of less than 32 bits as float32, and the others as they are.

    >>> promote({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype
    dtype('float32')
    """

    def promote_leaf(leaf):
        leaf = jnp.asarray(leaf)
        narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
        return leaf.astype(jnp.float32) if narrow else leaf

    return jax.tree.map(promote_leaf, x)


def narrow(x: Any, like: Any) -> Any:
    """Casts each leaf to the dtype of the leaf in the same place of `like`.

    >>> narrow(jnp.ones(2), jnp.ones(2, jnp.bfloat16)).dtype
    dtype(bfloat16)
    """
    return jax.tree.map(lambda leaf, other: leaf.astype(jnp.result_type(other)), x, like)


def spread(
    name: str, argument: str, numbers: Numbers, slot: _slots.Slot, x: chex.ArrayTree
) -> list[jax.Array]:
    """Lists one number or array for each leaf of a widened x, in the leaf's dtype.

    Raises:
      ValueError: naming the path, where the numbers do not fit the leaf's slot.

    >>> spread("l1", "strength", 2.0, _slots.coordinates, {"a": jnp.ones(2), "b": jnp.ones(3)})
    [Array(2., dtype=float32), Array(2., dtype=float32)]
    """
    leaves, _ = flatten(x)
    slots = [slot(path, leaf) for path, leaf in leaves]
    if is_number(numbers):
        return [jnp.asarray(numbers, leaf.dtype) for _, leaf in leaves]
    paired = pair(name, argument, numbers, x)
    for (path, _), given, shape in zip(leaves, paired, slots, strict=True):
        if not _fits(jnp.shape(given), shape):
            shown = _validation.Verbatim(f"shape {jnp.shape(given)}")
            expected = f"of a shape that broadcasts to {shape}" if shape else "one number"
            raise _validation.invalid(label(argument, path), shown, expected, _remedy(argument, shape), name)
    return [jnp.asarray(n, leaf.dtype) for n, (_, leaf) in zip(paired, leaves, strict=True)]


def spread_tree(name: str, argument: str, numbers: Numbers, x: chex.ArrayTree) -> chex.ArrayTree:
    """The tree of what `spread` lists, for numbers that may differ between coordinates.

    >>> spread_tree("add_linear", "step_size", 2.0, {"a": jnp.ones(2)})
    {'a': Array(2., dtype=float32)}
    """
    return jax.tree.unflatten(jax.tree.structure(x), spread(name, argument, numbers, _slots.coordinates, x))


def steps_like(name: str, step_size: Numbers, x: chex.ArrayTree) -> chex.ArrayTree:
    """Gives every coordinate of x its own step size.

    >>> steps_like("flattened", {"a": jnp.ones(1), "b": 2.0}, {"a": jnp.ones(2), "b": jnp.ones(1)})
    {'a': Array([1., 1.], dtype=float32), 'b': Array([2.], dtype=float32)}
    """
    wide = widen(name, x)
    steps = spread_tree(name, "step_size", step_size, wide)
    return jax.tree.map(lambda t, leaf: jnp.broadcast_to(t, leaf.shape), steps, wide)


def pair(name: str, argument: str, tree: Any, x: chex.ArrayTree) -> Sequence[Any]:
    """Lists the leaves of `tree` that sit where x has leaves.

    `tree` may be a prefix of x, as Optax's masks may: a leaf stands for all that x has below it. Places are
    compared by the names in their paths, because inside `optax.masked` and `optax.partition` x has
    holes where a tree made from all the parameters has leaves, and Flax may box the leaves of one of the two.

    >>> pair("l1", "strength", {"a": 1.0, "b": 2.0}, {"a": jnp.ones(2), "b": None})
    [1.0]
    >>> pair("l1", "strength", {"a": 1.0}, {"a": {"b": jnp.ones(2), "c": jnp.ones(3)}})
    [1.0, 1.0]
    """
    nodes = [(_tree_paths.names(path), node) for path, node in flatten(x, is_leaf=is_hole)[0]]
    holes = [path for path, node in nodes if is_hole(node)] if nodes else [()]
    wanted = [path for path, node in nodes if not is_hole(node)]
    given = {_tree_paths.names(path): leaf for path, leaf in flatten(tree)[0]}
    # The longest beginning of a path, itself included, that is among the given ones.
    beginning = lambda path: next((path[:k] for k in range(len(path), -1, -1) if path[:k] in given), None)
    ends = {path: beginning(path) for path in wanted}
    missing = [path for path, end in ends.items() if end is None]
    used = {end for end in ends.values() if end is not None}
    over_hole = lambda path: any(path[: len(hole)] == hole or hole[: len(path)] == path for hole in holes)
    extra = [path for path in given if path not in used and not over_hole(path)]
    for problem, paths in (("nothing", missing), ("a leaf unknown to x", extra)):
        if paths:
            shown = _validation.Verbatim(f"{problem} at {'/'.join(paths[0]) or place(())}")
            remedy = "Give it the structure of x, or a prefix of it."
            raise _validation.invalid(argument, shown, "a tree like x, or a prefix of it", remedy, name)
    return [given[end] for end in ends.values() if end is not None]


def require_beside(x: chex.ArrayTree, name: str, **numbers: Any) -> None:
    """Raises ValueError unless the numbers beside the leaves of x are ≥ 0; without leaves there are none.

    >>> require_beside({}, "l1", step_size={})
    """
    if jax.tree.leaves(x):
        _validation.tree_at_least(0, name, **numbers)


def label(argument: str, path: Path) -> str:
    """Writes an argument with the place of a leaf in it, for a message.

    >>> label("x", ()), label("x", (jax.tree_util.DictKey("w"),))
    ('x', 'x at w')
    """
    return f"{argument} at {place(path)}" if path else argument


def is_number(numbers: Any) -> TypeGuard[chex.Numeric]:
    """Says whether numbers are one number, and neither an array nor a tree.

    >>> is_number(0.5), is_number(jnp.ones(1)), is_number({"w": 0.5})
    (True, False, False)
    """
    return jax.tree_util.all_leaves([numbers]) and jnp.ndim(numbers) == 0


def is_hole(node: Any) -> bool:
    """Says whether a node is a hole: None, or an `optax.MaskedNode` (a tuple without members).

    >>> is_hole(None), is_hole(0.0)
    (True, False)
    """
    return node is None or (isinstance(node, tuple) and not node)


def _remedy(argument, shape):
    if shape:
        return "Give one number, or an array of that rank."
    return METRIC_REMEDY if argument == "step_size" else ""


def _fits(given, shape):
    alike = len(given) == len(shape) and all(g in (1, s) for g, s in zip(given, shape, strict=True))
    return not given or alike
