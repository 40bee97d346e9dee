"""The forward pass: pure functions of a plain dict of parameters.

`apply` is all most callers need. The smaller pieces serve the cached decoder, which must compute the very
same thing one token at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation, sharding
from proxlm.lm import _arguments, _block, _config, _layer_kernels, _layers, _parameters, _segments, _views
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._views import View


@sharding.automatic
def apply(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Logits of the next token at every position.

    Args:
      params: of `init`.
      tokens: integers `[B, T]` from the vocabulary. Ids outside of it are refused where they are
        known; traced ones give NaN in all of their row.
      config: a `ModelConfig` with an LM head.
      positions: integers `[B, T]`; None counts the valid tokens of each row.
      mask: bool `[B, T]`, False where a token is padding, wherever it stands; None: all valid.
      segments: integers `[B, T]`, in place of a mask: texts packed in one row, each a run of one number. A
        token sees those of its own, and positions begin anew.

    Returns:
      float32 `[B, T, V]`; meaningless, but finite, where the mask is False.

    Raises:
      ValueError: an argument is invalid, T exceeds `config.max_length`, the params are not those
        of the config, or the model has no LM head.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> jax.jit(apply, static_argnames="config")(params, jnp.zeros((2, 5), int), config).shape
    (2, 5, 16)
    """
    hidden = encode(params, tokens, config, positions=positions, mask=mask, segments=segments)
    return logits(params, hidden, config).reshape(*np.shape(tokens), -1)


