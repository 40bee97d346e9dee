"""Fields of config.json that say how layers differ, and how positions enter: RoPE, its scaling, windows."""

import math
from collections.abc import Mapping
from typing import Any

from proxlm import _validation
from proxlm.lm import _architectures
from proxlm.lm._architectures import Architecture
from proxlm.lm._rope_scaling import RopeScaling

SLIDING, FULL = "sliding_attention", "full_attention"
LENGTH = "original_max_position_embeddings"
# Fields of a scaling of RoPE, by its kind, beside factor and original_max_position_embeddings.
SCALING = {
    "linear": {},
    "dynamic": {},
    "llama3": {"low_freq_factor": "low", "high_freq_factor": "high"},
    "yarn": {
        "beta_slow": "low",
        "beta_fast": "high",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
    "longrope": {"attention_factor": "attention_factor", "short_factor": "short", "long_factor": "long"},
}


def flat(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with those of RoPE at the top, under one name each, wherever transformers has them."""
    flat = {_architectures.RENAMED.get(kind, {}).get(name, name): value for name, value in fields.items()}
    given = {name: flat.pop(name, None) for name in ("rope_scaling", "rope_parameters")}
    for source, parts in given.items():
        if parts is None:
            continue
        if not isinstance(parts, dict):
            raise invalid(source, parts, "an object or null")
        if kind == "gemma3_text" and {FULL, SLIDING} >= set(parts):
            flat |= _local(parts.get(SLIDING) or {}, f"{source}.{SLIDING}")
            parts = parts.get(FULL) or {}
        top = {name: parts[name] for name in ("rope_theta", "partial_rotary_factor") if name in parts}
        rest = {name: value for name, value in parts.items() if name not in top}
        top |= {} if all(value == "default" for value in rest.values()) else {"rope_scaling": rest}
        for name, value in top.items():
            if flat.setdefault(name, value) != value:
                raise invalid(name, flat[name], f"{value}, as in {source}")
    return flat


def _local(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The one field of RoPE that layers with a window may have."""
    allowed = {"rope_type": "default", "type": "default", "rope_theta": given.get("rope_theta")}
    for key, value in given.items():
        if key not in allowed or value != allowed[key]:
            raise invalid(f"{name}.{key}", value, repr(allowed.get(key, "absent")))
    return {"rope_local_base_freq": given["rope_theta"]} if "rope_theta" in given else {}


def scaling(given: Any, read: Mapping[str, Any], length: Any = None) -> dict[str, Any]:
    """The scaling of RoPE, and the length of the context with it; an original length goes before its own."""
    if given is None:
        return {}
    parts = dict(given)
    old = parts.pop("type", None)
    kind = parts.pop("rope_type", old)
    if not isinstance(kind, str) or kind not in SCALING:
        raise invalid("rope_scaling.rope_type", kind, f"one of {tuple(SCALING)}")
    own_length = parts.pop(LENGTH, None)
    length = length or own_length or read["max_length"]
    values = {target: parts.pop(name, None) for name, target in SCALING[kind].items()}
    values = {target: value for target, value in values.items() if value is not None}
    factor = parts.pop("factor", None)
    _validation.integer(1, **{f"rope_scaling.{LENGTH}": length})
    if factor is None and kind == "longrope":
        factor = max(1.0, read["max_length"] / length)
    bounded: dict[str, Any] = {"rope_scaling.factor": factor}
    _validation.within(1.0, 1e6, **bounded)
    if factor is None:
        raise invalid("rope_scaling.factor", None, "a number")
    if kind == "longrope":
        for name, target in {"short_factor": "short", "long_factor": "long"}.items():
            if not isinstance(values.get(target), list | tuple):
                raise invalid(f"rope_scaling.{name}", values.get(target), "a list of numbers")
    if kind == "yarn":
        scales = [parts.pop(name, None) for name in ("mscale", "mscale_all_dim")]
        _validation.at_least(0, mscale=scales[0], mscale_all_dim=scales[1])
        if all(scales):
            one, other = (1 + 0.1 * scale * math.log(factor) for scale in scales)
            values.setdefault("attention_factor", one / other)
    for name, value in parts.items():
        raise invalid(f"rope_scaling.{name}", value, "absent")
    stretched = {"max_length": int(factor * length)} if kind == "dynamic" else {}
    return {"rope_scaling": RopeScaling(kind, float(factor), length, **values), **stretched}


def layers(fields: Mapping[str, Any], read: Mapping[str, Any], own: Architecture) -> dict[str, Any]:
    """The layers that rotate, and those that have the window."""
    depth, window = read["num_layers"], read.get("window")
    rotated = [True] * depth
    if own.windows == "rotate":
        every = fields.get("no_rope_layer_interval", 4)
        _validation.integer(1, no_rope_layer_interval=every)
        given = fields.get("no_rope_layers")
        rotated = [(i + 1) % every != 0 for i in range(depth)] if given is None else given
        if not isinstance(rotated, list) or len(rotated) != depth or not all(x in (0, 1) for x in rotated):
            raise invalid("no_rope_layers", rotated, f"a list of {depth} zeros and ones")
    if own.windows in ("above", "rotate"):
        _validation.one_of((False, True), use_sliding_window=fields.get("use_sliding_window", False))
        window = window if fields.get("use_sliding_window", False) else None
        _validation.integer(0, max_window_layers=fields.get("max_window_layers"))
    types = fields.get("layer_types") if own.windows != "all" else None
    if types is not None:
        known = isinstance(types, list) and all(x in (SLIDING, FULL) for x in types)
        if not known or len(types) != depth:
            raise invalid("layer_types", types, f"a list of {depth} of {SLIDING!r} and {FULL!r}")
        windowed = [x == SLIDING for x in types]
    elif own.windows == "above":
        windowed = [i >= fields.get("max_window_layers", 28) for i in range(depth)]
    elif own.windows == "rotate":
        windowed = [not x for x in rotated]
    elif own.windows == "all":
        windowed = [True] * depth
    else:
        every = fields.get("sliding_window_pattern", own.windows) or 1
        _validation.integer(1, sliding_window_pattern=every)
        windowed = [(i + 1) % every != 0 for i in range(depth)]
    if types is not None and window is None and any(windowed):
        raise invalid("sliding_window", None, "an integer, as layer_types has sliding ones")
    window = window if any(windowed) else None
    result: dict[str, Any] = {"window": window}
    if window is not None and not all(windowed):
        result["window_layers"] = tuple(windowed)
    if "window_rope_theta" in read:
        result["window_rope_theta"] = read["window_rope_theta"] if window is not None else None
    if not all(rotated):
        result["rope_layers"] = tuple(map(bool, rotated))
    return result


def read_apart(own: Architecture) -> set[str]:
    """Fields that are read by functions of their own."""
    names = {"rope_scaling"} if "rope_theta" in own.fields else set()
    if own.windows not in (None, "all"):
        names |= {"layer_types"}
    if own.windows in ("above", "rotate"):
        names |= {"use_sliding_window", "max_window_layers"}
    if own.windows == "rotate":
        names |= {"no_rope_layers", "no_rope_layer_interval"}
    if isinstance(own.windows, int):
        names |= {"sliding_window_pattern"}
    return names


def invalid(name: str, given: Any, expected: str) -> ValueError:
    shown = " ".join(repr(given).split())
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    return _validation.invalid(name, _validation.Verbatim(shown), expected, "It is not implemented.")
