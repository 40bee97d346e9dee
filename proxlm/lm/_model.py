"""A decoder-only transformer: its parameters.

Linen declares them; the mathematics is pure functions of a plain dict, so that `jit`, `grad`,
`vmap` and masks by path need nothing of Flax. The layers are stacked: a leaf of `params["blocks"]`
is `[L, ...]`, and the axes of a kernel carry its structure,

    blocks/attention/qkv/kernel   [L, D, H + 2·H_kv, d]    heads: queries, keys, values
    blocks/attention/out/kernel   [L, H, d, D]
    blocks/mlp/gate_up/kernel     [L, D, 2, F]             hidden unit f: [:, :, f] ...
    blocks/mlp/down/kernel        [L, F, D]                ... and its row f here

so a group penalty over heads or hidden units is a choice of axes. An MLP without a gate has
blocks/mlp/up/kernel [L, D, F] in place of gate_up.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from proxlm import _validation
from proxlm.lm import _arguments, _forward, _parameters
from proxlm.lm._config import ModelConfig, Params


class Transformer(nn.Module):
    """The parameters of a transformer, for those who want a linen module.

    `Transformer(config).init(key, tokens)["params"]` is `init(key, config)`, and calling it is
    `lm.apply`.

    >>> config = ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> tokens = jnp.zeros((1, 4), int)
    >>> variables = jax.jit(Transformer(config).init)(jax.random.key(0), tokens)
    >>> jax.jit(Transformer(config).apply)(variables, tokens).shape
    (1, 4, 16)
    """

    config: ModelConfig

    @nn.compact
    def declare(self) -> dict[str, Any]:
        """Declares the parameters and returns them as a nested dict."""
        return {name: self.param(name, fn) for name, fn in _initializers(self.config).items()}

    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Returns logits, as `lm.apply` does."""
        return _forward.apply(self.declare(), tokens, self.config, positions=positions, mask=mask)


def init(key: jax.Array, config: ModelConfig) -> dict[str, Any]:
    """Draws the parameters: N(0, init_scale²), divided by √(2L) where a block writes its result.

    The scale of the residual stream is then independent of the depth L. Norms start as
    multiplications by one, biases and the value head at zero.

    Args:
      key: a typed key; consumed.

    Raises:
      ValueError: if the key is not a typed one or `config` not a ModelConfig.

    Source: Radford et al. 2019 for the depth scaling.

    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=16, num_layers=3, width=8))
    >>> params["blocks"]["mlp"]["down"]["kernel"].shape
    (3, 24, 8)
    """
    _arguments.typed_key(key, 1)
    if not isinstance(config, ModelConfig):
        raise _validation.invalid("config", config, "a ModelConfig", "Make one.", "init")
    return _init(key, config)


@functools.partial(jax.jit, static_argnames="config")
def _init(key, config):
    """One program, where each parameter by itself would be several."""
    return dict(Transformer(config).init(key, method="declare")["params"])


@_validation.typed
def num_params(config: ModelConfig) -> int:
    """The number of parameters.

    >>> num_params(ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2))
    984
    """
    sizes = lambda shapes: sum(math.prod(shape) for shape in shapes.values())
    blocks = config.num_layers * sizes(_parameters.block_shapes(config))
    return blocks + sizes(_parameters.outer_shapes(config))


@_validation.typed
def unstack(blocks: Params) -> list[dict[str, Any]]:
    """Stacked layers `[L, ...]` as a list of one dict per layer.

    >>> [part["w"].tolist() for part in unstack({"w": jnp.array([1, 2])})]
    [1, 2]
    """
    num_layers = jax.tree.leaves(blocks)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(num_layers)]


@_validation.typed
def stack(blocks: Sequence[Params]) -> dict[str, Any]:
    """The inverse of `unstack`.

    >>> stack([{"w": jnp.array(1)}, {"w": jnp.array(2)}])["w"].tolist()
    [1, 2]
    """
    if not blocks:
        raise _validation.invalid("blocks", blocks, "one tree a layer", "Give one at least.", "lm.stack")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _initializers(config):
    """One initialiser (key -> tree) for every top-level name."""
    table = lambda shape: lambda key: config.init_scale * _normal(key, shape)
    entries = {}
    for path, shape in _parameters.outer_shapes(config).items():
        name, part = path.split("/")
        is_table = part == "kernel" and name != "value"
        entries.setdefault(name, {})[part] = table(shape) if is_table else _constant(part, shape, config)
    initializers = {name: functools.partial(_draw, parts) for name, parts in entries.items()}
    blocks = {"blocks": functools.partial(_init_blocks, config=config)}
    # Linen gives each a key by its place, so the order is part of what a key draws.
    return {"embedding": initializers.pop("embedding")} | blocks | initializers


def _draw(parts, key):
    return {part: fn(key) for part, fn in parts.items()}


def _normal(key, shape):
    """Normal numbers; few of them drawn in one row, which compiles in half the time and gives the same."""
    size = math.prod(shape)
    # the shards of what is large are drawn where they lie
    draws = jax.random.normal(key, (size,) if size <= 2**24 else shape)
    # compiled or not, the scale is multiplied with the rounded number
    return jax.lax.optimization_barrier(draws).reshape(shape)


def _constant(part, shape, config):
    start = 1.0 if part == "scale" and config.norm != "rms_plus_one" else 0.0
    return lambda key: jnp.full(shape, start, float)


def _init_blocks(key, config):
    """All the layers, stacked."""
    depth, std = config.num_layers, config.init_scale
    keys = dict(zip(("qkv", "out", "in", "down"), jax.random.split(key, 4), strict=True))
    blocks: dict[str, Any] = {}
    for path, shape in _parameters.block_shapes(config).items():
        *parents, part = path.split("/")
        place = functools.reduce(lambda tree, name: tree.setdefault(name, {}), parents, blocks)
        if part == "kernel":
            name = parents[-1] if parents[-1] in keys else "in"
            scale = std / math.sqrt(2 * depth) if name in ("out", "down") else std
            place[part] = scale * _normal(keys[name], (depth, *shape))
        else:
            place[part] = _constant(part, (depth, *shape), config)(key)
    return blocks
