"""From the fields of transformers' config.json to a ModelConfig, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from proxlm import _validation
from proxlm.lm import _architectures, _config, _layer_fields
from proxlm.lm._architectures import ARCHITECTURES, Architecture
from proxlm.lm._config import ModelConfig
from proxlm.lm._layer_fields import FULL, LENGTH, SCALING, SLIDING, invalid

INTEGERS = {*_config.SIZES, *_config.DERIVED_SIZES, "window"}
FLAGS = {*_config.FLAGS}
NULLABLE = ("num_kv_heads", "window", "attention_cap", "logit_cap")
# Fields of ModelConfig that say how it is computed, not what.
COMPUTATION = ("init_scale", "compute_dtype", "attention", "matmul_precision", "remat", "unroll")


def from_fields(fields: Mapping[str, Any], num_tensors: int) -> ModelConfig:
    """The config that the fields of a config.json describe; ValueError for what is not known.

    Args:
      num_tensors: of the file, which bounds the number of layers.

    >>> fields = to_fields(ModelConfig(vocab_size=16, qkv_bias=True))
    >>> fields["model_type"], from_fields(fields, 100).qkv_bias
    ('qwen2', True)
    """
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise invalid("model_type", kind, f"one of {tuple(ARCHITECTURES)}")
    own = ARCHITECTURES[kind]
    if (names := fields.get("architectures")) not in (None, [own.class_name]):
        raise invalid("architectures", names, f"[{own.class_name!r}]")
    fields = _layer_fields.flat(kind, fields)
    for name, values in {**_architectures.FIXED, **own.fixed}.items():
        if name in fields and name not in own.fields and values and fields[name] not in values:
            raise invalid(name, fields[name], " or ".join(map(repr, values)))
    read: dict[str, Any] = {}
    for name, (targets, default) in own.fields.items():
        value = _value(fields, name, targets, default, read, own)
        read |= dict.fromkeys(targets.split(), value)
    if read["num_layers"] > num_tensors:
        raise invalid(
            "num_hidden_layers", read["num_layers"], f"at most {num_tensors}, the number of tensors"
        )
    for name, switch in own.switches.items():
        read[name] = switch(read) if callable(switch) else switch
    if "rope_theta" in read:
        length = fields.get(LENGTH, 4096) if LENGTH in own.fixed else None
        read |= _layer_fields.scaling(fields.get("rope_scaling"), read, length)
    read |= _layer_fields.layers(fields, read, own)
    allowed = {
        *own.fields,
        *own.fixed,
        *_architectures.FIXED,
        *_architectures.IGNORED,
        *_layer_fields.read_apart(own),
    }
    for name in fields:
        if name not in allowed:
            raise invalid(name, fields[name], "absent")
    return ModelConfig(**read)


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of the first architecture that has the function of a config; ValueError if none has.

    >>> to_fields(ModelConfig(16, norm="rms_plus_one", norm_place="after"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: config.norm must be 'rms', got 'rms_plus_one'. No architecture of transformers has ...
    """
    differences = []
    for kind, own in ARCHITECTURES.items():
        fields = _written(config, own) | {"model_type": kind, "architectures": [own.class_name]}
        try:
            again = from_fields(fields, config.num_layers)
        except ValueError:  # sizes that the architecture cannot have
            continue
        one, other = _function_of(config), _function_of(again)
        faults = [name for name in one if one[name] != other[name]]
        if not faults:
            return fields
        differences.append((len(faults), faults[0], other[faults[0]], kind))
    _, name, expected, kind = min(differences, key=lambda x: x[0])
    remedy = f"No architecture of transformers has this combination; the nearest is {kind}."
    raise _validation.invalid(f"config.{name}", getattr(config, name), repr(expected), remedy)


