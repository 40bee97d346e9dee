"""The vocabulary head in chunks of tokens: logits of a few at a time, never those of all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from proxlm import _validation, sharding
from proxlm.lm import _forward
from proxlm.lm._config import ModelConfig, Params

# Logits on a device: up to the first number the head runs at once, beyond it in chunks of about the second.
# Half the chunk made 1,024 tokens of SmolLM2-135M's head 1.2 times as slow: each adds to the head's gradient.
LARGE, CHUNK = 2**25, 2**23


@sharding.automatic
@_validation.typed
def map_logits(
    fn: Callable[..., Any],
    params: Params,
    hidden: jax.Array,
    config: ModelConfig,
    *rows: Any,
    strided: bool = True,
) -> Any:
    """Applies `fn(logits [n, V], *rows [n, ...])` to the head's logits of all tokens, N·V numbers, by chunks.

    Where N·V is large, the tokens are taken by chunks of n, in a loop that computes the logits of a chunk
    anew in the backward pass: memory is that of a chunk. `fn` has to treat tokens one by one, as do losses
    and the exact KL of a student from its teacher.

    Args:
      fn: to a pytree of `[n, ...]`.
      hidden: `[N, D]` of `encode`.
      rows: pytrees of `[N, ...]`, one row a token, such as targets.
      strided: chunk k of K holds tokens k, k + K and so on, so that each has some of every device's;
        without, successive ones, which spares a copy of results that are as wide as the vocabulary.

    Returns:
      The results, `[N, ...]`.

    Raises:
      ValueError: the rows are not N, or the model has no LM head.

    >>> from proxlm import lm, losses
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params, tokens = lm.init(jax.random.key(0), config), jnp.ones((2, 5), int)
    >>> @jax.jit
    ... def loss(params):
    ...     hidden = lm.encode(params, tokens[:, :-1], config)
    ...     return map_logits(losses.next_token, params, hidden, config, tokens[:, 1:].reshape(-1))
    >>> loss(params).shape
    (8,)
    """
    size = hidden.shape[0]
    for x in jax.tree.leaves(rows):
        if jnp.shape(x)[:1] != (size,):
            raise _validation.invalid("rows.shape", jnp.shape(x), f"({size}, ...), a row a token of hidden")
    whole = lambda hidden, *rows: fn(_forward.logits(params, hidden, config), *rows)
    devices = sharding.num_parts() if size % sharding.num_parts() == 0 else 1
    if size * config.vocab_size <= LARGE * devices:
        return whole(hidden, *rows)
    number = -(-size * config.vocab_size // (CHUNK * devices))
    if devices > 1:
        return _map_own(fn, params, (hidden, *rows), config, number, devices)
    pad = lambda x: jnp.pad(x, ((0, -size % number), *((0, 0),) * (x.ndim - 1)))
    swap = lambda x: x.swapaxes(0, 1) if strided else x
    cut = lambda x: swap(pad(x).reshape(*((-1, number) if strided else (number, -1)), *x.shape[1:]))
    join = lambda x: swap(x).reshape(-1, *x.shape[2:])[:size]
    parts = jax.tree.map(cut, (hidden, *rows))
    results = jax.lax.map(jax.checkpoint(lambda part: whole(*part), prevent_cse=False), parts)
    return jax.tree.map(join, results)


def _map_own(fn, params, rows, config, number, devices):
    """`map_logits` where each device takes chunks of its own tokens.

    Each has a copy of the head, so that the gradient is summed over devices once and not at every chunk.
    """
    size = len(rows[0])
    own = size // devices
    number = next(n for n in range(min(number, own), own + 1) if own % n == 0)
    name = "embedding" if config.tie_embeddings else "head"
    kernel = sharding.whole({name: params[name]})[name]["kernel"]
    kernels = sharding.rows(jnp.broadcast_to(kernel, (devices, *kernel.shape)))

    def of_device(kernel, hidden, *rows):
        return fn(_forward.logits({**params, name: {"kernel": kernel}}, hidden, config), *rows)

    cut = lambda x: x.reshape(devices, number, own // number, *x.shape[1:]).swapaxes(0, 1)
    of_chunk = jax.checkpoint(lambda part: jax.vmap(of_device)(kernels, *part), prevent_cse=False)
    results = jax.lax.map(of_chunk, sharding.pieces(jax.tree.map(cut, rows)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[3:]), results)
