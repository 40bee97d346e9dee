"""Leaves of a state as plain arrays on disk, and back: kinds, checksums, placement, weak types."""

import zlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _tree_paths

_PYTHON_SCALARS = {bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float64)}


def paths(state: chex.ArrayTree) -> list[str]:
    """Readable paths of the leaves, in the order of `jax.tree.leaves`.

    >>> paths({"block": {"w": 1, "b": 2}}), paths(3)
    (['block/b', 'block/w'], ['the state'])
    """
    return [_tree_paths.place(path, "the state") for path, _ in _tree_paths.flatten(state)[0]]


def kinds(state: chex.ArrayTree) -> dict[str, str]:
    """Maps the path of each leaf to its kind, such as `float32[2,3]`, `key<fry>[]` or `int`.

    >>> kinds({"w": jnp.ones((2, 3)), "n": 7})
    {'n': 'int', 'w': 'float32[2,3]'}
    """
    return {name: _kind(name, x) for name, x in zip(paths(state), jax.tree.leaves(state), strict=True)}


def as_array(leaf: Any) -> jax.Array | np.ndarray:
    """A leaf as the numeric array that is written, once: what each process has for itself, by the first.

    >>> as_array(7), as_array(jax.random.key(0)).shape
    (array(7), (2,))
    """
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and (jax.process_count() == 1 or not leaf.is_fully_addressable):
        return leaf
    return np.asarray(leaf, _PYTHON_SCALARS.get(type(leaf)))


def target(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
    """The form in which a leaf is read: an array on the devices that `like` is committed to, else NumPy's.

    >>> target(jnp.ones(3)).shape, target(2.0).dtype
    ((3,), dtype('float64'))
    """
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    if _has_place(leaf):
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
    return np.empty(np.shape(data), _PYTHON_SCALARS.get(type(leaf)) or data.dtype)


def as_leaf(value: Any, like: Any) -> Any:
    """A restored array as its leaf in `like` was: Python number, NumPy, key, weak type, place.

    >>> as_leaf(np.array(7), like=0), as_leaf(np.ones(2), like=np.zeros(2))
    (7, array([1., 1.]))
    """
    if type(like) in _PYTHON_SCALARS:
        return type(like)(value)
    if isinstance(like, np.generic):
        return like.dtype.type(value)
    if isinstance(like, np.ndarray):
        return value
    if _is_key(like):
        value = jax.random.wrap_key_data(
            jnp.array(value), impl=jax.random.key_impl(jnp.zeros((), like.dtype))
        )
    elif like.weak_type:
        # Assigning keeps the weak type, without which later arithmetic would promote otherwise.
        zero = jnp.asarray(np.zeros((), like.dtype).item())
        value = jnp.broadcast_to(zero, like.shape).at[...].set(value)
    if not _has_place(like):
        return jnp.asarray(value)
    return (
        value if getattr(value, "sharding", None) == like.sharding else jax.device_put(value, like.sharding)
    )


def checksum(array: Any) -> str | None:
    """CRC-32 of the bytes of an array; None where some of it is on devices of another process.

    >>> checksum(np.arange(3, dtype=np.int32)), checksum(np.arange(1, 4, dtype=np.int32))
    ('1d760e7a', 'b0e02293')
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    data = np.ascontiguousarray(np.asarray(array)).reshape(-1)
    return f"{zlib.crc32(data.view(np.uint8).data):08x}"


def is_finite(array: Any) -> bool:
    """Whether an array holds neither NaN nor infinity; integers and booleans never do.

    >>> is_finite(np.arange(3)), is_finite(jnp.array([1.0, jnp.nan]))
    (True, False)
    """
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return True
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return bool(jnp.all(jnp.isfinite(array)))
    return bool(np.isfinite(np.asarray(array)).all())  # compiles nothing


def _kind(name, leaf):
    if type(leaf) in _PYTHON_SCALARS:
        return type(leaf).__name__
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic)
    if not is_array or getattr(leaf.dtype, "kind", "V") in "OSUMm":
        raise ValueError(
            f"leaf {name!r} is a {type(leaf).__name__}, which a checkpoint cannot hold; keep"
            " numeric arrays, typed keys and numbers in the state."
        )
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf):
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _has_place(leaf):
    """Whether a leaf sits on devices somebody chose; other arrays are left to go where needed."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.sharding is not None
    return isinstance(leaf, jax.Array) and leaf.committed
