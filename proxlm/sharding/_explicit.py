"""Meshes of explicit axes, which `jax.make_mesh` gives by default."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])


def automatic(function: Function) -> Function:
    """Gives a function inside which the compiler places arrays, over a mesh of explicit axes, too.

    Over axes of `AxisType.Explicit` each operation has to say where its result lies. Here a result like
    the first argument, such as a state after a step, lies as it does. Another has its rows, or the
    tokens of its rows, where those of the first array of integers are, or else those of the second
    argument; the rest is on every device. Over other meshes, and without one, it is the function itself.

    >>> automatic(lambda x, y: x + y)(1.0, 2.0)
    3.0
    """
    if getattr(function, "is_automatic", False):
        return function

    @functools.wraps(function)
    def run(*args, **named):
        leaves, structure = jax.tree.flatten((args, named))
        mesh = _explicit_mesh(leaves)
        if mesh is None:
            return function(*args, **named)
        numbers = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
        arrays = [leaves[i] for i in numbers]

        def call(arrays):
            filled = dict(enumerate(leaves)) | dict(zip(numbers, arrays, strict=True))
            args, named = jax.tree.unflatten(structure, filled.values())
            return function(*args, **named)

        kinds = (AxisType.Auto,) * len(mesh.axis_names)
        with jax.sharding.use_abstract_mesh(AbstractMesh(mesh.axis_sizes, mesh.axis_names, kinds)):
            result = jax.eval_shape(call, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays])
        place = _places(result, args[:1], _rows(arrays, args[1:2]), mesh)
        return jax.sharding.auto_axes(call, out_sharding=place)(arrays)

    vars(run)["is_automatic"] = True
    return run  # pyright: ignore[reportReturnType]


def _explicit_mesh(leaves: Sequence[Any]) -> AbstractMesh | None:
    """The mesh over whose explicit axes a leaf is sharded, or the one that is set; None without one."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array):
            sharding = jax.typeof(leaf).sharding
            if AxisType.Explicit in sharding.mesh.axis_types and any(sharding.spec):
                return sharding.mesh
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if AxisType.Explicit in mesh.axis_types else None


def _rows(arrays, second):
    """The number of rows of the array that leads the batch, and the axes over which they are cut."""
    tokens = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.integer)]
    for x in (*tokens, *second):
        if isinstance(x, jax.Array) and x.ndim:
            return x.shape[0], jax.typeof(x).sharding.spec[0]
    return 0, None


def _places(result, first, rows, mesh):
    """The places of a result, leaf by leaf; of a tuple, of each part by itself."""
    if type(result) is tuple:
        return tuple(_places(part, first, rows, mesh) for part in result)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    for like in first:
        if shapes(like) == shapes(result):
            return jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), like)

    def place(x):
        at = next((i for i, size in enumerate(x.shape) if rows[0] and size % rows[0] == 0), x.ndim)
        return NamedSharding(mesh, PartitionSpec(*(rows[1] if i == at else None for i in range(x.ndim))))

    return jax.tree.map(place, result)
