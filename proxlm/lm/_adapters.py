"""Linear maps of a layer with low-rank factors beside their kernels.

A part is `{"kernel": ..., "bias": ..., "lora": {name: {"a", "b", "scale"}}}`, the last two where it has them:
a `[in, r]`, b `[r, out]` and scale `[]` for some of the maps that share the kernel; with DoRA also
magnitude `[out]`. The factors are applied and not added to the kernel, so that the gradient of a
frozen kernel, a product as large as the layer's own, is never computed. Loss and gradient, rank 8 in every
map, took 0.56 CPU s and 249 MB; 0.87 s and 278 MB with A·B added to the kernel in each layer, 0.89 s and
505 MB with it added before (8 layers of SmolLM2-135M's sizes, 256 tokens, mean of 3; 2 Xeon cores, other
work beside it).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from proxlm import sharding
from proxlm.lm import _layers, _segments
from proxlm.lm._config import ModelConfig, Params

LORA = "lora"
# The maps that share a kernel, in its order.
MAPS = {
    "attention/qkv": ("query", "key", "value"),
    "attention/out": ("out",),
    "mlp/gate_up": ("gate", "up"),
    "mlp/up": ("up",),
    "mlp/down": ("down",),
}


class Map(NamedTuple):
    """A linear map of the layers: where its kernel and its factors are.

    Attributes:
      kernel: the path of its kernel, which others may share.
      prefix: the path of its factors.
      input_axes: of the kernel, after that of the layers.
      places: those of the kernel's third axis that are this map's.
    """

    kernel: str
    prefix: str
    input_axes: int
    places: slice

    def flat(self, leaves: Params) -> jax.Array:
        """The kernel of this map alone, `[L, in, out]`."""
        kernel = leaves[self.kernel]
        inputs = math.prod(kernel.shape[1 : 1 + self.input_axes])
        return kernel[:, :, self.places].reshape(kernel.shape[0], inputs, -1)

    def factors(self, leaves: Params) -> dict[str, jax.Array]:
        """Its factors, stacked; empty where it has none."""
        found = {name: leaves.get(f"{self.prefix}/{name}") for name in ("a", "b", "scale", "magnitude")}
        return {name: leaf for name, leaf in found.items() if leaf is not None}


def maps_of(leaves: Params) -> dict[str, Map]:
    """The linear maps of stacked layers by their names, such as attention/query, from path ↦ array.

    >>> from proxlm import lm
    >>> params = lm.init(jax.random.key(0), lm.ModelConfig(vocab_size=16, width=8, num_kv_heads=2))
    >>> maps = maps_of(flat(params))
    >>> list(maps)
    ['attention/query', 'attention/key', 'attention/value', 'attention/out', 'mlp/gate', 'mlp/up', 'mlp/down']
    >>> maps["attention/key"].flat(flat(params)).shape
    (4, 8, 4)
    """
    found = {}
    for part, names in MAPS.items():
        if (path := f"blocks/{part}/kernel") not in leaves:
            continue
        places = [slice(None)]
        if part == "attention/qkv":
            heads, packed = leaves["blocks/attention/out/kernel"].shape[1], leaves[path].shape[2]
            ends = (0, heads, (heads + packed) // 2, packed)
            places = list(map(slice, ends, ends[1:]))
        elif part == "mlp/gate_up":
            places = [slice(0, 1), slice(1, 2)]
        for name, place in zip(names, places, strict=True):
            of_map = Map(path, f"blocks/{part}/{LORA}/{name}", 1 + (part == "attention/out"), place)
            found[f"{part.split('/')[0]}/{name}"] = of_map
    return found


def flat(params: Params) -> dict[str, Any]:
    """Path ↦ array of nested parameters.

    >>> flat({"norm": {"scale": 1.0}})
    {'norm/scale': 1.0}
    """
    return traverse_util.flatten_dict(dict(params), sep="/")


def linear(x: jax.Array, part: Params, name: str) -> jax.Array:
    """Applies x·W (+ s·(x·A)·B) (+ b): `[N, D]` -> `[N, F]`.

    >>> part = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    >>> linear(jnp.ones((1, 3)), part, "down").tolist()
    [[4.0, 4.0]]
    >>> factors = {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2)), "scale": jnp.array(0.5)}
    >>> linear(jnp.ones((1, 3)), part | {"lora": {"down": factors}}, "down").tolist()
    [[5.5, 5.5]]
    """
    if LORA not in part:
        return _layers.linear(x, part["kernel"], part.get("bias"))
    y = _adapted(x, _layers.linear(x, part["kernel"]), part["kernel"], part[LORA].get(name))
    return _with_bias(y, part.get("bias"))


def linear_parts(x: jax.Array, part: Params, names: Sequence[str], sizes: Sequence[int]) -> list[jax.Array]:
    """The maps that share a packed kernel `[D, P, ...]`; `sizes` as in `_layers.linear_parts`.

    >>> part = {"kernel": jnp.ones((3, 4, 5))}
    >>> [y.shape for y in linear_parts(jnp.ones((2, 3)), part, ("gate", "up"), (1, 3))]
    [(2, 5), (2, 15)]
    """
    if "kernel" not in part:
        return [linear(x, part[name], name) for name in names]
    kernel, bias = part["kernel"], part.get("bias")
    if LORA not in part:
        return _layers.linear_parts(x, kernel, sizes, bias)
    results = _layers.linear_parts(x, kernel, sizes)
    kernels, biases = split(kernel, 1, sizes), [None] * len(sizes) if bias is None else split(bias, 0, sizes)
    adapted = (
        _adapted(x, *given) for given in zip(results, kernels, map(part[LORA].get, names), strict=True)
    )
    return [_with_bias(y, b) for y, b in zip(adapted, biases, strict=True)]


def cast(params: Params, config: ModelConfig) -> Params:
    """The params with kernels narrowed to the compute dtype, to which each product would cast them.

    >>> params = {"head": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}}
    >>> jax.tree.map(lambda x: x.dtype.name, cast(params, ModelConfig(9, compute_dtype="bfloat16")))
    {'head': {'kernel': 'bfloat16'}, 'norm': {'scale': 'float32'}}
    """

    def of(part):
        if not isinstance(part, Mapping):
            return part
        # DoRA takes the norms of the kernel as it is
        has_norms = any("magnitude" in factors for factors in part.get(LORA, {}).values())
        dtype = jnp.dtype(config.compute_dtype)
        is_cast = lambda name: (
            name == "kernel" and not has_norms and part[name].dtype.itemsize > dtype.itemsize
        )
        return {name: leaf.astype(dtype) if is_cast(name) else of(leaf) for name, leaf in part.items()}

    is_part = lambda x: isinstance(x, Mapping)  # the layers may be a list of them, or segments
    each = functools.partial(jax.tree.map, of, is_leaf=is_part)
    return {name: part if name == "value" else each(part) for name, part in params.items()}


def for_decoding(params: Params, config: ModelConfig) -> Params:
    """The params `cast`, with query, key and value as maps of their own where a mesh cuts heads over `model`.

    Cut as they are packed, each part of a product's result would move between devices at every token.

    >>> for_decoding({"blocks": {"attention": {}}}, ModelConfig(vocab_size=16))
    {'blocks': {'attention': {}}}
    """
    params = cast(params, config)
    if jax.sharding.get_abstract_mesh().shape.get("model", 1) == 1:
        return params
    names, sizes = MAPS["attention/qkv"], (config.num_heads, *(config.num_kv_heads,) * 2)

    def cut(blocks, axis):
        own = _apart(blocks["attention"]["qkv"], names, sizes, axis)
        placed = sharding.whole({"blocks" if axis == 2 else "block": {"qkv": own}}, keep=("model", "fsdp"))
        return {**blocks, "attention": {**blocks["attention"], "qkv": next(iter(placed.values()))["qkv"]}}

    blocks = params["blocks"]
    if isinstance(blocks, list | tuple):
        return {**params, "blocks": [cut(block, 1) for block in blocks]}
    parts = tuple(cut(part, 2) for part in _segments.parts_of(blocks))
    return {**params, "blocks": parts[0] if len(parts) == 1 else _segments.Segments(parts)}


def merged(kernel: jax.Array, factors: Params) -> jax.Array:
    """The kernel that acts as kernel and factors do: W + s·A·B, or with DoRA m ⊙ (W + s·A·B)/‖W + s·A·B‖.

    >>> factors = {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2)), "scale": jnp.array(0.5)}
    >>> merged(jnp.ones((3, 2)), factors).tolist()
    [[1.5, 1.5], [1.5, 1.5], [1.5, 1.5]]
    """
    flat = kernel.reshape(factors["a"].shape[0], -1).astype(jnp.float32)
    wide = {name: leaf.astype(jnp.float32) for name, leaf in factors.items()}
    flat = flat + wide["scale"] * (wide["a"] @ wide["b"])
    if "magnitude" in factors:
        flat = flat * (wide["magnitude"] / column_norms(flat))[None]
    return flat.reshape(kernel.shape).astype(kernel.dtype)


def column_norms(kernel: jax.Array) -> jax.Array:
    """The norm of what each output is made of: `[in, out]` -> `[out]`.

    >>> column_norms(jnp.array([[3.0, 0.0], [4.0, 2.0]])).tolist()
    [5.0, 2.0]
    """
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))


def split(array: jax.Array, axis: int, sizes: Sequence[int]) -> list[jax.Array]:
    """Cuts an axis into parts of these sizes, the last as large as is left.

    >>> [part.shape for part in split(jnp.ones((2, 4)), 1, (1, 3))]
    [(2, 1), (2, 3)]
    """
    return jnp.split(array, [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)], axis=axis)


def _apart(part, names, sizes, axis):
    """The maps that share a packed kernel, its parts along an axis, each a part by its name."""
    own = {
        name: split(part[name], axis - (name == "bias"), sizes) for name in ("kernel", "bias") if name in part
    }
    factors = part.get(LORA, {})
    return {
        map_name: {name: parts[i] for name, parts in own.items()}
        | ({LORA: {map_name: factors[map_name]}} if map_name in factors else {})
        for i, map_name in enumerate(names)
    }


def _adapted(x, y, kernel, factors):
    """The result y of a kernel, with what its factors add."""
    if factors is None:
        return y
    a, b, scale = (factors[name].astype(x.dtype) for name in ("a", "b", "scale"))
    y = y + (x @ a) @ b * scale
    if "magnitude" in factors:  # the norm is a constant for the gradient, as in the paper
        plain = {name: leaf for name, leaf in factors.items() if name != "magnitude"}
        whole = merged(kernel.astype(jnp.float32).reshape(x.shape[1], -1), plain)
        gain = factors["magnitude"] / jax.lax.stop_gradient(column_norms(whole))
        y = y * gain.astype(x.dtype)[None]
    return y


def _with_bias(y, bias):
    return y if bias is None else y + bias.reshape(1, -1).astype(y.dtype)
