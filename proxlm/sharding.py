"""Arrays over several devices: a mesh from one line, a table from paths to specs, and pins inside jit.

    mesh = sharding.make_mesh("data=2,fsdp=4")
    with jax.set_mesh(mesh):
        state = sharding.put(ppo.init(params, optimizer, config), mesh)
        state, metrics = jax.jit(step, donate_argnums=0)(state, key)

JAX's partitioner does the rest. The axes are
- `data`: rows of a batch; every device holds all weights;
- `fsdp`: rows of a batch, and the weights are cut too and gathered where a layer needs them;
- `model`: heads, hidden neurons and vocabulary;
- `seeds`: the axis of a `vmap` over seeds, on which nothing here is placed.

`rows`, `pieces` and `whole` stand in the training loops and in the model; they are the identity where no
mesh is set. Without one, or on one device, a program is what it would be without this module.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from proxlm import _tree_paths, _validation

__all__ = [
    "AXES",
    "init",
    "local_rows",
    "make_mesh",
    "of_rows",
    "own_numbers",
    "own_rows",
    "pieces",
    "put",
    "replicated",
    "rows",
    "shardings",
    "spec",
    "whole",
]

Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "model", "seeds")
BATCH_AXES = ("data", "fsdp")

# The end of a path ↦ the axis, counted from the last, that is cut over `model`; stacked layers or not.
MODEL_AXIS = {
    "qkv/kernel": -2,
    "qkv/bias": -2,
    "out/kernel": -3,
    "gate_up/kernel": -1,
    "gate_up/bias": -1,
    "up/kernel": -1,
    "up/bias": -1,
    "down/kernel": -2,
    "embedding/kernel": -2,
    "head/kernel": -2,
}


def make_mesh(sizes: str | Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of automatic axes by name, such as "data=4,fsdp=2".

    Args:
      sizes: axes of `AXES` with their sizes, as text or as a mapping; one of them may be -1, the
        devices that the others leave.
      devices: those of the mesh; None: all, of every process.

    Raises:
      ValueError: if an axis is unknown or a size no positive integer, or if the sizes do not
        multiply to the number of devices.

    >>> dict(make_mesh("data=-1", jax.devices()[:1]).shape)
    {'data': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    named = _parsed(sizes) if isinstance(sizes, str) else dict(sizes)
    for name, size in named.items():
        _validation.one_of(AXES, "make_mesh", axis=name)
        if not _validation.is_integer(size) or (size < 1 and size != -1):
            raise _validation.invalid(name, size, "a positive integer, or -1", function="make_mesh")
    known = math.prod(size for size in named.values() if size != -1)
    rest = [name for name, size in named.items() if size == -1]
    if len(rest) == 1 and len(devices) % known == 0:
        named[rest[0]] = len(devices) // known
    elif not named or rest or known != len(devices):
        given = _validation.Verbatim(",".join(f"{name}={size}" for name, size in named.items()) or "nothing")
        expected = f"sizes that multiply to the {len(devices)} devices"
        raise _validation.invalid("mesh", given, expected, 'One size may be -1: "data=-1".', "make_mesh")
    return jax.make_mesh(
        tuple(named.values()), tuple(named), axis_types=(AxisType.Auto,) * len(named), devices=devices
    )


def spec(path: str, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The spec of one leaf of a state; an axis that does not divide is replicated.

    `model` takes the axis that `MODEL_AXIS` names, and `fsdp` the largest of the others that it
    divides, but not the first of stacked blocks, over which a loop runs.

    >>> mesh = jax.sharding.AbstractMesh((2, 2), ("fsdp", "model"))
    >>> spec("blocks/mlp/down/kernel", (6, 24, 8), mesh), spec("norm/scale", (7,), mesh)
    (PartitionSpec(None, 'model', 'fsdp'), PartitionSpec(None,))
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


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The tree of `NamedSharding` of the leaves, arrays or their shapes, by `spec`.

    >>> mesh = make_mesh("fsdp=1", jax.devices()[:1])
    >>> shardings({"w": np.ones(2)}, mesh)["w"].spec
    PartitionSpec(None,)
    """
    place = lambda path, x: NamedSharding(mesh, spec(_tree_paths.place(path), np.shape(x), mesh))
    return _tree_paths.map_with_path(place, tree)


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


