"""What a penalty is, and how one on a single array is carried over a tree of arrays."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Path = tuple[Any, ...]
Shape = tuple[int, ...]
NUMBERS = (int, float, np.number, np.ndarray, jax.Array)


class Penalty(NamedTuple):
    """A function g on weights, next to its proximal operator.

    Both members are pure and take one array or a tree of arrays. The pair itself cannot be called,
    so that `optax.inject_hyperparams` does not mistake it for a schedule.

    Attributes:
      value: x ↦ g(x), a scalar in at least float32; +inf outside a set.
      prox: (x, t) ↦ argmin_z g(z) + |z - x|²/2t, with the structure, shapes and dtypes of x. The
        step size t ≥ 0 is a number or, where the penalty allows it, an array shaped like x or a
        tree of such (a diagonal metric).

    Source: Moreau 1965; Parikh & Boyd, Proximal Algorithms, 2014.

    >>> zero = Penalty(value=lambda x: 0.0, prox=lambda x, step_size: x)
    >>> zero.prox(3.0, 0.1)
    3.0
    """

    value: Callable[[chex.ArrayTree], chex.Numeric]
    prox: Callable[[chex.ArrayTree, chex.ArrayTree], chex.ArrayTree]


def leafwise(
    name: str,
    strength: chex.ArrayTree,
    value: Callable[[jax.Array, jax.Array], jax.Array],
    prox: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    slot: Callable[[Path, jax.Array], Shape],
    step_slot: Callable[[Path, jax.Array], Shape],
) -> Penalty:
    """Carries a penalty on one array over a tree: g(x) = Σ over leaves of value(leaf, strength).

    Holes (`None`, `optax.MaskedNode`) are passed over. Leaves below 32 bits are computed in float32
    and returned in their own dtype.

    Args:
      name: the penalty's name, for messages.
      strength: a number, an array for an x of one array, or a tree of these matching x.
      value: (leaf, strength) ↦ scalar.
      prox: (leaf, step_size, strength) ↦ array like leaf.
      slot: (path, leaf) ↦ the shape that a strength for this leaf must broadcast to.
      step_slot: the same for a step size.

    Returns:
      The penalty on trees.

    Raises:
      ValueError: if the strength is not made of numbers, or is negative or NaN.

    >>> whole = lambda path, leaf: leaf.shape
    >>> cost = lambda x, strength: jnp.sum(strength * x)
    >>> linear = leafwise("linear", 2.0, cost, lambda x, t, s: x - t * s, whole, whole)
    >>> linear.prox({"w": jnp.ones(2)}, 0.25)["w"].tolist()
    [0.5, 0.5]
    """
    require_nonnegative(name, "strength", strength)

    def tree_value(x):
        x = widen(name, x)
        strengths = spread(name, "strength", strength, x, slot)
        terms = [value(leaf, s) for leaf, s in zip(jax.tree.leaves(x), strengths, strict=True)]
        return sum(terms, start=jnp.zeros(()))

    def tree_prox(x, step_size):
        require_nonnegative(name, "step_size", step_size)
        wide = widen(name, x)
        strengths = spread(name, "strength", strength, wide, slot)
        step_sizes = spread(name, "step_size", step_size, wide, step_slot)
        moved = map(prox, jax.tree.leaves(wide), step_sizes, strengths)
        return narrow(jax.tree.unflatten(jax.tree.structure(x), moved), x)

    return Penalty(tree_value, tree_prox)


def require_penalty(argument: str, penalty: Any) -> None:
    """Raises ValueError unless `penalty` is a `Penalty`."""
    if isinstance(penalty, Penalty):
        return
    raise ValueError(
        f"{argument}: expected a Penalty, got {penalty!r}. Build one, as in penalties.l1(0.1), "
        "or pair your own functions: Penalty(value, prox)."
    )


def require_nonnegative(name: str, argument: str, numbers: chex.ArrayTree) -> None:
    """Raises ValueError unless a tree holds numbers, and those whose value is known are ≥ 0."""
    leaves = jax.tree.leaves(numbers)
    strangers = [leaf for leaf in leaves if not isinstance(leaf, NUMBERS)]
    if strangers or not leaves:
        given = strangers[0] if strangers else numbers
        raise ValueError(
            f"{name}: {argument} must be a number, an array or a tree of these, got {given!r}. "
            "A schedule goes through optax.inject_hyperparams around the function that builds this."
        )
    known = [np.asarray(leaf) for leaf in leaves if not isinstance(leaf, jax.core.Tracer)]
    # Written so that NaN, which compares as False, is refused too.
    refused = [leaf for leaf in known if not np.all(leaf >= 0)]
    if refused:
        raise ValueError(
            f"{name}: {argument} must be ≥ 0 everywhere, got {refused[0]}. Use 0 to switch it off."
        )


def widen(name: str, x: chex.ArrayTree) -> chex.ArrayTree:
    """Gives each leaf as an array of at least 32 bits; ValueError for leaves that are not real."""

    def widen_leaf(path, leaf):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{name}: expected real floating-point arrays, got {leaf.dtype} at {place(path)}. "
                "Cast it, or leave it out with optax.masked."
            )
        return leaf.astype(jnp.float32) if jnp.finfo(leaf.dtype).bits < 32 else leaf

    return jax.tree_util.tree_map_with_path(widen_leaf, x)


def narrow(x: chex.ArrayTree, like: chex.ArrayTree) -> chex.ArrayTree:
    """Casts each leaf to the dtype of the leaf in the same place of `like`."""
    return jax.tree.map(lambda leaf, other: leaf.astype(jnp.result_type(other)), x, like)


def spread(
    name: str,
    argument: str,
    numbers: chex.ArrayTree,
    x: chex.ArrayTree,
    slot: Callable[[Path, jax.Array], Shape],
) -> list[jax.Array]:
    """Lists one number or array for each leaf of a widened x, in the leaf's dtype."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(x)
    slots = [slot(path, leaf) for path, leaf in leaves]
    if jax.tree_util.all_leaves([numbers]) and jnp.ndim(numbers) == 0:
        return [jnp.asarray(numbers, leaf.dtype) for _, leaf in leaves]
    paired = pair(name, argument, numbers, x)
    for (path, _), given, shape in zip(leaves, paired, slots, strict=True):
        if not _fits(jnp.shape(given), shape):
            remedy = "one number, or an array of that rank" if shape else "one number"
            raise ValueError(
                f"{name}: {argument} of shape {jnp.shape(given)} at {place(path)} does not "
                f"broadcast to {shape}. Give {remedy}."
            )
    return [jnp.asarray(n, leaf.dtype) for n, (_, leaf) in zip(paired, leaves, strict=True)]


