"""Cutting out what a penalty has set to zero: the same function with smaller arrays.

A hidden unit or head that adds nothing to the residual stream can go, exactly. Sizes then depend
on values, so this is done on the host, between one `jit` and the next.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.lm import _parameters
from proxlm.lm._config import ModelConfig, Params


class LiveUnits(NamedTuple):
    """The units and heads that can change the result, layer by layer: NumPy booleans.

    Attributes:
      hidden: `[L, F]`, the units of the MLP.
      heads: `[L, H]`, the query heads; those of key-value head g are g·H/H_kv and the next ones.
    """

    hidden: np.ndarray
    heads: np.ndarray


def live_units(params: Params, config: ModelConfig) -> LiveUnits:
    """Finds the hidden units and query heads that can change the result.

    A unit f adds act(x·G_f) (x·U_f) W_f, which is 0 for every x where G_f, U_f or W_f is zero, the
    biases of G_f and U_f included; a head adds nothing where its part of `out` or all of its
    values, bias included, are zero. Zero queries or keys are no reason: such a head takes the mean.
    Where queries are normalised as a whole, every head changes the norm and counts as live.
    ValueError for params that are traced, or not of the config's shapes.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> params["blocks"]["mlp"]["down"]["kernel"] *= jnp.ones((2, 24, 1)).at[0, :20].set(0.0)
    >>> live_units(params, config).hidden.sum(axis=1).tolist()
    [4, 24]
    """
    blocks = _blocks(params, config)
    nonzero = lambda kernel, axes: np.any(np.asarray(kernel) != 0, axis=axes)
    mlp, first_layer = blocks["mlp"], "gate_up" if config.gated else "up"
    inputs = nonzero(mlp[first_layer]["kernel"], 1)
    if config.mlp_bias:
        inputs |= nonzero(mlp[first_layer]["bias"], ())
    hidden = np.all(inputs.reshape(config.num_layers, -1, config.hidden_width), axis=1)  # gate and up
    hidden &= nonzero(mlp["down"]["kernel"], 2)
    attention = blocks["attention"]
    first = config.num_heads + config.num_kv_heads  # of the values
    values = nonzero(attention["qkv"]["kernel"][:, :, first:], (1, 3))
    if "bias" in attention["qkv"]:
        values |= nonzero(attention["qkv"]["bias"][:, first:], 2)
    served = config.num_heads // config.num_kv_heads
    heads = nonzero(attention["out"]["kernel"], (2, 3)) & np.repeat(values, served, axis=1)
    if config.qk_norm == "whole":
        heads = np.ones_like(heads)
    return LiveUnits(hidden, heads)


def shrink(params: Params, config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Removes hidden units and heads without effect: `(params, config)`, of the same function.

    Layers stay stacked, so that all of the library takes the smaller model as it takes any other,
    and so their sizes stay equal: those of the layer that needs most. A layer that needs less
    keeps dead units and heads up to there. With grouped queries a key-value head goes when all the
    heads it serves are dead, and all groups keep as many heads as the fullest. One unit and one
    head stay in any case. What stays keeps its order and its bits.

    The state of an optimizer does not fit any more: start it anew. Errors are those of `live_units`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> params["blocks"]["mlp"]["down"]["kernel"] *= jnp.zeros((2, 24, 1)).at[:, 20:].set(1.0)
    >>> smaller, small = shrink(params, config)
    >>> small.hidden_width, smaller["blocks"]["mlp"]["down"]["kernel"].shape
    (4, (2, 4, 8))
    """
    live = live_units(params, config)
    units = _first(live.hidden)
    queries, groups = _heads(live.heads, config)
    small = dataclasses.replace(
        config, hidden_width=units.shape[1], num_heads=queries.shape[1], num_kv_heads=groups.shape[1]
    )
    heads, kv_heads = config.num_heads, config.num_kv_heads
    packed = np.concatenate([queries, heads + groups, heads + kv_heads + groups], axis=1)
    blocks = dict(params["blocks"])
    attention, mlp = dict(blocks["attention"]), dict(blocks["mlp"])
    axes = {"kernel": 2, "bias": 1}
    attention["qkv"] = {k: _take(x, packed, axes[k]) for k, x in attention["qkv"].items()}
    attention["out"] = attention["out"] | {"kernel": _take(attention["out"]["kernel"], queries, 1)}
    first_layer = "gate_up" if config.gated else "up"
    mlp[first_layer] = {k: _take(x, units, x.ndim - 1) for k, x in mlp[first_layer].items()}
    mlp["down"] = mlp["down"] | {"kernel": _take(mlp["down"]["kernel"], units, 1)}
    return {**params, "blocks": blocks | {"attention": attention, "mlp": mlp}}, small


def _heads(live, config):
    """Query heads and key-value heads to keep, `[L, ...]` each, the queries ordered by group."""
    depth, kv_heads = live.shape[0], config.num_kv_heads
    live = live.reshape(depth, kv_heads, -1)
    groups = _first(np.any(live, axis=2))
    within = np.take_along_axis(live, groups[:, :, None], axis=1)
    members = _first(within.reshape(-1, live.shape[2])).reshape(*groups.shape, -1)
    return (groups[:, :, None] * live.shape[2] + members).reshape(depth, -1), groups


def _first(live):
    """The places of the True ones in each row, filled up to the fullest row: `[rows, most]`."""
    most = max(1, int(live.sum(axis=1).max()))
    return np.sort(np.argsort(~live, axis=1, kind="stable")[:, :most], axis=1)


def _take(x, places, axis):
    """Takes places[l] along an axis of x[l], for every layer l."""
    shape = [1] * x.ndim
    shape[0], shape[axis] = places.shape
    return jnp.take_along_axis(jnp.asarray(x), jnp.asarray(places).reshape(shape), axis=axis)


def _blocks(params, config):
    """The stacked blocks, checked against the config."""
    _parameters.check(params, config)
    if not all(map(_validation.is_known, jax.tree.leaves(params["blocks"]))):
        remedy = "The new sizes depend on their values: call it outside of jit, vmap and grad."
        given = _validation.Verbatim("traced ones")
        raise _validation.invalid("params", given, "known arrays", remedy, "shrink")
    return params["blocks"]
