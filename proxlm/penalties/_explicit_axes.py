"""Arrays that are sharded over mesh axes of `AxisType.Explicit`, which `jax.make_mesh` gives by default."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def supported(function: Callable[..., Any], scalar: bool) -> Callable[..., Any]:
    """Gives a function of a tree that leaves the sharding to the compiler where JAX does not know a rule.

    Sorts, singular values and some reshapes have none. The result is sharded as x is, or is a scalar on
    every device.

    Args:
      function: (x, ...) ↦ a tree like x, or, where `scalar` says so, a scalar.

    >>> supported(lambda x, t: x - t, scalar=False)(3.0, 1.0)
    2.0
    """
    if getattr(function, "supports_explicit_axes", False):
        return function

    @functools.wraps(function)
    def run(x, *rest, **named):
        mesh = _explicit_mesh(x)
        if mesh is None:
            return function(x, *rest, **named)
        try:
            return function(x, *rest, **named)
        except Exception as error:
            over_all = lambda leaf: NamedSharding(mesh, PartitionSpec())
            result = over_all(None) if scalar else jax.tree.map(lambda leaf: jax.typeof(leaf).sharding, x)
            automatic = jax.sharding.auto_axes(lambda x: function(x, *rest, **named), out_sharding=result)
            try:
                return automatic(x)
            except Exception:
                if "Sharding" in type(error).__name__ or "mesh" in str(error):
                    error.add_note(REMEDY)
                raise error from None

    vars(run)["supports_explicit_axes"] = True
    return run


REMEDY = (
    "JAX cannot shard this over an explicit mesh. Make the mesh automatic: "
    "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))."
)


def _explicit_mesh(x):
    """The mesh over whose explicit axes an array of the tree is sharded; None without one."""
    for leaf in jax.tree.leaves(x):
        if isinstance(leaf, jax.Array):
            sharding = jax.typeof(leaf).sharding
            if AxisType.Explicit in sharding.mesh.axis_types and any(sharding.spec):
                return sharding.mesh
    return None
