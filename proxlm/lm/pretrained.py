"""Weights of the Llama architecture into parameters, and back.

The tensors come as a dict of arrays under their usual names, wherever they were read from: those
of a GGUF file, or those that transformers gives the same tensors in a safetensors file. The two
differ in more than names. RoPE turns pairs of entries of a head; here, as in transformers, they
are (i, i + d/2), and in GGUF (2i, 2i + 1). Each has the rows of the query and key kernels in its
own order, so what is read is reordered once, and the forward pass knows one order only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from proxlm import _validation
from proxlm.lm._config import ModelConfig, Params

__all__ = ["from_tensors", "to_tensors"]

PARTS = ("attention_norm", "query", "key", "value", "out", "mlp_norm", "gate", "up", "down")


class _Names(NamedTuple):
    """Names of the tensors in a family of files, and whether RoPE's pairs are neighbours there."""

    embedding: str
    norm: str
    head: str
    block: str  # with the layer's number, before each of:
    parts: Sequence[str]  # in the order of PARTS
    interleaved: bool


NAMES = {
    "gguf": _Names(
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
        "blk.{}.{}.weight",
        "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down".split(),
        interleaved=True,
    ),
    "transformers": _Names(
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.{}.{}.weight",
        (
            "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
            "post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.down_proj"
        ).split(),
        interleaved=False,
    ),
}


def from_tensors(tensors: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Parameters of a model from the tensors of a Llama.

    A matrix W is stored as it multiplies, y = W·x with W `[out, in]`; a kernel here is its
    transpose, its outputs cut into heads. Queries, keys and values are packed, and so are the
    gate and the up projection.

    Args:
      tensors: name ↦ array of any float dtype, complete; the names are those of GGUF
        (`blk.0.attn_q.weight`) or of transformers (`model.layers.0.self_attn.q_proj.weight`).

    Raises:
      ValueError: a tensor is missing, of another shape or not known, the names are of neither
        family, or the config is not that of a Llama.

    Source: Touvron et al. 2023 for the architecture; the order of a GGUF file's rows is that of
    llama.cpp's converter.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> again = from_tensors(to_tensors(params, config), config)
    >>> bool((again["embedding"]["kernel"] == params["embedding"]["kernel"]).all())
    True
    """
    _check_model(config)
    names = _names_of(tensors)
    if config.tie_embeddings and names.head in tensors:
        tensors = _without_equal_head(tensors, names)
    _check_tensors({name: np.shape(x) for name, x in tensors.items()}, _shapes(config, names))
    read = lambda name: np.asarray(tensors[name], np.float32)
    # One layer at a time into the stacked arrays, so that no second copy of the model is made.
    stacked = {}
    for i, own in enumerate(_block_names(config, names)):
        block = _block(dict(zip(PARTS, map(read, own), strict=True)), config, names.interleaved)
        if not stacked:
            stacked = jax.tree.map(lambda x: np.empty((config.num_layers, *x.shape), x.dtype), block)
        for buffer, layer in zip(jax.tree.leaves(stacked), jax.tree.leaves(block), strict=True):
            buffer[i] = layer
    params = {"blocks": stacked, "norm": {"scale": read(names.norm)}}
    params |= {"embedding": {"kernel": read(names.embedding)}}
    if not config.tie_embeddings:
        params["head"] = {"kernel": read(names.head)}
    leaves, structure = jax.tree.flatten(params)
    del params, stacked
    # each leaf is dropped as soon as JAX has its copy
    put = lambda: jax.device_put(leaves.pop(0)).block_until_ready()
    return jax.tree.unflatten(structure, [put() for _ in range(len(leaves))])


def to_tensors(params: Params, config: ModelConfig, names: str = "gguf") -> dict[str, np.ndarray]:
    """The tensors of a Llama from the parameters of a model: what `from_tensors` reads back.

    Args:
      names: "gguf" or "transformers".

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> tensors = to_tensors(lm.init(jax.random.key(0), config), config, "transformers")
    >>> tensors["model.layers.0.mlp.down_proj.weight"].shape
    (8, 24)
    """
    _check_model(config)
    _validation.one_of(tuple(NAMES), "to_tensors", names=names)
    family = NAMES[names]
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    tensors = {family.embedding: params["embedding"]["kernel"], family.norm: params["norm"]["scale"]}
    if not config.tie_embeddings:
        tensors[family.head] = params["head"]["kernel"]
    for i, own in enumerate(_block_names(config, family)):
        block = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        parts = _parts(block, config, family.interleaved)
        tensors |= {name: parts[part] for name, part in zip(own, PARTS, strict=True)}
    # safetensors writes the memory of an array as it lies there
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _block(parts, config, interleaved):
    """One layer's parameters from its tensors."""
    heads = lambda x: x.T.reshape(config.width, -1, config.head_width)
    query, key, value = (heads(parts[name]) for name in ("query", "key", "value"))
    if interleaved:
        query, key = map(_halves, (query, key))
    out = parts["out"].T.reshape(config.num_heads, config.head_width, config.width)
    return {
        "attention": {"qkv": {"kernel": np.concatenate([query, key, value], axis=1)}, "out": {"kernel": out}},
        "mlp": {
            "gate_up": {"kernel": np.stack([parts["gate"].T, parts["up"].T], axis=1)},
            "down": {"kernel": parts["down"].T},
        },
        "attention_norm": {"scale": parts["attention_norm"]},
        "mlp_norm": {"scale": parts["mlp_norm"]},
    }


def _parts(block, config, interleaved):
    """The inverse of `_block`."""
    ends = (config.num_heads, config.num_heads + config.num_kv_heads)
    query, key, value = np.split(block["attention"]["qkv"]["kernel"], ends, axis=1)
    if interleaved:
        query, key = map(_neighbours, (query, key))
    rows = lambda x: x.reshape(config.width, -1).T
    return {
        "attention_norm": block["attention_norm"]["scale"],
        "query": rows(query),
        "key": rows(key),
        "value": rows(value),
        "out": block["attention"]["out"]["kernel"].reshape(-1, config.width).T,
        "mlp_norm": block["mlp_norm"]["scale"],
        "gate": block["mlp"]["gate_up"]["kernel"][:, 0].T,
        "up": block["mlp"]["gate_up"]["kernel"][:, 1].T,
        "down": block["mlp"]["down"]["kernel"].T,
    }


def _halves(x):
    """Moves RoPE's pairs from (2i, 2i + 1) to (i, i + d/2) along the last axis."""
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)


