"""Arrays filled piece by piece, the part of each device by itself."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

Bounds = tuple[tuple[int, int], ...]
"""First and last place, exclusive, on every axis."""

ALIGNMENT = 64  # of memory that JAX takes over as it lies there


def bounds(index: Sequence[int | slice], shape: Sequence[int]) -> Bounds:
    """The bounds of what an index takes, which may leave out the last axes.

    >>> bounds((1, slice(None), slice(2, 4)), (3, 5, 6, 7))
    ((1, 2), (0, 5), (2, 4), (0, 7))
    """
    index = (*index, *(slice(None),) * (len(shape) - len(index)))
    pairs = zip(index, shape, strict=True)
    return tuple(x.indices(n)[:2] if isinstance(x, slice) else (x, x + 1) for x, n in pairs)


def filled(
    pieces: Iterable[tuple[Bounds, Callable[[], np.ndarray]]],
    shape: Sequence[int],
    dtype: np.dtype,
    where: jax.sharding.Sharding | None,
) -> jax.Array:
    """An array of pieces that are read one after the other, those that no device here holds not at all.

    >>> pieces = [(((i, i + 1), (0, 2)), lambda i=i: np.full(2, i)) for i in range(3)]
    >>> filled(pieces, (3, 2), np.dtype("float32"), None).tolist()
    [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    """
    devices: dict[Any, Bounds] = {None: bounds((), shape)}
    if where is not None:
        places = where.addressable_devices_indices_map(tuple(shape))
        devices = {device: bounds(index or (), shape) for device, index in places.items()}
    parts = {part: _empty(_sizes(part), dtype) for part in devices.values()}
    for piece, read in pieces:
        _fill(parts, piece, read)
    if where is None:
        return jax.device_put(parts.popitem()[1])
    on = lambda device: jax.sharding.SingleDeviceSharding(device, memory_kind=where.memory_kind)
    arrays = [jax.device_put(parts[part], on(device)) for device, part in devices.items()]
    return jax.make_array_from_single_device_arrays(tuple(shape), where, arrays)


def _fill(parts, piece, read):
    """Writes a piece into the parts that it meets, and does not read it where there is none."""
    entries = None
    for part, array in parts.items():
        both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(part, piece, strict=True)]
        if any(start >= end for start, end in both):
            continue
        entries = read().reshape(_sizes(piece)) if entries is None else entries
        array[_inside(part, both)] = entries[_inside(piece, both)]


def _inside(outer, both):
    """Bounds as an index of what has others."""
    return tuple(
        slice(start - first, end - first) for (start, end), (first, _) in zip(both, outer, strict=True)
    )


def _sizes(part):
    return [end - start for start, end in part]


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX can take over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
