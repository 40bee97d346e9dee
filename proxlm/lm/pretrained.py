"""Tensors in the layout of other libraries into parameters, and back.

The tensors come as a dict of arrays under the names of their files, wherever they were read from. Files
differ in more than names: whether a matrix is stored transposed, what is packed into one tensor, and the
order of rows. RoPE turns pairs of entries of a head; here, as in transformers, they are (i, i + d/2), and
in the GGUF file of a Llama (2i, 2i + 1). What is read is reordered once, and the forward pass knows one
order only.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.lm import _architectures, _config_fields, _filling, _parameters
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._layouts import Layout
from proxlm.lm._segments import Segments

__all__ = ["from_tensors", "to_tensors"]

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
DTYPES = ("float32", "bfloat16", "float16")


class _Slot(NamedTuple):
    """A tensor of a file, and the entries of a parameter that it holds."""

    name: str
    path: str  # of the parameter, all layers stacked
    index: tuple[int | slice, ...]  # of its entries there
    here: tuple[int, ...]  # shape of these entries
    shape: tuple[int, ...]  # in the file
    transposed: bool
    rows: tuple[int, int, int] | None  # axes of the rows here, of which two are swapped in the file ...
    axis: int  # ... the first of these
    offset: float

    def read(self, tensor: Any, dtype: np.dtype) -> np.ndarray:
        """The entries of the parameter, in a narrower dtype as they are read, and not in a wider one."""
        own = getattr(tensor, "dtype", np.dtype("float32"))  # of GGUF
        x = np.asarray(tensor, own if self.offset or own.itemsize < dtype.itemsize else dtype)
        if self.rows is not None:
            swapped = np.swapaxes(np.empty(self.rows, bool), self.axis, self.axis + 1).shape
            x = x.reshape(*swapped, *x.shape[1:]).swapaxes(self.axis, self.axis + 1).reshape(x.shape)
        x = x - np.asarray(self.offset, x.dtype) if self.offset else x
        return (x.T if self.transposed else x).reshape(self.here)

    def write(self, entries: np.ndarray) -> np.ndarray:
        """The tensor; the inverse of `read`."""
        x = entries.reshape(self.shape[::-1]).T if self.transposed else entries.reshape(self.shape)
        x = x + np.asarray(self.offset, x.dtype) if self.offset else x
        if self.rows is not None:
            x = x.reshape(*self.rows, *x.shape[1:]).swapaxes(self.axis, self.axis + 1).reshape(x.shape)
        return x


def from_tensors(
    tensors: Mapping[str, Any],
    config: ModelConfig,
    names: str | None = None,
    *,
    param_dtype: str = "float32",
    sharding: Sharding | None = None,
) -> dict[str, Any]:
    """Parameters of a model from the tensors of a file.

    Read one parameter after the other, so that memory holds no second copy of the model.

    Args:
      tensors: name ↦ array of any float dtype, complete; or what NumPy makes one of when asked.
      names: the family of names: a `model_type` of transformers, such as "llama" or "gpt_neox", or
        "gguf:" and an architecture of GGUF, "gguf:llama"; None: of transformers, as the config asks.
      param_dtype: of the parameters: "float32", "bfloat16" or "float16".
      sharding: (path, shape) ↦ where the parameter goes, a `jax.sharding.Sharding` or None; the path
        is that of `init`'s tree, "blocks/mlp/down/kernel".

    Raises:
      ValueError: if a tensor is missing, of another shape or not known, or the config does not belong
        to an architecture with these names.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> again = from_tensors(to_tensors(params, config), config)
    >>> bool((again["embedding"]["kernel"] == params["embedding"]["kernel"]).all())
    True
    """
    return read(tensors, config, layout_of(names, config), param_dtype, sharding)


def to_tensors(params: Params, config: ModelConfig, names: str | None = None) -> dict[str, np.ndarray]:
    """The tensors that a file of the model holds: what `from_tensors` reads back.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> tensors = to_tensors(lm.init(jax.random.key(0), config), config)
    >>> tensors["model.layers.0.mlp.down_proj.weight"].shape
    (8, 24)
    """
    _parameters.check(params, config)
    # safetensors writes the memory of an array as it lies there
    return {name: np.ascontiguousarray(x) for name, x in write(params, config, layout_of(names, config))}


def write(params: Params, config: ModelConfig, layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file in a layout, one after the other."""
    if isinstance(params["blocks"], Segments):
        given = _validation.Verbatim("a trained part joined with the rest")
        raise _validation.invalid("params", given, "stacked layers", "Use lm.trainable.merge.")
    leaves = {path: np.asarray(leaf) for path, leaf in _parameters.leaves(params)}
    return ((slot.name, slot.write(leaves[slot.path][slot.index])) for slot in slots(config, layout))