@sharding.automatic
def encode(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """The last hidden states, normalised, which the heads read: `[B·T, D]` in the compute dtype.

    Arguments and errors as in `apply`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> encode(lm.init(jax.random.key(0), config), jnp.zeros((2, 5), int), config).shape
    (10, 8)
    """
    step = lambda x, block, view: (_block.run(block, x, view, config, np.shape(tokens)), None)
    x, _ = over_layers(step, params, tokens, config, positions, mask, segments)
    return final_norm(params, x, config)


@sharding.automatic
def hidden_states(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The residual stream after every block, before the last norm: `[L, B·T, D]`.

    Arguments and errors as in `apply`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> jax.eval_shape(lambda: hidden_states(params, jnp.zeros((2, 5), int), config)).shape
    (3, 10, 8)
    """

    def step(x, block, view):
        x = _block.run(block, x, view, config, np.shape(tokens))
        return x, x

    return over_layers(step, params, tokens, config, positions, mask)[1]


@sharding.automatic
@_validation.typed
def logits(params: Params, hidden: jax.Array, config: ModelConfig) -> jax.Array:
    """The LM head on hidden states: h·W, `[N, D]` of `encode` -> float32 `[N, V]`; ValueError without one.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> logits(lm.init(jax.random.key(0), config), jnp.ones((3, 8)), config).shape
    (3, 16)
    """
    if not config.lm_head:
        remedy = "The model has no LM head: use values, or a config with lm_head=True."
        raise _validation.invalid("config.lm_head", False, "True", remedy)
    _check_hidden("logits", hidden, config)
    name = "embedding" if config.tie_embeddings else "head"
    kernel = sharding.whole({name: params[name]})[name]["kernel"]  # [V, D] in both cases
    with _config.products(config):
        result = _layer_kernels.head_product(hidden, jnp.asarray(kernel))
    return _layers.soft_cap(result, config.logit_cap)


@sharding.automatic
@_validation.typed
def values(params: Params, hidden: jax.Array, config: ModelConfig) -> jax.Array:
    """The scalar head on hidden states: h·w + b, `[N, D]` -> float32 `[N]`; ValueError without one.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> values(lm.init(jax.random.key(0), config), jnp.ones((3, 8)), config).tolist()
    [0.0, 0.0, 0.0]
    """
    if not config.value_head:
        remedy = "The model has no value head: use a config with value_head=True."
        raise _validation.invalid("config.value_head", False, "True", remedy)
    _check_hidden("values", hidden, config)
    head = params["value"]
    with _config.products(config):
        return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def embed(params: Params, tokens: jax.Array, config: ModelConfig, positions: jax.Array) -> jax.Array:
    """Rows of the embedding in the compute dtype: integers `[...]` -> `[N, D]`; NaN outside of it.

    The positions broadcast to the shape of tokens; only learned ones are read.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8)
    >>> params = lm.init(jax.random.key(0), config)
    >>> jax.eval_shape(lambda: embed(params, jnp.zeros((2, 5), int), config, jnp.arange(5)[None])).shape
    (10, 8)
    """
    tokens = jnp.asarray(tokens)
    table = jnp.asarray(sharding.whole({"embedding": params["embedding"]})["embedding"]["kernel"])
    tokens = jnp.where(tokens < 0, config.vocab_size, tokens)  # JAX would count them from the end
    x = _layer_kernels.rows(table, tokens.reshape(-1)).astype(config.compute_dtype)
    if config.embedding_scale is not None:
        x = x * jnp.asarray(config.embedding_scale, x.dtype)
    if config.positions == "learned":
        at = jnp.broadcast_to(positions, tokens.shape).reshape(-1)
        x = x + jnp.take(params["positions"]["kernel"], at, axis=0, mode="clip").astype(x.dtype)
    return sharding.rows(x)


def final_norm(params: Params, x: jax.Array, config: ModelConfig) -> jax.Array:
    """The norm before the heads: `[..., D]` -> `[..., D]`.

    >>> config = ModelConfig(vocab_size=16, width=2, num_heads=1)
    >>> final_norm({"norm": {"scale": jnp.ones(2)}}, jnp.array([[3.0, -3.0]]), config).round(2).tolist()
    [[1.0, -1.0]]
    """
    return _block.norm(x, params["norm"], config)


def over_layers(
    step: Callable[[jax.Array, Params, View], tuple[jax.Array, Any]],
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    positions: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Checks the arguments and scans `step(x, block, view)` over the layers, from the embedding on.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> step = lambda x, block, view: (x + 1.0, x[0, 0] * 0.0)
    >>> params = lm.init(jax.random.key(0), config)
    >>> over_layers(step, params, jnp.zeros((1, 2), int), config, None, None)[1].shape
    (3,)
    """
    tokens, mask = _arguments.token_ids(tokens, mask, config)
    _parameters.check(params, config, factors=True)
    for name, rows in {"positions": positions, "segments": segments}.items():
        if rows is not None and np.shape(rows) != tokens.shape:
            expected = f"{tokens.shape}, the shape of tokens"
            raise _validation.invalid(f"{name}.shape", np.shape(rows), expected)
    if segments is not None and mask is not None:
        given = _validation.Verbatim("an array")
        raise _validation.invalid("mask", given, "None with segments", "Padding is a segment of its own.")
    segments = None if segments is None else jnp.asarray(segments)
    views, _ = _views.of_layers(positions, mask, tokens.shape[1], config, segments)
    counted = _views.count(mask, tokens.shape[1], segments) if positions is None else positions
    return scan_layers(step, params, embed(params, tokens, config, counted), views, config)


def scan_layers(
    step: Callable[[jax.Array, Params, View], tuple[jax.Array, Any]],
    params: Params,
    x: jax.Array,
    views: Sequence[View],
    config: ModelConfig,
) -> tuple[jax.Array, Any]:
    """Scans `step(x, block, view)` over the layers, given the view of each kind of them.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> params, views = lm.init(jax.random.key(0), config), _views.of_layers(None, None, 2, config)[0]
    >>> step = lambda x, block, view: (x + 1.0, None)
    >>> scan_layers(step, params, jnp.zeros(2), views, config)[0].tolist()
    [3.0, 3.0]
    """
    view_of = _views.picker(views, config)
    body = lambda part, x, layer: step(x, _layer_kernels.of_scan(layer[0], layer[1], part), view_of(layer[2]))
    if config.remat:
        keep = None if config.remat is True else getattr(jax.checkpoint_policies, str(config.remat))
        body = jax.checkpoint(body, policy=keep)
    seen, first = [], 0
    for part in _segments.parts_of(params["blocks"]):
        x, of_part = _segments.scan(body, x, part, first, _config.layers_in_a_step(config))
        seen, first = [*seen, of_part], first + _segments.depth(part)
    return x, seen[0] if len(seen) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *seen)


def _check_hidden(function, hidden, config):
    if np.ndim(hidden) < 1 or np.shape(hidden)[-1] != config.width:
        expected = f"[N, {config.width}], by the config"
        raise _validation.invalid("hidden.shape", np.shape(hidden), expected, "Take lm.encode's.", function)
