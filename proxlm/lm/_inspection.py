"""What a forward pass leaves unsaid: who attends to whom, and what each layer would predict."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from proxlm.lm import _config, _forward, _layers


class Inspection(NamedTuple):
    """The inside of one forward pass.

    Attributes:
      attention: float32 `[L, B, H, T, T]`: how much query t of head h takes from key s; the last
        axis sums to 1, and is 0 where s > t or s is padding.
      residual: `[L + 1, B, T, D]` in the compute dtype: the embedding, then the stream after each
        layer, before the last norm.
    """

    attention: jax.Array
    residual: jax.Array


def inspect(params, tokens, config, *, positions=None, mask=None):
    """Runs the model as `encode` does, by the same functions, and keeps what is on the way.

    With x_0 the embedding, layer l computes

        A_l = softmax(q·kᵀ/√d) over the keys a query may see,
        x_{l+1} = finish(x_l, A_l·v),

    of which A_l and x_l are returned.

    Args:
      params: of `init`, with stacked blocks.
      tokens: integers `[B, T]`.
      config: a `ModelConfig`.
      positions: as in `apply`.
      mask: as in `apply`.  A padded query has no meaning; one that sees no key at all attends to
        all of them alike.

    Returns:
      An `Inspection`.  It holds L·B·H·T² weights: give few rows.

    Raises:
      ValueError: T exceeds `config.max_length`.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> seen = inspect(lm.init(jax.random.key(0), config), jnp.zeros((4, 5), int), config)
    >>> seen.attention.shape, seen.residual.shape
    ((3, 4, 2, 5, 5), (4, 4, 5, 8))
    >>> seen.attention[0, 0, 0, 1].round(2).tolist()
    [0.5, 0.5, 0.0, 0.0, 0.0]
    """
    batch, length = tokens.shape
    _config.check_length(length, config)
    visible = _forward.visibility(mask, length)
    turn = _forward.angles(positions, mask, length, config)

    def body(x, block):
        query, key, value = _forward.project(block, x, config, (batch, length), turn)
        x = _forward.finish(block, x, query, key, value, visible, config)
        with _config.products(config):
            return x, (_layers.attention(query, key, visible), x)

    start = _forward.embed(params, tokens, config)
    _, (attention, after) = jax.lax.scan(body, start, params["blocks"])
    residual = jnp.concatenate([start[None], after])
    return Inspection(attention, residual.reshape(-1, batch, length, config.width))


def logit_lens(params, residual, config):
    """The logit lens: what the model would say if it stopped at a layer.

        logits_l = head(rms_norm(x_l)),

    by the last norm and the head of the model, so that the last layer's are the model's own.

    Args:
      params: of `init`.
      residual: `[..., D]`, of an `Inspection`.
      config: a `ModelConfig` with an LM head.

    Returns:
      float32 `[..., V]`.

    Raises:
      ValueError: the model has no LM head, or the last axis is not its width.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> logit_lens(params, jnp.ones((4, 2, 5, 8)), config).shape
    (4, 2, 5, 16)
    """
    if residual.shape[-1:] != (config.width,):
        raise ValueError(
            f"residual has shape {residual.shape}: expected [..., D] with D the model's width, "
            f"{config.width}, as in Inspection.residual"
        )
    rows = residual.reshape(-1, config.width)
    hidden = _layers.rms_norm(rows, params["norm"]["scale"], config.norm_epsilon)
    return _forward.logits(params, hidden, config).reshape(*residual.shape[:-1], -1)
