"""Rows of batches: pinned inside jit, and as the part that each process holds."""

import math
import warnings
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from proxlm import _validation
from proxlm.sharding import _mesh

Tree = TypeVar("Tree")


def rows(tree: Tree, whole: bool = False, name: str | None = None) -> Tree:
    """Pins the first axis of each leaf to `data` and `fsdp` of the mesh that is set, inside jit.

    The identity without a mesh, and on a leaf whose rows do not divide, of which a warning tells if the tree
    has a name. A row may be cut, as over `model`; if `whole` it is not.

    >>> rows(np.ones((4, 2))).shape
    (4, 2)
    """
    return _pinned(tree, 0, whole, name)


def pieces(tree: Tree, name: str | None = None) -> Tree:
    """As `rows`, for micro-batches `[n, B/n, ...]`: pins the second axis, so that a scan runs over the first.

    >>> pieces(np.ones((4, 2))).shape
    (4, 2)
    """
    return _pinned(tree, 1, name=name)


@_validation.typed
def local_rows(tree: Tree, mesh: Mesh) -> Tree:
    """Batches of all processes as one: each gives its own rows, NumPy `[B / processes, ...]`.

    >>> local_rows(np.ones((2, 3)), _mesh.make_mesh("data=1", jax.devices()[:1])).shape
    (2, 3)
    """
    sharding = NamedSharding(mesh, PartitionSpec(_mesh.batch_axes(mesh)))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


@_validation.typed
def own_rows(tree: Tree) -> Tree:
    """The rows that this process holds of a batch of all processes, as NumPy.

    >>> own_rows(jax.numpy.ones((2, 3))).shape
    (2, 3)
    """

    def held(x):
        if getattr(x, "is_fully_addressable", True):
            return np.asarray(jax.device_get(x))
        return np.concatenate([np.asarray(shard.data) for shard in _own_shards(x)])

    return jax.tree.map(held, tree)


@_validation.typed
def own_numbers(x: jax.Array) -> np.ndarray:
    """The numbers of the rows of `own_rows`.

    >>> own_numbers(jax.numpy.ones((2, 3))).tolist()
    [0, 1]
    """
    numbers = np.arange(len(x))
    if x.is_fully_addressable:
        return numbers
    return np.concatenate([numbers[shard.index[0]] for shard in _own_shards(x)])


@_validation.typed
def of_rows(values: Tree, like: jax.Array) -> Tree:
    """Arrays with the rows of all processes, of what each says of its `own_rows` of another.

    >>> of_rows(np.ones(2), jax.numpy.ones((2, 3))).shape
    (2,)
    """
    if like.is_fully_addressable or like.is_fully_replicated:
        return values
    assert isinstance(like.sharding, NamedSharding)
    place = NamedSharding(like.sharding.mesh, PartitionSpec(*like.sharding.spec[:1]))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), values)


def _own_shards(x):
    """One shard on this process for each of its runs of rows, in order."""
    shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return [shards[start] for start in sorted(shards)]


def num_parts() -> int:
    """The number of devices over which `rows` cuts a batch: 1 without a mesh.

    >>> num_parts()
    1
    """
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _pinned_axes(mesh))


def _pinned_axes(mesh):
    return _mesh.batch_axes(mesh) if _mesh.is_automatic(mesh) else ()


def _pinned(tree, axis, whole=False, name=None):
    mesh, count = jax.sharding.get_abstract_mesh(), num_parts()
    axes, gathers = _pinned_axes(mesh), whole and _mesh.is_automatic(mesh) and mesh.shape.get("model", 1) > 1
    if count == 1 and not gathers:
        return tree
    sizes = {x.shape[axis] for x in jax.tree.leaves(tree) if np.ndim(x) > axis}
    if name is not None and (odd := [size for size in sizes if size % count]):
        remedy = f"each does all of them: give a multiple of {count}"
        warnings.warn(
            f"sharding: {name} has {odd[0]} rows, not divisible by {count} devices, {remedy}", stacklevel=3
        )

    def pin(x):
        if np.ndim(x) <= axis or x.shape[axis] % count:
            return x
        open_axes = (None if whole else PartitionSpec.UNCONSTRAINED,) * (x.ndim - axis - 1)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * axis, axes, *open_axes))

    return jax.tree.map(pin, tree)
