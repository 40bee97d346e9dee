"""The text that a penalty or a grouping prints: the call that makes it, as in l1(strength=0.1)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import numpy as np

LONGEST = 4  # entries of an array, or of a tree, that are written out


def call(name: str, positional: Sequence[Any], arguments: Mapping[str, Any]) -> str:
    """Writes the call of a function, without the arguments that are None.

    Short arrays are written out, longer and traced ones as their dtype and shape.

    >>> call("l1_ball", (), {"radius": np.ones((2, 3), np.float32), "axis": None, "tolerance": 1e-3})
    'l1_ball(radius=float32[2,3], tolerance=0.001)'
    """
    given = [*map(_show, positional)]
    given += [f"{key}={_show(value)}" for key, value in arguments.items() if value is not None]
    return f"{name}({', '.join(given)})"


def _show(value):
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _show_array(value)
    if isinstance(value, Mapping):
        return f"{{{_listed(f'{key!r}: {_show(entry)}' for key, entry in value.items())}}}"
    if type(value) in (tuple, list):
        left, right = "()" if isinstance(value, tuple) else "[]"
        comma = "," if left == "(" and len(value) == 1 else ""
        return f"{left}{_listed(map(_show, value))}{comma}{right}"
    return getattr(value, "__name__", None) or repr(value)


def _show_array(array):
    traced = isinstance(array, jax.core.Tracer)
    gone = isinstance(array, jax.Array) and not traced and array.is_deleted()
    if traced or gone or math.prod(array.shape) > LONGEST or array.ndim > 1:
        return f"{array.dtype}[{','.join(map(str, array.shape))}]"
    known = np.asarray(array)
    return str(known) if not known.ndim else f"[{', '.join(map(str, known))}]"


def _listed(entries):
    entries = list(entries)
    return ", ".join(entries[:LONGEST] + ["..."] * (len(entries) > LONGEST))
