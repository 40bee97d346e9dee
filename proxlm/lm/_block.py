"""One layer of the transformer: projections, attention, MLP, and the norms around them.

The residual stream x is flat, `[B·T, D]`; `shape` is `(B, T)`.
"""

from collections.abc import Callable

import jax

from proxlm import sharding
from proxlm.lm import _adapters, _attention, _config, _layers, _rope
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._views import Turn, View


def run(block: Params, x: jax.Array, view: View, config: ModelConfig, shape: tuple[int, ...]) -> jax.Array:
    """A layer on the flat residual stream.

    >>> import jax.numpy as jnp
    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> view = View(jnp.ones((1, 1, 3, 3), bool), None)
    >>> jax.eval_shape(lambda: run(block, jnp.ones((3, 8)), view, config, (1, 3))).shape
    (3, 8)
    """
    block = sharding.whole(block)
    heads = project(block, x, config, shape, view.turn)
    attend = _attention.attend_by_cudnn if config.attention == "cudnn" else _attention.attend_causally
    return sharding.rows(finish(block, x, *heads, view.visible, config, attend))


def project(
    block: Params, x: jax.Array, config: ModelConfig, shape: tuple[int, ...], turn: Turn | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of a block, heads before positions; the first two rotated.

    They are `[B, H, T, d]` and twice `[B, H_kv, T, d]`; `turn` broadcasts to `[B, 1, T, r/2]`.

    >>> import jax.numpy as jnp
    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_kv_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> parts = jax.eval_shape(lambda: project(block, jnp.ones((10, 8)), config, (2, 5), None))
    >>> [part.shape for part in parts]
    [(2, 4, 5, 2), (2, 2, 5, 2), (2, 2, 5, 2)]
    """
    attention = block["attention"]
    x = norm(x, block["attention_norm"], config) if "attention_norm" in block else x
    names = _adapters.MAPS["attention/qkv"]
    sizes = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    with _config.products(config):
        query, key, value = _adapters.linear_parts(x, attention["qkv"], names, sizes)
    if config.qk_norm == "whole":
        flat = lambda part: attention[part]["scale"].reshape(-1)
        query = rms_norm(query, flat("query_norm"), config)
        key = rms_norm(key, flat("key_norm"), config)
    heads_first = lambda part: part.reshape(*shape, -1, config.head_width).transpose(0, 2, 1, 3)
    query, key, value = map(heads_first, (query, key, value))
    if config.qk_norm == "head":
        query = rms_norm(query, attention["query_norm"]["scale"], config)
        key = rms_norm(key, attention["key_norm"]["scale"], config)
    if turn is not None:
        query, key = _rope.rotate(query, *turn), _rope.rotate(key, *turn)
    return query, key, value


def finish(
    block: Params,
    x: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array | _attention.GroupMask,
    config: ModelConfig,
    attend: Callable[..., jax.Array] = _attention.attend,
) -> jax.Array:
    """Adds the attention's result and the MLP's to the residual stream.

    >>> import jax.numpy as jnp
    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> heads = [jnp.ones((1, 2, 3, 4))] * 3
    >>> visible = jnp.ones((1, 1, 3, 3), bool)
    >>> jax.eval_shape(lambda: finish(block, jnp.ones((3, 8)), *heads, visible, config)).shape
    (3, 8)
    """
    normed = lambda x, name: norm(x, block[name], config) if name in block else x
    with _config.products(config):
        mixed = attend(query, key, value, visible, config.query_scale, config.attention_cap)
        mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape[0], -1)
        attended = _adapters.linear(mixed, block["attention"]["out"], "out")
        if config.parallel:
            return x + attended + mlp(block["mlp"], normed(x, "mlp_norm"), config)
        x = x + normed(attended, "attention_post_norm")
        return x + normed(mlp(block["mlp"], normed(x, "mlp_norm"), config), "mlp_post_norm")


def mlp(part: Params, x: jax.Array, config: ModelConfig) -> jax.Array:
    """The MLP, (act(x·G) ⊙ x·U)·W where it is gated (Shazeer 2020) and act(x·U)·W where not.

    The gradient computes the activation anew, which is faster than to write and read what it consists of.

    Args:
      part: gate_up, its kernel `[D, 2, F]` with G and U side by side, one product in place of two;
        or up, `[D, F]`; and down, `[F, D]`.

    >>> import jax.numpy as jnp
    >>> kernels = {"gate_up": {"kernel": jnp.ones((3, 2, 4))}, "down": {"kernel": jnp.ones((4, 3))}}
    >>> mlp(kernels, jnp.ones((2, 3)), ModelConfig(vocab_size=16)).shape
    (2, 3)
    """
    act = _layers.ACTIVATIONS[config.activation]
    if config.gated:
        gate, up = _adapters.linear_parts(x, part["gate_up"], _adapters.MAPS["mlp/gate_up"], (1, 1))
        hidden = jax.checkpoint(lambda gate, up: act(gate) * up)(gate, up)
    else:
        hidden = jax.checkpoint(act)(_adapters.linear(x, part["up"], "up"))
    return _adapters.linear(hidden, part["down"], "down")


def norm(x: jax.Array, part: Params, config: ModelConfig) -> jax.Array:
    """The config's kind of normalisation over the last axis.

    >>> import jax.numpy as jnp
    >>> config = ModelConfig(vocab_size=16, norm="rms_plus_one", norm_epsilon=0.0)
    >>> norm(jnp.array([[3.0, -3.0]]), {"scale": jnp.zeros(2)}, config).tolist()
    [[1.0, -1.0]]
    """
    if config.norm == "layer":
        return _layers.layer_norm(x, part["scale"], part["bias"], config.norm_epsilon)
    return rms_norm(x, part["scale"], config)


def rms_norm(x: jax.Array, scale: jax.Array, config: ModelConfig) -> jax.Array:
    """The RMS norm of the config, its scale counted from 0 or from 1.

    >>> import jax.numpy as jnp
    >>> rms_norm(jnp.ones((1, 2)), jnp.ones(2), ModelConfig(vocab_size=16, norm_epsilon=0.0)).tolist()
    [[1.0, 1.0]]
    """
    scale = 1.0 + scale if config.norm == "rms_plus_one" else scale
    return _layers.rms_norm(x, scale, config.norm_epsilon)