def _value(
    fields: Mapping[str, Any], name: str, targets: str, default: Any, read: dict[str, Any], own: Architecture
) -> Any:
    """The value of a field, checked and in the terms of ModelConfig."""
    value: Any = fields.get(name)
    if value is None and callable(default):
        value = default(read)
    elif value is None and name not in fields and default is not ...:
        value = default
    elif value is None and (name not in fields or (default is not None and targets not in NULLABLE)):
        raise invalid(name, None, "given")
    if targets == "activation":
        name_of = dict(own.aliases.get(name, {})).get(str(value), str(value))
        if name_of not in _architectures.ACTIVATIONS:
            raise invalid(name, value, f"one of {tuple(_architectures.ACTIVATIONS)}")
        return _architectures.ACTIVATIONS[name_of]
    target, argument = targets.split()[0], dict[str, Any]({name: value})
    if target in INTEGERS:
        _validation.integer(1, **argument)
    elif target in FLAGS:
        _validation.one_of((False, True), **argument)
    else:
        _validation.positive(**argument)
    if targets == "query_scale":
        width = read.get("head_width") or read["width"] / read["num_heads"]
        return None if value in (None, width) else value**-0.5
    return value


def _written(config: ModelConfig, own: Architecture) -> dict[str, Any]:
    """The fields of an architecture for a config, whether they have its function or not."""
    fields: dict[str, Any] = {}
    for name, (targets, _) in own.fields.items():
        value = getattr(config, targets.split()[0])
        if targets == "activation":
            value = next(key for key, act in _architectures.ACTIVATIONS.items() if act == value)
        elif targets == "query_scale":
            value = config.head_width if value is None else value**-2
            value = round(value) if abs(value - round(value)) < 1e-9 * value else value
        fields[name] = value
    if "rope_theta" in fields and (scaling := config.rope_scaling) is not None:
        parts = {"rope_type": scaling.kind, "type": scaling.kind, "factor": float(scaling.factor)}
        parts |= {name: getattr(scaling, target) for name, target in SCALING[scaling.kind].items()}
        if scaling.kind in ("llama3", "yarn", "longrope"):
            parts[LENGTH] = scaling.original_length
            fields |= {LENGTH: scaling.original_length} if LENGTH in own.fixed else {}
        elif scaling.kind == "dynamic":
            fields["max_position_embeddings"] = scaling.original_length
        fields["rope_scaling"] = parts
    windowed, rotated = _flags(config)
    if fields.get("rope_local_base_freq", 0) is None:
        fields["rope_local_base_freq"] = config.rope_theta
    if own.windows not in (None, "all"):
        if own.windows in ("above", "rotate"):
            fields["use_sliding_window"] = any(windowed)
        fields["layer_types"] = [SLIDING if flag else FULL for flag in windowed]
    if own.windows == "rotate":
        fields["no_rope_layers"] = [int(flag) for flag in rotated]
    return fields


def _flags(config: ModelConfig) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """For each layer, whether it has the window, and whether it rotates."""
    every = (True,) * config.num_layers
    windowed = config.window_layers or every if config.window else (False,) * config.num_layers
    return windowed, config.rope_layers or every


def _function_of(config: ModelConfig) -> dict[str, Any]:
    """The fields that decide a model's function, each way of saying the same being one."""
    fields = {name: value for name, value in vars(config).items() if name not in COMPUTATION}
    fields["window_layers"], fields["rope_layers"] = _flags(config)
    if not any(fields["window_layers"]):
        fields["window"] = fields["window_rope_theta"] = None
    if config.window_rope_theta == config.rope_theta and config.rope_scaling is None:
        fields["window_rope_theta"] = None
    if config.query_scale == config.head_width**-0.5:
        fields["query_scale"] = None
    if config.positions == "learned":
        fields["rope_theta"] = None
    if (scaling := config.rope_scaling) is not None:
        unused = {"original_length": 1} if scaling.kind == "linear" else {}
        fields["rope_scaling"] = dataclasses.replace(scaling, **unused)
        if scaling.kind == "dynamic":
            fields["max_length"] = None
    return fields
