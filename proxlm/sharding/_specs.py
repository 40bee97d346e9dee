"""A table from paths to specs, and states placed by it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from proxlm import _tree_paths, _validation
from proxlm.sharding import _mesh

Tree = TypeVar("Tree")

# The end of a path ↦ the axis, counted from the last, that is cut over `model`; stacked layers or not.
MODEL_AXIS = {
    "qkv/kernel": -2,
    "qkv/bias": -2,
    **{f"qkv/{name}/{part}": -2 for name in ("query", "key", "value") for part in ("kernel", "bias")},
    "out/kernel": -3,
    "gate_up/kernel": -1,
    "gate_up/bias": -1,
    "up/kernel": -1,
    "up/bias": -1,
    "down/kernel": -2,
    "embedding/kernel": -2,
    "head/kernel": -2,
    **{f"lora/{name}/b": -1 for name in ("query", "key", "value", "gate", "up")},
    **{f"lora/{name}/magnitude": -1 for name in ("query", "key", "value", "gate", "up")},
    "lora/out/a": -2,
    "lora/down/a": -2,
}


@_validation.typed
def spec(path: str, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The spec of one leaf of a state; an axis that does not divide is replicated.

    `model` takes the axis that `MODEL_AXIS` names, and `fsdp` the largest of the others that it
    divides, but not the first of stacked blocks, over which a loop runs.

    >>> mesh = jax.sharding.AbstractMesh((2, 2), ("fsdp", "model"))
    >>> tuple(spec("blocks/mlp/down/kernel", (6, 24, 8), mesh)), tuple(spec("norm/scale", (7,), mesh))
    ((None, 'model', 'fsdp'), (None,))
    """
    axes: list[str | None] = [None] * len(shape)
    at = next((axis for end, axis in MODEL_AXIS.items() if f"/{path}".endswith(f"/{end}")), None)
    count = mesh.shape.get("model", 1)
    if at is not None and count > 1 and len(shape) >= -at and shape[at] % count == 0:
        axes[at] = "model"
    count = mesh.shape.get("fsdp", 1)
    stacked = "blocks/" in path and len(shape) > 1
    free = [i for i, size in enumerate(shape) if axes[i] is None and size and size % count == 0]
    free = [i for i in free if i > 0 or not stacked]
    if free and count > 1:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


@_validation.typed
def shardings(tree: Any, mesh: Mesh) -> Any:
    """The tree of `NamedSharding` of the leaves, arrays or their shapes, by `spec`.

    >>> mesh = _mesh.make_mesh("fsdp=1", jax.devices()[:1])
    >>> shardings({"w": np.ones(2)}, mesh)["w"].spec[0] is None
    True
    """
    place = lambda path, x: NamedSharding(mesh, spec(_tree_paths.place(path), np.shape(x), mesh))
    return _tree_paths.map_with_path(place, tree)


@_validation.typed
def replicated(tree: Any, mesh: Mesh) -> list[str]:
    """Names and shapes of the leaves that every device of an `fsdp` or `model` axis holds whole.

    >>> mesh = jax.sharding.AbstractMesh((2,), ("fsdp",))
    >>> replicated({"w": np.ones((4, 3)), "b": np.ones(3)}, mesh)
    ['b [3]']
    """
    if mesh.shape.get("fsdp", 1) * mesh.shape.get("model", 1) == 1:
        return []
    leaves = [(_tree_paths.place(path), np.shape(x)) for path, x in _tree_paths.flatten(tree)[0]]
    return [f"{name} {list(shape)}" for name, shape in leaves if shape and not any(spec(name, shape, mesh))]


@_validation.typed
def put(tree: Tree, mesh: Mesh) -> Tree:
    """Places a state over a mesh by `spec`; each process gives the whole of it, and the same.

    >>> put({"w": np.ones(2)}, _mesh.make_mesh("data=1", jax.devices()[:1]))["w"].sharding.spec[0] is None
    True
    """

    def place(x, sharding):
        if sharding.is_fully_addressable or getattr(x, "is_fully_addressable", True) is False:
            return jax.device_put(x, sharding)
        if jax.numpy.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key):
            data = place(jax.random.key_data(x), NamedSharding(mesh, PartitionSpec()))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, shardings(tree, mesh))


@_validation.typed
def init(function: Callable[..., Tree], mesh: Mesh) -> Callable[..., Tree]:
    """The function, compiled so that its result is made in its shards and nowhere whole.

    >>> make = init(lambda key: {"w": jax.random.normal(key, (4, 2))}, _mesh.make_mesh("data=-1"))
    >>> make(jax.random.key(0))["w"].shape
    (4, 2)
    """

    def made(*args):
        places = shardings(jax.eval_shape(function, *args), mesh)
        return jax.jit(function, out_shardings=places)(*args)

    return made


def whole(tree: Tree, keep: Sequence[str] = ("model",)) -> Tree:
    """Pins weights as `spec` has them over the axes in `keep`: without `fsdp` gathered where they are used.

    The gradient is then reduced.

    >>> whole({"w": np.ones((4, 2))})["w"].shape
    (4, 2)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _mesh.is_automatic(mesh) or (mesh.shape.get("fsdp", 1) == 1 and "fsdp" not in keep):
        return tree

    def pin(path, x):
        axes = spec(_tree_paths.place(path), np.shape(x), mesh)
        kept = PartitionSpec(*(axis if axis in keep else None for axis in axes))
        return jax.lax.with_sharding_constraint(x, kept)

    return _tree_paths.map_with_path(pin, tree)