def _neighbours(x):
    """The inverse of `_halves`."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def _names_of(tensors):
    """The family of names that the tensors have."""
    for names in NAMES.values():
        if names.embedding in tensors:
            return names
    expected = " or ".join(repr(names.embedding) for names in NAMES.values())
    raise ValueError(
        f"tensors has no {expected}, and starts with {sorted(tensors)[:3]}: expected the names of "
        "a Llama in GGUF or in transformers"
    )


def _block_names(config, names):
    """For every layer the names of its tensors, in the order of PARTS."""
    layers = range(config.num_layers)
    return [[names.block.format(i, part) for part in names.parts] for i in layers]


def _shapes(config, names):
    """Maps name to shape of every tensor that the model has."""
    width, hidden = config.width, config.hidden_width
    query, key = (n * config.head_width for n in (config.num_heads, config.num_kv_heads))
    attention = [(width,), (query, width), (key, width), (key, width), (width, query)]
    parts = [*attention, (width,), (hidden, width), (hidden, width), (width, hidden)]
    shapes = {names.embedding: (config.vocab_size, width), names.norm: (width,)}
    if not config.tie_embeddings:
        shapes[names.head] = (config.vocab_size, width)
    for own in _block_names(config, names):
        shapes |= dict(zip(own, parts, strict=True))
    return shapes


def _check_model(config):
    names = ("num_layers", "width", "num_heads", "num_kv_heads", "head_width", "hidden_width", "max_length")
    names += ("rope_theta", "norm_epsilon", "tie_embeddings", "init_scale", "compute_dtype")
    names += ("matmul_precision", "remat", "unroll")
    llama = ModelConfig(config.vocab_size, **{name: getattr(config, name) for name in names})
    for name, expected in vars(llama).items():
        if (given := getattr(config, name)) != expected:
            remedy = "The files are of a Llama; add a value head to its params afterwards."
            raise _validation.invalid(f"config.{name}", given, repr(expected), remedy)


def _without_equal_head(tensors, names):
    """Drops the head of a tied model, which some files hold a second time, where it is the embedding."""
    if not np.array_equal(tensors[names.head], tensors[names.embedding]):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name != names.head}


def _check_tensors(given, expected):
    """Names every tensor that is missing, not known, or of another shape."""
    faults = [f"{name} is missing" for name in expected if name not in given]
    faults += [f"{name} is not known" for name in given if name not in expected]
    both = [(name, given[name], shape) for name, shape in expected.items() if name in given]
    faults += [f"{name} has shape {found}, expected {shape}" for name, found, shape in both if found != shape]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError(
            f"tensors: {'; '.join(faults[:4])}{more}. Give a config with the sizes of the file, "
            "tie_embeddings and num_layers included"
        )
