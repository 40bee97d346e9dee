"""Settings as plain data, so that a run can be compared with the one it claims to continue."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["differences", "plain"]


def plain(config: Any) -> dict[str, Any]:
    """Returns settings as JSON would give them back: dicts, lists, strings and numbers.

    Args:
      config: a dataclass instance or a mapping; may hold arrays, paths and further dataclasses.

    Raises:
      ValueError: `config` is of another kind, or a field holds what JSON cannot.

    >>> import pathlib
    >>> plain({"widths": (4, 8), "strength": np.float32(0.5), "data": pathlib.Path("text")})
    {'widths': [4, 8], 'strength': 0.5, 'data': 'text'}
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if not isinstance(config, Mapping):
        raise ValueError(
            f"config={config!r} is a {type(config).__name__}; give a dataclass instance or a dict."
        )
    return {str(field): _plain_value(field, value) for field, value in config.items()}


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Names the fields in which two plain dicts differ, with both values; nested ones dotted.

    Args:
      saved: the settings, as `plain` gives them, that were written.
      given: those to compare with.

    Returns:
      One phrase a field; empty when the two agree.

    >>> differences({"lr": 0.1, "net": {"width": 4}}, {"lr": 0.1, "net": {"width": 8}})
    ['net.width: saved 4, given 8']
    """
    left, right = _flat(saved), _flat(given)
    names = [*left, *(name for name in right if name not in left)]
    pairs = [(name, left.get(name, "nothing"), right.get(name, "nothing")) for name in names]
    return [f"{name}: saved {old}, given {new}" for name, old, new in pairs if old != new]


def _flat(tree, prefix=""):
    """Maps each dotted field to its value as JSON text, in which NaN equals NaN."""
    if not isinstance(tree, Mapping) or (prefix and not tree):
        return {prefix: json.dumps(tree)}
    parts = [_flat(tree[name], f"{prefix}.{name}" if prefix else name) for name in tree]
    return {name: value for part in parts for name, value in part.items()}


def _plain_value(field, value):
    def convert(x):
        if isinstance(x, jax.Array | np.ndarray | np.generic):
            return np.asarray(x).tolist()
        if isinstance(x, os.PathLike):
            return os.fspath(x)
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return dataclasses.asdict(x)
        raise ValueError(
            f"config field {field!r} holds a {type(x).__name__}, which JSON cannot; keep numbers,"
            " strings, lists and dicts in the settings."
        )

    return json.loads(json.dumps(value, default=convert))
