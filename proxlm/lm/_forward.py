"""The forward pass: pure functions of a plain dict of parameters.

`apply` is all most callers need.  The smaller pieces serve the cached decoder, which must compute
the very same thing one token at a time.
"""

import jax
import jax.numpy as jnp

from proxlm.lm import _config, _layers


def apply(params, tokens, config, *, positions=None, mask=None):
    """Logits of the next token at every position.

    Args:
      params: of `init`.
      tokens: integers `[B, T]`.
      config: a `ModelConfig` with an LM head.
      positions: integers `[B, T]`; None counts the valid tokens of each row.
      mask: bool `[B, T]`, False where a token is padding, wherever it stands; None: all valid.

    Returns:
      float32 `[B, T, V]`; meaningless, but finite, where the mask is False.

    Raises:
      ValueError: T exceeds `config.max_length`, or the model has no LM head.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> apply(lm.init(jax.random.key(0), config), jnp.zeros((2, 5), int), config).shape
    (2, 5, 16)
    """
    hidden = encode(params, tokens, config, positions=positions, mask=mask)
    return logits(params, hidden, config).reshape(*tokens.shape, -1)


def encode(params, tokens, config, *, positions=None, mask=None):
    """The last hidden states, normalised: what the heads read.

    Args:
      params: of `init`.
      tokens: integers `[B, T]`.
      config: a `ModelConfig`.
      positions: as in `apply`.
      mask: as in `apply`.

    Returns:
      `[B·T, D]` in the compute dtype.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> encode(lm.init(jax.random.key(0), config), jnp.zeros((2, 5), int), config).shape
    (10, 8)
    """
    body = _block_of(tokens, config, positions, mask)
    step = lambda x, block: (body(x, block), None)
    x, _ = _over_layers(step, params, tokens, config)
    return _layers.rms_norm(x, params["norm"]["scale"], config.norm_epsilon)


def hidden_states(params, tokens, config, *, positions=None, mask=None):
    """The residual stream after every block, not normalised: what a layer knows.

    The arguments are those of `apply`.  Returns `[L, B·T, D]` in the compute dtype, of which the
    last, normalised, is `encode`; ValueError when T exceeds `config.max_length`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> hidden_states(lm.init(jax.random.key(0), config), jnp.zeros((2, 5), int), config).shape
    (3, 10, 8)
    """
    body = _block_of(tokens, config, positions, mask)
    step = lambda x, block: (body(x, block),) * 2
    return _over_layers(step, params, tokens, config)[1]


def logits(params, hidden, config):
    """The LM head on hidden states: h·W, in float32.

    Args:
      params: of `init`.
      hidden: `[N, D]`, rows of `encode`.
      config: a `ModelConfig` with an LM head.

    Returns:
      float32 `[N, V]`.

    Raises:
      ValueError: the model has no LM head.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> logits(lm.init(jax.random.key(0), config), jnp.ones((3, 8)), config).shape
    (3, 16)
    """
    if not config.lm_head:
        raise ValueError("the model has no LM head: use values, or a config with lm_head=True")
    name = "embedding" if config.tie_embeddings else "head"
    kernel = params[name]["kernel"].astype(hidden.dtype)  # [V, D] in both cases
    with _config.products(config):
        return jnp.einsum("nd,vd->nv", hidden, kernel, preferred_element_type=jnp.float32)


def values(params, hidden, config):
    """The scalar head on hidden states: h·w + b, in float32.

    Args:
      params: of `init`.
      hidden: `[N, D]`, rows of `encode`.
      config: a `ModelConfig` with a value head.

    Returns:
      float32 `[N]`.

    Raises:
      ValueError: the model has no value head.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> values(lm.init(jax.random.key(0), config), jnp.ones((3, 8)), config).tolist()
    [0.0, 0.0, 0.0]
    """
    if not config.value_head:
        raise ValueError("the model has no value head: use a config with value_head=True")
    head = params["value"]
    with _config.products(config):
        return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def embed(params, tokens, config):
    """Rows of the embedding in the compute dtype: integers `[...]` -> `[N, D]`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8)
    >>> embed(lm.init(jax.random.key(0), config), jnp.zeros((2, 5), int), config).shape
    (10, 8)
    """
    return params["embedding"]["kernel"][tokens.reshape(-1)].astype(config.compute_dtype)


