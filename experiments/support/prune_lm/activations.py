"""Second moments of what the layers of a model write from: MLP neurons and the results of heads."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support import Refusal
from proxlm import lm


class Grams(NamedTuple):
    """Sums of a·aᵀ over tokens, for each layer.

    Attributes:
      neurons: of the values that MLP neurons give to `down`, `[L, F, F]`.
      heads: of what heads give to `out`, `[L, H·d, H·d]`.
    """

    neurons: jax.Array
    heads: jax.Array


def grams(params: Any, windows: np.ndarray, config: lm.ModelConfig, batch: int) -> Grams:
    """Sums over the tokens of windows `[N, T]`, `batch` of them at a time.

    Raises:
      Refusal: the model has parts beside those of Llama's layers.
    """
    sizes = config.hidden_width, config.num_heads * config.head_width
    found = Grams(*(jnp.zeros((config.num_layers, size, size)) for size in sizes))
    for start in range(0, len(windows), batch):
        found, error = _add(found, params, jnp.asarray(windows[start : start + batch]), config)
        if not error < 1e-3:
            raise Refusal("model: its layers have parts beside those of Llama's; take another model")
    return found


@functools.partial(jax.jit, static_argnames="config", donate_argnums=0)
def _add(grams, params, tokens, config):
    """Adds a batch; and by which share of their changes the layers differ from those of the model."""
    seen = lm.inspect(params, tokens, config)

    def add(_, layer):
        gram, block, weights, before, after = layer
        neurons, heads, result = _inside(block, weights, before, config)
        error = jnp.max(jnp.abs(result - after)) / jnp.max(jnp.abs(after - before))
        return None, (Grams(gram.neurons + neurons.T @ neurons, gram.heads + heads.T @ heads), error)

    layers = grams, params["blocks"], seen.attention, seen.residual[:-1], seen.residual[1:]
    _, (grams, errors) = jax.lax.scan(add, None, layers)
    return grams, jnp.max(errors)


def _inside(block, weights, x, config):
    """Results of neurons and of heads, a row a token, and the residual stream after the layer."""
    attention, mlp = block["attention"], block["mlp"]
    normed = lambda x, name: x * block[name]["scale"][None, None] * _inverse_rms(x, config.norm_epsilon)
    first = config.num_heads + config.num_kv_heads  # of the values
    value = jnp.einsum("btd,dgk->bgtk", normed(x, "attention_norm"), attention["qkv"]["kernel"][:, first:])
    value = jnp.repeat(value, config.num_heads // config.num_kv_heads, axis=1)
    heads = jnp.einsum("bhts,bhsk->bthk", weights, value)
    x = x + jnp.einsum("bthk,hkd->btd", heads, attention["out"]["kernel"])
    gate, up = jnp.moveaxis(
        jnp.einsum("btd,dpf->btpf", normed(x, "mlp_norm"), mlp["gate_up"]["kernel"]), 2, 0
    )
    neurons = jax.nn.silu(gate) * up
    rows = lambda x: x.reshape(x.shape[0] * x.shape[1], -1)
    return rows(neurons), rows(heads), x + neurons @ mlp["down"]["kernel"]


def _inverse_rms(x, epsilon):
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
