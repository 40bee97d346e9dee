"""Tensors of the safetensors files in a folder, one at a time, and written in shards."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from proxlm import _validation
from proxlm.lm._layouts import BUFFERS

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
PART = 2**18  # numbers read at a time
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DAMAGED = "The file is truncated or damaged: fetch it again."


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, read when NumPy asks for its values."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    path: pathlib.Path

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values, of which none may be NaN or infinite; the file is mapped no longer than that takes.

        Another dtype is made of a part at a time.
        """
        result = np.empty(self.shape, dtype or self.dtype)
        rows = max(1, PART // max(1, math.prod(self.shape[1:])))
        with opened(self.path) as file:
            part = file.get_slice(self.name)
            for i in range(0, self.shape[0], rows):
                result[i : i + rows] = self._finite(part[i : min(i + rows, self.shape[0])])
        return result

    def _finite(self, values: np.ndarray) -> np.ndarray:
        numbers = bits(values)
        infinity = np.array(np.inf, values.dtype).view(numbers.dtype)
        # many times faster than isfinite for bfloat16
        if np.any(numbers & np.array((1 << 8 * values.itemsize - 1) - 1, numbers.dtype) >= infinity):
            given = _validation.Verbatim("NaN or infinite values")
            raise _validation.invalid(f"tensor {self.name} of {self.path.name}", given, "finite", DAMAGED)
        return values


def read(folder: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or of the shards that the index names.

    Raises:
      ValueError: if a file is missing, damaged, or holds a tensor twice or of another dtype.
    """
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise _validation.invalid(f"weight_map of {INDEX}", _kind(index), "an object of file names")
        shards = sorted(set(index.values()))
    elif (folder / ONE).exists():
        index, shards = {}, [ONE]
    else:
        found = sorted(path.name for path in folder.glob("*"))[:8]
        remedy = "Convert other formats with transformers' save_pretrained."
        raise _validation.invalid("weights", found, f"{ONE} or {INDEX}", remedy)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if pathlib.Path(shard).name != shard or not (folder / shard).is_file():
            raise _validation.invalid(f"a file of {INDEX}", shard, "a file beside it", "Fetch it.")
        with opened(folder / shard) as file:
            for name in file.keys():
                if name.endswith(BUFFERS):
                    continue
                part = file.get_slice(name)
                if (dtype := part.get_dtype()) not in DTYPES:
                    remedy = "Quantised weights are read from GGUF files only."
                    raise _validation.invalid(f"dtype of {name}", dtype, f"one of {tuple(DTYPES)}", remedy)
                shape = tuple(part.get_shape())
                if not shape:
                    raise _validation.invalid(f"shape of {name}", shape, "one axis or more", DAMAGED)
                if name in tensors:
                    raise _validation.invalid("a tensor", name, "in one shard", DAMAGED)
                tensors[name] = Tensor(name, shape, np.dtype(DTYPES[dtype]), folder / shard)
    if missing := sorted(name for name in index if name not in tensors):
        raise _validation.invalid(f"tensor {missing[0]}", None, f"in {index[missing[0]]}", DAMAGED)
    return tensors


def opened(path: pathlib.Path) -> Any:
    """The file, its header checked by safetensors."""
    import safetensors

    try:
        return safetensors.safe_open(path, "np")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path.name}: {error}. {DAMAGED}") from error


def write(folder: pathlib.Path, tensors: Iterator[tuple[str, np.ndarray]], max_shard_size: int) -> None:
    """Writes tensors in shards of at most so many bytes, or one tensor, each."""
    import safetensors.numpy

    shards: list[list[str]] = []
    sizes, held = [0], {}
    temporary = lambda number: folder / f"{number}.part"

    def flush():
        # vLLM and transformers read the format of the writer here
        safetensors.numpy.save_file(held, temporary(len(shards)), metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sizes[-1] + tensor.nbytes > max_shard_size:
            flush()
            sizes.append(0)
        held[name] = tensor
        sizes[-1] += tensor.nbytes
    flush()
    if len(shards) == 1:
        temporary(0).rename(folder / ONE)
        return
    index = {}
    for number, names in enumerate(shards):
        shard = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        temporary(number).rename(folder / shard)
        index |= dict.fromkeys(names, shard)
    write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": index})


def write_one(path: str | os.PathLike[str], tensors: dict[str, np.ndarray], about: dict[str, str]) -> None:
    """Writes tensors and their metadata in one file, which appears whole or not at all."""
    import safetensors.numpy

    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.numpy.save_file(tensors, partial, about)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def bits(array: np.ndarray) -> np.ndarray:
    """The bits of an array's numbers as unsigned integers, flat.

    >>> bits(np.float32([1.0, -0.0])).tolist()
    [1065353216, 2147483648]
    """
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def library(function: str) -> None:
    """Raises ImportError where safetensors is not installed."""
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError(f"{function} needs safetensors: pip install proxlm[models]")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file of JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(value, dict):
        raise _validation.invalid(path.name, _kind(value), "an object")
    return value


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _kind(value: Any) -> _validation.Verbatim:
    return _validation.Verbatim(f"a {type(value).__name__}")