def put(tree: Tree, mesh: Mesh) -> Tree:
    """Places a state over a mesh by `spec`; each process gives the whole of it, and the same.

    >>> put({"w": np.ones(2)}, make_mesh("data=1", jax.devices()[:1]))["w"].sharding.spec
    PartitionSpec(None,)
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


def init(function: Callable[..., Tree], mesh: Mesh) -> Callable[..., Tree]:
    """The function, compiled so that its result is made in its shards and nowhere whole.

    >>> make = init(lambda key: {"w": jax.random.normal(key, (4, 2))}, make_mesh("data=-1"))
    >>> make(jax.random.key(0))["w"].shape
    (4, 2)
    """

    def made(*args):
        places = shardings(jax.eval_shape(function, *args), mesh)
        return jax.jit(function, out_shardings=places)(*args)

    return made


def local_rows(tree: Tree, mesh: Mesh) -> Tree:
    """Batches of all processes as one: each gives its own rows, NumPy `[B / processes, ...]`.

    >>> local_rows(np.ones((2, 3)), make_mesh("data=1", jax.devices()[:1])).shape
    (2, 3)
    """
    sharding = NamedSharding(mesh, PartitionSpec(_batch_axes(mesh)))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


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


def own_numbers(x: jax.Array) -> np.ndarray:
    """The numbers of the rows of `own_rows`.

    >>> own_numbers(jax.numpy.ones((2, 3))).tolist()
    [0, 1]
    """
    numbers = np.arange(len(x))
    if x.is_fully_addressable:
        return numbers
    return np.concatenate([numbers[shard.index[0]] for shard in _own_shards(x)])


def of_rows(values: Tree, like: jax.Array) -> Tree:
    """What each process says of its `own_rows` of an array, as arrays with the rows of all processes.

    >>> of_rows(np.ones(2), jax.numpy.ones((2, 3))).shape
    (2,)
    """
    if like.is_fully_addressable or like.is_fully_replicated:
        return values
    assert isinstance(like.sharding, NamedSharding)
    place = NamedSharding(like.sharding.mesh, PartitionSpec(*like.sharding.spec[:1]))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), values)


def rows(tree: Tree) -> Tree:
    """Pins the first axis of each leaf to `data` and `fsdp` of the mesh that is set, inside jit.

    The identity without a mesh, and on a leaf whose rows do not divide.

    >>> rows(np.ones((4, 2))).shape
    (4, 2)
    """
    return _pinned(tree, 0)


def pieces(tree: Tree) -> Tree:
    """As `rows`, for micro-batches `[n, B/n, ...]`: pins the second axis, so that a scan runs over the first.

    >>> pieces(np.ones((4, 2))).shape
    (4, 2)
    """
    return _pinned(tree, 1)


def whole(tree: Tree) -> Tree:
    """Pins weights as `spec` has them without `fsdp`: gathered where they are used; their gradient, reduced.

    >>> whole({"w": np.ones((4, 2))})["w"].shape
    (4, 2)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1 or not _automatic(mesh):
        return tree

    def pin(path, x):
        axes = spec(_tree_paths.place(path), np.shape(x), mesh)
        kept = PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes))
        return jax.lax.with_sharding_constraint(x, kept)

    return _tree_paths.map_with_path(pin, tree)


def _own_shards(x):
    """One shard on this process for each of its runs of rows, in order."""
    shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return [shards[start] for start in sorted(shards)]


def _pinned(tree, axis):
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty or not _automatic(mesh) else _batch_axes(mesh)
    count = math.prod(mesh.shape[name] for name in axes)
    if count == 1:
        return tree

    def pin(x):
        if np.ndim(x) <= axis or x.shape[axis] % count:
            return x
        open_axes = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - axis - 1)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * axis, axes, *open_axes))

    return jax.tree.map(pin, tree)


def _batch_axes(mesh):
    return tuple(name for name in BATCH_AXES if name in mesh.axis_names)


def _automatic(mesh):
    """Whether the compiler places arrays: over explicit axes a type says it, in a shard_map the user."""
    return all(kind == AxisType.Auto for kind in mesh.axis_types)


def _parsed(text):
    """Axis ↦ size of "data=4,fsdp=2"."""
    named = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if not size.removeprefix("-").isdecimal() or name in named:
            expected = 'axes with their sizes, each once, as "data=4,fsdp=2"'
            raise _validation.invalid("mesh", text, expected, function="make_mesh")
        named[name] = int(size)
    return named
