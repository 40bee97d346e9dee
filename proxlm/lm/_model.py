"""A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, SwiGLU.

Linen declares the parameters; the mathematics is pure functions of a plain dict, so that
`jit`, `grad`, `vmap` and masks by path need nothing of Flax.  The layers are stacked: a leaf of
`params["blocks"]` is `[L, ...]`, and the axes of a kernel carry its structure,

    blocks/attention/qkv/kernel   [L, D, H + 2·H_kv, d]    heads: queries, keys, values
    blocks/attention/out/kernel   [L, H, d, D]
    blocks/mlp/gate_up/kernel     [L, D, 2, F]             hidden unit f: [:, :, f] ...
    blocks/mlp/down/kernel        [L, F, D]                ... and its row f here

so a group penalty over heads or hidden units is a choice of axes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from proxlm.lm import _forward
from proxlm.lm._config import ModelConfig


class Transformer(nn.Module):
    """The parameters of a transformer, for those who want a linen module.

    `Transformer(config).init(key, tokens)["params"]` is `init(key, config)`, and calling it is
    `apply`.

    >>> config = ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> tokens = jnp.zeros((1, 4), int)
    >>> variables = Transformer(config).init(jax.random.key(0), tokens)
    >>> Transformer(config).apply(variables, tokens).shape
    (1, 4, 16)
    """

    config: ModelConfig

    @nn.compact
    def declare(self):
        """Declares the parameters and returns them as a nested dict."""
        return {name: self.param(name, fn) for name, fn in _initializers(self.config).items()}

    def __call__(self, tokens, positions=None, mask=None):
        """As `apply`."""
        return _forward.apply(self.declare(), tokens, self.config, positions=positions, mask=mask)


def init(key, config):
    """Draws the parameters: N(0, init_scale²), divided by √(2L) where a block writes its result.

    The scale of the residual stream is then independent of the depth L.  Norms start at one,
    biases and the value head at zero.

    Args:
      key: a typed key; consumed.
      config: a `ModelConfig`.

    Returns:
      A nested dict of float32 arrays.  Source: Radford et al. 2019 for the depth scaling.

    >>> params = init(jax.random.key(0), ModelConfig(vocab_size=16, num_layers=3, width=8))
    >>> params["blocks"]["mlp"]["down"]["kernel"].shape
    (3, 24, 8)
    """
    return Transformer(config).init(key, method="declare")["params"]


def num_params(config):
    """Number of parameters, without making them.

    >>> num_params(ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2))
    984
    """
    shapes = jax.eval_shape(functools.partial(init, config=config), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def unstack(blocks):
    """Stacked layers `[L, ...]` as a list of one dict per layer.

    >>> [part["w"].tolist() for part in unstack({"w": jnp.array([1, 2])})]
    [1, 2]
    """
    num_layers = jax.tree.leaves(blocks)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(num_layers)]


def stack(blocks):
    """The inverse of `unstack`.

    >>> stack([{"w": jnp.array(1)}, {"w": jnp.array(2)}])["w"].tolist()
    [1, 2]
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _initializers(config):
    """One initialiser (key -> tree) for every top-level name."""
    width, std = config.width, config.init_scale
    table = lambda key: {"kernel": std * jax.random.normal(key, (config.vocab_size, width))}
    entries = {
        "embedding": table,
        "blocks": functools.partial(_init_blocks, config=config),
        "norm": lambda key: {"scale": jnp.ones(width)},
    }
    if config.lm_head and not config.tie_embeddings:
        entries["head"] = table
    if config.value_head:
        entries["value"] = lambda key: {"kernel": jnp.zeros(width), "bias": jnp.zeros(())}
    return entries


def _init_blocks(key, config):
    """All the layers, stacked."""
    depth, width, hidden = config.num_layers, config.width, config.hidden_width
    heads, packed = config.num_heads, config.num_heads + 2 * config.num_kv_heads
    key_qkv, key_out, key_gate_up, key_down = jax.random.split(key, 4)
    std, residual_std = config.init_scale, config.init_scale / math.sqrt(2 * depth)
    normal = lambda key, scale, *shape: {"kernel": scale * jax.random.normal(key, (depth, *shape))}
    ones = lambda size: {"scale": jnp.ones((depth, size))}
    attention = {
        "qkv": normal(key_qkv, std, width, packed, config.head_width),
        "out": normal(key_out, residual_std, heads, config.head_width, width),
    }
    if config.attention_bias:
        attention["qkv"]["bias"] = jnp.zeros((depth, packed, config.head_width))
    if config.qk_norm:
        attention |= {"query_norm": ones(config.head_width), "key_norm": ones(config.head_width)}
    mlp = {
        "gate_up": normal(key_gate_up, std, width, 2, hidden),
        "down": normal(key_down, residual_std, hidden, width),
    }
    norms = {"attention_norm": ones(width), "mlp_norm": ones(width)}
    return {"attention": attention, "mlp": mlp, **norms}