def read(
    tensors: Mapping[str, Any], config: ModelConfig, layout: Layout, dtype: str, sharding: Sharding | None
) -> dict[str, Any]:
    """Parameters from the tensors of a file in a layout, all of them checked before any is read."""
    _validation.one_of(DTYPES, param_dtype=dtype)
    wanted = list(slots(config, layout))
    tensors = _in_use(tensors, config, layout)
    _check_tensors({name: np.shape(x) for name, x in tensors.items()}, {x.name: x.shape for x in wanted})
    params: dict[str, Any] = {}
    shapes, kind = _parameters.shapes(config), jnp.dtype(dtype)
    # What has the largest tensor first: then it takes less beside its result than what is still to come.
    largest = lambda path: max(math.prod(slot.here) for slot in wanted if slot.path == path)
    for path in sorted(shapes, key=largest, reverse=True):
        place = params
        *parents, part = path.split("/")
        for name in parents:
            place = place.setdefault(name, {})
        where = sharding(path, shapes[path]) if sharding else None
        pieces = (
            (
                _filling.bounds(slot.index, shapes[path]),
                functools.partial(slot.read, tensors[slot.name], kind),
            )
            for slot in wanted
            if slot.path == path
        )
        place[part] = _filling.filled(pieces, shapes[path], kind, where)
        jax.block_until_ready(place[part])
    return params


def slots(config: ModelConfig, layout: Layout) -> Iterator[_Slot]:
    """The tensors of a file, each with its place in the parameters."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    places: dict[str, tuple[str, int, int]] = {
        "query": ("attention/qkv", 0, heads),
        "key": ("attention/qkv", heads, heads + kv_heads),
        "value": ("attention/qkv", heads + kv_heads, heads + 2 * kv_heads),
        "gate": ("mlp/gate_up", 0, 1),
    }
    if config.gated:
        places["up"] = ("mlp/gate_up", 1, 2)
    whole = {"qkv": "attention/qkv", "gate_up": "mlp/gate_up", "up": "mlp/up", "down": "mlp/down"}
    whole |= {name: f"attention/{name}" for name in ("out", "query_norm", "key_norm")}
    covered = set()
    for part, module in layout.modules.items():
        base, first, last = places.get(part, (whole.get(part, part), 0, 0))
        depth = config.num_layers if "{}" in module else None
        prefix = "" if depth is None else "blocks/"
        for path, shape in _parameters.shapes(config).items():
            if path.rpartition("/")[0] == prefix + base:
                covered.add(path)
                is_kernel = path.endswith("/kernel")
                cut = (slice(None),) * is_kernel + (slice(first, last),) if last else ()
                for i in range(depth or 1):
                    index = cut if depth is None else (i, *cut)
                    suffix = "bias" if path.endswith("/bias") else "weight"
                    name = f"{module.format(i)}.{suffix}"
                    yield _slot(name, path, shape[depth is not None :], index, part, config, layout)
    if left := sorted(set(_parameters.shapes(config)) - covered):
        remedy = "Drop a value head first, and add it again afterwards."
        raise _validation.invalid("params", left[0], "a parameter of the architecture", remedy)


def _slot(name, path, shape, index, part, config, layout):
    cut = next((x for x in index if isinstance(x, slice) and x.stop), None)
    here = list(shape)
    if cut is not None:
        here[1 if path.endswith("/kernel") else 0] = cut.stop - cut.start
    is_table = path.split("/")[0] in ("embedding", "positions", "head")
    is_matrix = path.endswith("/kernel") and not is_table
    inputs = math.prod(here[: 2 if part == "out" else 1]) if is_matrix else 1
    outputs = math.prod(here) // inputs
    flat = (inputs, outputs) if is_matrix else tuple(here) if is_table else (outputs,)
    transposed = is_matrix and layout.transposed
    rows, axis = None, 0
    if layout.row_order == "by_head" and part == "qkv":
        rows = (3, config.num_heads, config.head_width)
    if layout.row_order == "neighbours" and part in ("query", "key"):
        rows, axis = (outputs // config.head_width, 2, config.head_width // 2), 1
    offset = layout.scale_offset if path.endswith("/scale") else 0.0
    return _Slot(
        name, path, index, tuple(here), flat[::-1] if transposed else flat, transposed, rows, axis, offset
    )


def layout_of(names: str | None, config: ModelConfig) -> Layout:
    """The layout of that name; None: of the first architecture of transformers with the switches."""
    names = names or str(_config_fields.to_fields(config)["model_type"])
    known = {name: own.layout for name, own in _architectures.ARCHITECTURES.items()}
    known |= {f"gguf:{name}": layout for name, (_, layout) in _architectures.GGUF.items()}
    _validation.one_of(tuple(known), "pretrained", names=names)
    return known[names]


def _in_use(tensors: Mapping[str, Any], config: ModelConfig, layout: Layout) -> Mapping[str, Any]:
    """The tensors without a head that is the embedding a second time."""
    embedding, head = (f"{layout.modules[name]}.weight" for name in ("embedding", "head"))
    if config.tie_embeddings and head in tensors and embedding in tensors:
        if np.array_equal(np.asarray(tensors[head]), np.asarray(tensors[embedding])):
            return {name: tensor for name, tensor in tensors.items() if name != head}
    return tensors


def _check_tensors(given, expected):
    """Names every tensor that is missing, not known, or of another shape."""
    faults = [f"{name} is missing" for name in expected if name not in given]
    faults += [f"{name} is not known" for name in given if name not in expected]
    both = [(name, given[name], shape) for name, shape in expected.items() if name in given]
    faults += [f"{name} has shape {found}, expected {shape}" for name, found, shape in both if found != shape]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        remedy = "The file and the config are of different models."
        raise ValueError(f"tensors: {'; '.join(faults[:4])}{more}. {remedy}")
