"""Penalties on the parts of a tree, and on the whole of it."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util

from proxlm import _validation
from proxlm.penalties import _trees, base
from proxlm.penalties.coordinatewise import convex

__all__ = ["flattened", "masked", "separable_sum"]

# A label for each leaf, or for all leaves below a node; or a function of the path and the leaf.
Labels = Any | Callable[[str, jax.Array], Hashable]


@_validation.typed
def separable_sum(penalties: Mapping[Any, base.Penalty], labels: Labels) -> base.Penalty:
    """One penalty for each part of a tree: g(x) = Σ_k g_k(x_k), whose prox acts part by part.

    A part is all the leaves with the same label. Most penalties treat its leaves one by one; one
    made by `flattened` has a single budget for the part.

    Args:
      penalties: label ↦ penalty.
      labels: (path, leaf) ↦ label, the path written "block_0/mlp/kernel"; or a tree of labels in the
        structure of x or of a prefix of it, where a label stands for all leaves below. What JAX knows as a
        tree is one, even where it can be called, such as an Equinox module.

    Raises:
      ValueError: if a member is not a Penalty; and, on use, for a label without a penalty (the known ones are
        listed).

    Convex: if all g_k are. Separable: by parts. Metric: as each g_k. Cost: those of the parts.

    Source: Parikh & Boyd 2014, section 2.1 (separable sum).

    >>> kind = lambda path, leaf: "bias" if path.endswith("bias") else "kernel"
    >>> both = separable_sum({"kernel": convex.l1(1.0), "bias": convex.zero()}, kind)
    >>> x = {"bias": jnp.array([0.5]), "kernel": jnp.array([0.5, 3.0])}
    >>> {name: leaf.tolist() for name, leaf in both.prox(x, 1.0).items()}
    {'bias': [0.5], 'kernel': [0.0, 2.0]}
    """
    for label, penalty in penalties.items():
        base.require_penalty("separable_sum", **{f"penalties[{label!r}]": penalty})
    summed = _summed("separable_sum", "labels", penalties, labels)
    return summed.described("separable_sum", penalties, labels)


def _summed(function, argument, penalties, labels):
    def parts(x):
        """Yields penalties with a function that makes holes of the leaves that are not theirs."""
        given = _labels_of(function, argument, labels, penalties, x)
        for label in dict.fromkeys(given):
            yield label, penalties[label], lambda tree, own=label: _keep(tree, given, own)

    def merge(x, results):
        leaves = {label: iter(jax.tree.leaves(tree)) for label, tree in results}
        ordered = [next(leaves[label]) for label in _labels_of(function, argument, labels, penalties, x)]
        return jax.tree.unflatten(jax.tree.structure(x), ordered)

    def value(x):
        return sum((penalty.value(own(x)) for _, penalty, own in parts(x)), start=jnp.zeros(()))

    def prox(x, step_size):
        return merge(x, [(k, penalty.prox(own(x), step_size)) for k, penalty, own in parts(x)])

    def residual(x, v):
        return merge(x, [(k, base.residual_of(penalty)(own(x), own(v))) for k, penalty, own in parts(x)])

    known = all(penalty.residual for penalty in penalties.values())
    return base.Penalty(value, prox, residual if known else None)


def masked(penalty: base.Penalty, mask: Labels) -> base.Penalty:
    """A penalty on some leaves; the others are free and pass bit for bit.

    Args:
      mask: (path, leaf) ↦ bool, or a tree of bools, as the labels of `separable_sum`.

    Raises:
      ValueError: as `separable_sum`.

    Convex: if g is. Separable: as g. Metric: as g. Cost: that of g on the leaves that it has.

    >>> kernels = masked(convex.l1(1.0), lambda path, leaf: path.endswith("kernel"))
    >>> x = {"bias": jnp.array([0.5]), "kernel": jnp.array([0.5, 3.0])}
    >>> kernels.value(x).item()
    3.5
    """
    base.require_penalty("masked", penalty=penalty)
    summed = _summed("masked", "mask", {True: penalty, False: convex.zero()}, mask)
    return summed.described("masked", penalty, mask)


def flattened(penalty: base.Penalty) -> base.Penalty:
    """Treats all the leaves of a tree as one long vector: one norm, one ball, one budget.

    `flattened(top_k(1000))` keeps the thousand largest weights of a model, wherever they are;
    `flattened(l2_ball(1.0))` bounds its global norm.

    Args:
      penalty: g, on one vector. Where it allows an array as step size, this allows a tree.

    Raises:
      ValueError: if `penalty` is not a Penalty.

    Convex: if g is. Separable: no. Metric: as g. Cost: that of g and a copy of the tree.

    >>> from proxlm.penalties.groups import penalties
    >>> norm = flattened(penalties.group_lasso(1.0, axis=None, weight="none"))
    >>> norm.value({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}).item()
    5.0
    """
    base.require_penalty("flattened", penalty=penalty)
    ravel = lambda x: flatten_util.ravel_pytree(_trees.widen("flattened", x))

    def prox(x, step_size):
        vector, unravel = ravel(x)
        if not _trees.is_number(step_size):
            step_size, _ = flatten_util.ravel_pytree(_trees.steps_like("flattened", step_size, x))
        return _trees.narrow(unravel(penalty.prox(vector, step_size)), x)

    def residual(x, v):
        vector, unravel = ravel(x)
        return _trees.narrow(unravel(base.residual_of(penalty)(vector, ravel(v)[0])), x)

    joined = base.Penalty(lambda x: penalty.value(ravel(x)[0]), prox, penalty.residual and residual)
    return joined.described("flattened", penalty)


def _labels_of(function, argument, labels, penalties, x):
    """Lists the label of each leaf of x; ValueError for one that has no penalty."""
    leaves, _ = _trees.flatten(x)
    if _is_function(labels):
        given = [labels(_trees.place(path), leaf) for path, leaf in leaves]
    else:
        given = _trees.pair(function, argument, labels, x)
    # Optax's masks may be arrays, which cannot be looked up.
    given = [label.item() if isinstance(label, jax.Array | np.generic) else label for label in given]
    for (path, _), label in zip(leaves, given, strict=True):
        if label not in penalties:
            expected = f"one of {list(penalties)}"
            remedy = "penalties.zero() is for what is to be free."
            raise _validation.invalid(_trees.label(argument, path), label, expected, remedy, function)
    return given


def _is_function(labels):
    is_node = not jax.tree_util.all_leaves([labels]) and not isinstance(labels, jax.tree_util.Partial)
    return callable(labels) and not is_node


def _keep(tree, labels, own):
    """Makes holes of the leaves with another label."""
    leaves, structure = jax.tree.flatten(tree)
    kept = [leaf if label == own else None for leaf, label in zip(leaves, labels, strict=True)]
    return jax.tree.unflatten(structure, kept)
