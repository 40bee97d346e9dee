"""Adapters in the files of PEFT: adapter_config.json and adapter_model.safetensors."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from proxlm import _validation
from proxlm.lm import _adapters, _architectures, _config_fields, _parameters, _weight_files
from proxlm.lm._config import ModelConfig, Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SUFFIXES = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
# Fields that have no effect on the function, and those that are read; all others have to be empty.
NO_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "peft_version",
)
NO_EFFECT += ("lora_dropout", "target_modules", "exclude_modules", "megatron_core", "qalora_group_size")
READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora")
FIXED = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}


@_validation.typed
def save(path: str | os.PathLike[str], params: Params, config: ModelConfig, base: str | None = None) -> None:
    """Saves the factors as a folder that PEFT opens beside the base model.

    Needs safetensors: `pip install proxlm[models]`.

    Args:
      path: of the folder, which is made; it may exist if it is empty.
      params: of `init`, trained; those of a `split` by way of `trainable.merge`.
      base: name or path of the base model, which PEFT reads with the adapter.

    Raises:
      ValueError: if there are no factors, the folder is not empty, or the architecture has several
        of the adapted maps in one tensor: `merge` them and save the whole.

    >>> save("adapter", params, config, "SmolLM2-135M-Instruct")  # doctest: +SKIP
    """
    _weight_files.library("lora.save")
    folder = pathlib.Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _validation.invalid("path", str(path), "an empty folder", "Name a new one.", "lora.save")
    _parameters.check(params, config, factors=True)
    leaves, modules = _adapters.flat(params), _modules("lora.save", config)
    tensors, ranks, alphas, has_dora = {}, {}, {}, []
    for name, place in _adapters.maps_of(leaves).items():
        if not (factors := place.factors(leaves)):
            continue
        if name not in modules:
            remedy = "Merge them by lora.merge and save the whole model."
            raise _validation.invalid("pattern", name, f"one of {list(modules)}", remedy, "lora.save")
        last = modules[name].rpartition(".")[2]
        ranks[last] = int(factors["a"].shape[2])
        alphas[last] = _alpha(name, np.asarray(factors["scale"]), ranks[last])
        has_dora.append("magnitude" in factors)
        for leaf, suffix in SUFFIXES.items():
            for layer, x in enumerate(np.asarray(factors[leaf], np.float32) if leaf in factors else ()):
                key = f"base_model.model.{modules[name].format(layer)}.{suffix}"
                tensors[key] = np.ascontiguousarray(x.T)
    if not tensors or any(has_dora) != all(has_dora):
        given = _validation.Verbatim("DoRA in some maps" if tensors else "no factors")
        raise _validation.invalid("params", given, "factors of one lora.init", "", "lora.save")
    folder.mkdir(parents=True, exist_ok=True)
    import safetensors.numpy

    safetensors.numpy.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    _weight_files.write_json(folder / CONFIG, _fields(ranks, alphas, any(has_dora), base))


@_validation.typed
def load(path: str | os.PathLike[str], params: Params, config: ModelConfig) -> dict[str, Any]:
    """Adds the factors in a folder of PEFT to the parameters of its base model.

    A map has factors in every layer or in none; whatever else the adapter asks for is refused by
    the name of its field.

    Needs safetensors: `pip install proxlm[models]`.

    Raises:
      ValueError: if a file is damaged or asks for what is not implemented, or is of another base.

    >>> params = load("adapter", model.params, model.config)  # doctest: +SKIP
    """
    _weight_files.library("lora.load")
    _parameters.check(params, config)
    folder, leaves = pathlib.Path(path), _adapters.flat(params)
    try:
        fields = _weight_files.read_json(folder / CONFIG)
        _check_fields(fields)
        with _weight_files.opened(folder / WEIGHTS) as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}
            added = {}
            for name, module in _modules("lora.load", config).items():
                place = _adapters.maps_of(leaves)[name]
                factors = _factors(tensors, module, place.flat(leaves).shape, fields)
                added |= {f"{place.prefix}/{leaf}": x for leaf, x in factors.items()}
        if tensors or not added:
            given = next(iter(tensors), None)
            raise _validation.invalid("a tensor", given, "of a linear map of all layers of the base")
    except ValueError as error:
        raise ValueError(f"lora.load: {path}: {error}") from error
    return traverse_util.unflatten_dict(leaves | added, sep="/")


def _modules(function, config):
    """Name of a map, as attention/query ↦ the module of transformers, with {} for the layer."""
    try:
        layout = _architectures.ARCHITECTURES[_config_fields.to_fields(config)["model_type"]].layout
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from error
    if layout.row_order != "halves" or not layout.transposed:
        return {}
    names = {name: f"{part.split('/')[0]}/{name}" for part, names in _adapters.MAPS.items() for name in names}
    return {names[part]: module for part, module in layout.modules.items() if part in names}


def _alpha(name, scale, rank):
    """α of a map, whose s = α/r is one number for all layers."""
    if np.ptp(scale):
        remedy = "Merge them by lora.merge."
        raise _validation.invalid(f"scale of {name}", scale.tolist(), "one number", remedy, "lora.save")
    alpha = float(np.float32(scale[0] * rank))
    return int(alpha) if alpha.is_integer() else alpha


def _fields(ranks, alphas, dora, base):
    """An adapter_config.json."""
    first = next(iter(ranks))
    others = lambda table: {name: x for name, x in table.items() if x != table[first]}
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "bias": "none"}
    fields |= {"r": ranks[first], "lora_alpha": alphas[first], "lora_dropout": 0.0, "use_dora": dora}
    fields |= {
        "rank_pattern": others(ranks),
        "alpha_pattern": others(alphas),
        "target_modules": sorted(ranks),
    }
    return fields | {"inference_mode": True, "fan_in_fan_out": False, "use_rslora": False}


def _check_fields(fields):
    if (kind := fields.get("peft_type")) != "LORA":
        raise _validation.invalid("peft_type", kind, "'LORA'", "No other adapter is implemented.")
    for name, value in fields.items():
        if name in FIXED:
            if not any(value is known or (type(value) is str and value == known) for known in FIXED[name]):
                raise _validation.invalid(name, value, f"one of {FIXED[name]}", "It is not implemented.")
        elif name not in (*READ, *NO_EFFECT) and value not in (None, False, {}, []):
            raise _validation.invalid(name, value, "absent or empty", "It is not implemented.")
    for name in ("r", "lora_alpha"):
        _validation.positive(**{name: fields.get(name, 8)})
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(fields.get(name) or {}, dict):
            raise _validation.invalid(name, fields[name], "an object of numbers by name")


def _factors(tensors, module, shape, fields):
    """The factors of a map in all layers, taken out of the tensors; empty where there are none."""
    depth, inputs, outputs = shape
    leaves = SUFFIXES if fields.get("use_dora") else {leaf: SUFFIXES[leaf] for leaf in ("a", "b")}
    keys = {
        leaf: [f"base_model.model.{module.format(i)}.{end}" for i in range(depth)]
        for leaf, end in leaves.items()
    }
    if not any(key in tensors for keys_of in keys.values() for key in keys_of):
        return {}
    rank, result = 0, {}
    for leaf, names in keys.items():
        layers = []
        for key in names:
            if key not in tensors:
                raise _validation.invalid(f"tensor {key}", None, "there, as in other layers")
            part = tensors.pop(key)
            given = tuple(part.get_shape())
            rank = rank or max(1, *given[:1], 1)
            expected = {"a": (rank, inputs), "b": (outputs, rank), "magnitude": (outputs,)}[leaf]
            if given != expected or part.get_dtype() not in _weight_files.DTYPES:
                raise _validation.invalid(
                    f"tensor {key}", f"{part.get_dtype()} {given}", f"floats {expected}"
                )
            layers.append(np.asarray(part[:], np.float32).T)
        result[leaf] = jnp.asarray(np.stack(layers))
    alpha = _by_pattern(fields.get("alpha_pattern") or {}, module, fields.get("lora_alpha", 8))
    _validation.positive(alpha_pattern=alpha)
    scale = alpha / (rank**0.5 if fields.get("use_rslora") else rank)
    return result | {"scale": jnp.full(depth, scale, jnp.float32)}


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value whose key is the end of the module's name; keys that are true patterns are refused."""
    for key, value in patterns.items():
        if not key.replace(".", "").replace("_", "").isalnum():
            raise _validation.invalid("alpha_pattern", key, "names of modules", "It is not implemented.")
        if f".{module}".endswith(f".{key}"):
            return value
    return default
