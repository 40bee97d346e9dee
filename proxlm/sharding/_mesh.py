"""A mesh from one line of text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from proxlm import _validation

AXES = ("data", "fsdp", "model", "seeds")
BATCH_AXES = ("data", "fsdp")


@_validation.typed
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
    if not isinstance(sizes, str | Mapping):
        raise _validation.invalid("sizes", sizes, 'text such as "data=4", or a mapping', "", "make_mesh")
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


def batch_axes(mesh: Any) -> tuple[str, ...]:
    """The axes over which rows of a batch are cut.

    >>> batch_axes(jax.sharding.AbstractMesh((2, 2), ("model", "data")))
    ('data',)
    """
    return tuple(name for name in BATCH_AXES if name in mesh.axis_names)


def has_mesh() -> bool:
    """Whether a mesh is set, or stands around this inside of a shard_map: arrays may be cut then.

    >>> has_mesh()
    False
    """
    return not jax.sharding.get_abstract_mesh().empty


def is_automatic(mesh: Any) -> bool:
    """Whether the compiler places arrays: over explicit axes a type says it, in a shard_map the user.

    >>> is_automatic(make_mesh("data=1", jax.devices()[:1]))
    True
    """
    return not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)


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