def project(block, x, config, shape, turn):
    """Queries, keys and values of a block, heads before positions; the first two rotated.

    Args:
      block: the parameters of one layer.
      x: `[B·T, D]`.
      config: a `ModelConfig`.
      shape: `(B, T)`.
      turn: rotary cosines and sines, each broadcastable to `[B, 1, T, d/2]`.

    Returns:
      `[B, H, T, d]`, `[B, H_kv, T, d]`, `[B, H_kv, T, d]`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_kv_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> turn = angles(None, None, 5, config)
    >>> [part.shape for part in project(block, jnp.ones((10, 8)), config, (2, 5), turn)]
    [(2, 4, 5, 2), (2, 2, 5, 2), (2, 2, 5, 2)]
    """
    attention = block["attention"]
    x = _layers.rms_norm(x, block["attention_norm"]["scale"], config.norm_epsilon)
    kernel, bias = attention["qkv"]["kernel"], attention["qkv"].get("bias")
    sizes = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    heads_first = lambda part: part.reshape(*shape, -1, config.head_width).transpose(0, 2, 1, 3)
    with _config.products(config):
        query, key, value = map(heads_first, _layers.linear_parts(x, kernel, sizes, bias))
    if config.qk_norm:
        query = _layers.rms_norm(query, attention["query_norm"]["scale"], config.norm_epsilon)
        key = _layers.rms_norm(key, attention["key_norm"]["scale"], config.norm_epsilon)
    return _layers.rotate(query, *turn), _layers.rotate(key, *turn), value


def finish(block, x, query, key, value, visible, config):
    """Adds the attention's result and then the MLP's to the residual stream.

    Args:
      block: the parameters of one layer.
      x: `[B·T, D]`, the residual stream.
      query: `[B, H, T, d]`, of `project`.
      key: `[B, H_kv, S, d]`.
      value: `[B, H_kv, S, d]`.
      visible: bool, `[B or 1, 1, T, S]`: which keys a query may see.
      config: a `ModelConfig`.

    Returns:
      `[B·T, D]`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> block = lm.unstack(lm.init(jax.random.key(0), config)["blocks"])[0]
    >>> heads = [jnp.ones((1, 2, 3, 4))] * 3
    >>> finish(block, jnp.ones((3, 8)), *heads, visibility(None, 3), config).shape
    (3, 8)
    """
    kernel, mlp = block["attention"]["out"]["kernel"], block["mlp"]
    with _config.products(config):
        mixed = _layers.attend(query, key, value, visible).transpose(0, 2, 1, 3)
        mixed = mixed.reshape(len(x), -1)
        x = x + _layers.linear(mixed, kernel.reshape(-1, kernel.shape[-1]))
        normed = _layers.rms_norm(x, block["mlp_norm"]["scale"], config.norm_epsilon)
        return x + _layers.swiglu(normed, mlp["gate_up"]["kernel"], mlp["down"]["kernel"])


def visibility(mask, length):
    """Which keys a query may see: the valid ones up to itself; bool `[B or 1, 1, T, T]`.

    >>> visibility(None, 2)[0, 0].tolist()
    [[True, False], [True, True]]
    """
    causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
    return causal if mask is None else causal & mask[:, None, None, :]


def angles(positions, mask, length, config):
    """Rotary cosines and sines `[B or 1, 1, T, d/2]` of the given or counted positions.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, width=8, num_heads=2)
    >>> angles(None, None, 5, config)[0].shape
    (1, 1, 5, 2)
    """
    rotation = lambda positions: _layers.rotation(positions, config.head_width, config.rope_theta)
    if positions is not None:
        return rotation(positions[:, None])
    # XLA fuses what it can into every rotation of every head and layer. Cosines of counted
    # positions would be computed anew in each, up to a sixth of an update; a table is looked up.
    table = rotation(jnp.arange(length))
    if mask is None:
        return tuple(part[None, None] for part in table)
    counted = jnp.cumsum(mask, axis=1)[:, None] - 1
    return tuple(jnp.take(part, counted, axis=0, mode="clip") for part in table)


def _block_of(tokens, config, positions, mask):
    """`(x, block) -> x` for these tokens: all of a layer, on the flat residual stream."""
    batch, length = tokens.shape
    _config.check_length(length, config)
    visible = visibility(mask, length)
    turn = angles(positions, mask, length, config)

    def body(x, block):
        heads = project(block, x, config, (batch, length), turn)
        return finish(block, x, *heads, visible, config)

    return body


def _over_layers(step, params, tokens, config):
    """Scans a step over the layers, from the embedding on."""
    step = jax.checkpoint(step) if config.remat else step
    unroll = config.unroll or (config.num_layers if config.num_layers <= 8 else 1)
    return jax.lax.scan(step, embed(params, tokens, config), params["blocks"], unroll=unroll)