def pair(name: str, argument: str, tree: chex.ArrayTree, x: chex.ArrayTree) -> Sequence[Any]:
    """Lists the leaves of `tree` that sit where x has leaves.

    Places are compared by path, because inside `optax.masked` and `optax.partition` x has holes
    where a tree made from all the parameters has leaves.
    """
    nodes, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=_is_hole)
    holes = [path for path, node in nodes if _is_hole(node)]
    wanted = {path: None for path, node in nodes if not _is_hole(node)}
    given = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
    missing = [path for path in wanted if path not in given]
    over_hole = lambda path: any(path[: len(hole)] == hole for hole in holes)
    extra = [path for path in given if path not in wanted and not over_hole(path)]
    for problem, paths in (("nothing", missing), ("a leaf unknown to x", extra)):
        if paths:
            raise ValueError(
                f"{name}: {argument} has {problem} at {place(paths[0])}. "
                "Give it the structure of x."
            )
    return [given[path] for path in wanted]


@jax.custom_jvp
def keep_bits(unmoved: jax.Array, exact: jax.Array, computed: jax.Array) -> jax.Array:
    """Gives `computed`, or the bits of `exact` where unmoved; derivatives are those of `computed`.

    x + (y - x) is y only up to rounding. Where a prox moved nothing this returns what was there
    before, and a penalty of strength 0 changes no bit.
    """
    return jnp.where(unmoved, exact, computed)


@keep_bits.defjvp
def _keep_bits_jvp(primals, tangents):
    return keep_bits(*primals), tangents[2]


def place(path: Path) -> str:
    """Writes a key path for a message: block_0/mlp/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the root"


def _is_hole(node):
    # optax.MaskedNode is a tuple without members.
    return node is None or (isinstance(node, tuple) and not node)


def _fits(given, shape):
    if not given:
        return True
    ranks_agree = len(given) == len(shape)
    return ranks_agree and all(g in (1, s) for g, s in zip(given, shape, strict=True))
