"""The inside of a forward pass: who attends to whom, and what each layer would predict."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation, sharding
from proxlm.lm import _attention, _block, _config, _forward
from proxlm.lm._config import ModelConfig, Params


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


@sharding.automatic
def inspect(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    positions: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> Inspection:
    """Runs the model as `encode` does, by the same functions, and keeps what is on the way.

    With x_0 the embedding, layer l computes

        A_l = softmax(q·kᵀ/√d) over the keys a query may see,
        x_{l+1} = finish(x_l, A_l·v),

    of which A_l and x_l are returned.

    Args:
      mask: as in `apply`. A padded query has no meaning; one that sees no key at all attends to
        all of them alike.

    Returns:
      An `Inspection`. It holds L·B·H·T² weights: give few rows.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> seen = inspect(lm.init(jax.random.key(0), config), jnp.zeros((4, 5), int), config)
    >>> seen.attention.shape, seen.residual.shape
    ((3, 4, 2, 5, 5), (4, 4, 5, 8))
    >>> seen.attention[0, 0, 0, 1].round(2).tolist()
    [0.5, 0.5, 0.0, 0.0, 0.0]
    """
    shape = np.shape(tokens)

    def step(x, block, view):
        query, key, value = _block.project(block, x, config, shape, view.turn)
        after = _block.finish(block, x, query, key, value, view.visible, config)
        with _config.products(config):
            weights = _attention.attention(query, key, view.visible, config.query_scale, config.attention_cap)
        return after, (weights, x)

    last, (attention, before) = _forward.over_layers(step, params, tokens, config, positions, mask)
    residual = jnp.concatenate([before, last[None]])
    return Inspection(attention, residual.reshape(-1, *shape, config.width))


@sharding.automatic
@_validation.typed
def logit_lens(params: Params, residual: jax.Array, config: ModelConfig) -> jax.Array:
    """The logit lens: the logits of the model if it stopped at a layer.

        logits_l = head(norm(x_l)),

    by the last norm and the head of the model, so that the last layer's are the model's own: `[..., D]` of an
    `Inspection` -> float32 `[..., V]`.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> logit_lens(params, jnp.ones((4, 2, 5, 8)), config).shape
    (4, 2, 5, 16)
    """
    if residual.shape[-1:] != (config.width,):
        expected = f"[..., {config.width}], D the model's width, as in Inspection.residual"
        raise _validation.invalid("residual.shape", residual.shape, expected)
    hidden = _forward.final_norm(params, residual.reshape(-1, config.width), config)
    return _forward.logits(params, hidden, config).reshape(*residual.shape[:-1], -1)
