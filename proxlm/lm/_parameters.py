"""Names and shapes of the parameters that a config describes: one table for all who need it."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from proxlm import _validation
from proxlm.lm import _segments
from proxlm.lm._config import ModelConfig, Params


@functools.lru_cache
def block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Maps the path of each parameter of one layer to its shape.

    >>> block_shapes(ModelConfig(vocab_size=16, width=8, num_heads=2))["mlp/down/kernel"]
    (24, 8)
    """
    width, hidden, head = config.width, config.hidden_width, config.head_width
    heads, packed = config.num_heads, config.num_heads + 2 * config.num_kv_heads
    before, after = config.norm_place != "after", config.norm_place != "before"
    shapes: dict[str, tuple[int, ...]] = {}
    norm = lambda name: {f"{name}/{part}": (width,) for part in norm_parts(config)}
    if before:
        shapes |= norm("attention_norm")
    shapes |= _linear("attention/qkv", (width, packed, head), (packed, head), config.qkv_bias)
    shapes |= _linear("attention/out", (heads, head, width), (width,), config.out_bias)
    if config.qk_norm == "head":
        shapes |= {"attention/query_norm/scale": (head,), "attention/key_norm/scale": (head,)}
    if config.qk_norm == "whole":
        sizes = {"query": heads, "key": config.num_kv_heads}
        shapes |= {f"attention/{name}_norm/scale": (size, head) for name, size in sizes.items()}
    if after:
        shapes |= norm("attention_post_norm")
    if before:
        shapes |= norm("mlp_norm")
    if config.gated:
        shapes |= _linear("mlp/gate_up", (width, 2, hidden), (2, hidden), config.mlp_bias)
    else:
        shapes |= _linear("mlp/up", (width, hidden), (hidden,), config.mlp_bias)
    shapes |= _linear("mlp/down", (hidden, width), (width,), config.mlp_bias)
    if after:
        shapes |= norm("mlp_post_norm")
    return shapes


@functools.lru_cache
def outer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Maps the path of each parameter outside of the layers to its shape.

    >>> outer_shapes(ModelConfig(vocab_size=16, width=8, num_heads=2))
    {'embedding/kernel': (16, 8), 'norm/scale': (8,)}
    """
    width, table = config.width, (config.vocab_size, config.width)
    shapes: dict[str, tuple[int, ...]] = {"embedding/kernel": table}
    if config.positions == "learned":
        shapes["positions/kernel"] = (config.max_length, width)
    shapes |= {f"norm/{part}": (width,) for part in norm_parts(config)}
    if config.lm_head and not config.tie_embeddings:
        shapes["head/kernel"] = table
    if config.value_head:
        shapes |= {"value/kernel": (width,), "value/bias": ()}
    return shapes


@functools.lru_cache
def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Maps the path of each parameter to its shape, the layers stacked.

    >>> shapes(ModelConfig(vocab_size=16, width=8, num_layers=3))["blocks/mlp/down/kernel"]
    (3, 24, 8)
    """
    blocks = {f"blocks/{path}": (config.num_layers, *shape) for path, shape in block_shapes(config).items()}
    return outer_shapes(config) | blocks


def norm_parts(config: ModelConfig) -> tuple[str, ...]:
    """The parameters of a norm.

    >>> norm_parts(ModelConfig(vocab_size=16, norm="layer"))
    ('scale', 'bias')
    """
    return ("scale", "bias") if config.norm == "layer" else ("scale",)


def check(params: Params, config: ModelConfig, stacked: bool = True, factors: bool = False) -> None:
    """Raises ValueError where names or shapes of the parameters are not those of the config.

    A value head that the config does not have is let pass.

    Args:
      stacked: whether the blocks have to be stacked; they may be a list otherwise.
      factors: whether kernels may have factors of `lm.lora` beside them.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> check(lm.init(jax.random.key(0), config), config)
    """
    blocks = params["blocks"] if isinstance(params, Mapping) and "blocks" in params else None
    if blocks is None:
        remedy = "Those of an actor are params['policy'] and params['critic']."
        raise _validation.invalid("params", _kind(params), "the parameters of lm.init", remedy)
    depth = config.num_layers
    expected = dict(outer_shapes(config))
    if isinstance(blocks, list | tuple):
        if stacked:
            given = _validation.Verbatim("a list")
            raise _validation.invalid("params['blocks']", given, "stacked layers", "Use lm.stack.")
        if len(blocks) != depth:
            raise _fault("the number of blocks", len(blocks), depth)
        expected |= {f"blocks/{path}": shape for path, shape in block_shapes(config).items()}
        found = {f"blocks/{path}": np.shape(x) for path, x in leaves(blocks[0])}
    else:
        expected = dict(shapes(config))
        parts = [{path: np.shape(x) for path, x in leaves(part)} for part in _segments.parts_of(blocks)]
        lengths = {path: sum(sum(part.get(path, ())[:1]) for part in parts) for path in parts[0]}
        found = {f"blocks/{path}": (lengths[path], *shape[1:]) for path, shape in parts[0].items()}
    found |= {path: np.shape(x) for path, x in leaves({k: v for k, v in params.items() if k != "blocks"})}
    for path in [*expected, *found]:
        if path not in expected and (path.startswith("value/") or (factors and "/lora/" in path)):
            continue
        if "/lora/" in path:
            given = _validation.Verbatim("factors of lm.lora")
            raise _validation.invalid(f"params: {path}", given, "not there", "Merge them by lm.lora.merge.")
        if found.get(path) != expected.get(path):
            raise _fault(
                path, found.get(path, _validation.Verbatim("nothing")), expected.get(path, "not there")
            )


def _fault(path, found, expected):
    remedy = "Give the config that the parameters were made with."
    return _validation.invalid(f"params: {path}", found, f"{expected}, by the config", remedy)


def _linear(name, kernel, bias, has_bias):
    return {f"{name}/kernel": kernel} | ({f"{name}/bias": bias} if has_bias else {})


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """The paths of a tree with their leaves.

    >>> list(leaves({"norm": {"scale": 1.0}}))
    [('norm/scale', 1.0)]
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _kind(params):
    names = f" of {sorted(params)}" if isinstance(params, dict) else ""
    return _validation.Verbatim(f"a {type(params).__name__}{names}")
