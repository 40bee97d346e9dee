"""Groups of answers scored behind the prompt that they share: it is run once, and not for each answer.

A row is then the prompt and the answers to it, one after another, `[N, P + G·S]`; attention is computed
by parts (`_attention.GroupMask`), so that nothing is spent on answers that do not see one another.

SmolLM2-135M, 8 x 8 answers of 3 tokens behind 17, CPU s on 2 cores of an Intel Xeon, n=2 runs: sampling
3.9 -> 1.3, gradient 13.3 -> 4.0, reference 3.7 -> 1.1; the same tokens, log-probs within 2.2e-5.
"""

import jax
import jax.numpy as jnp

from proxlm.lm import _block, _config, _forward, _parameters, _views
from proxlm.lm._attention import GroupMask
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._views import View


def hidden_before(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    mask: jax.Array | None,
    start: int,
    group_size: int,
) -> jax.Array:
    """Hidden states that predict the columns from `start` on, `[B·R, D]`, as `encode` gives them.

    Args:
      tokens: `[B, P + R]`; each `group_size` rows on end share their first P = `start` columns.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> jax.eval_shape(lambda: hidden_before(params, jnp.zeros((4, 7), int), config, None, 5, 2)).shape
    (8, 8)
    """
    _parameters.check(params, config, factors=True)
    batch, length = tokens.shape
    # the last token predicts nothing
    mask = None if mask is None else mask[:, :-1]
    packed = _pack(tokens[:, :-1], start, group_size)
    positions = _pack(_views.count(mask, length - 1), start, group_size)
    views = [_view(mask, length - 1, start, group_size, config, k) for k in _config.layer_kinds(config)[0]]
    step = lambda x, block, view: (_block.run(block, x, view, config, packed.shape), None)
    x, _ = _forward.scan_layers(
        step, params, _forward.embed(params, packed, config, positions), views, config
    )
    x = x.reshape(*packed.shape, -1)
    answers = x[:, start:].reshape(len(x), group_size, length - start - 1, -1)
    first = jnp.broadcast_to(x[:, None, None, start - 1], (len(x), group_size, 1, x.shape[-1]))
    x = jnp.concatenate([first, answers], axis=2).reshape(batch * (length - start), -1)
    return _forward.final_norm(params, x, config)


def _view(mask, length, start, group_size, config, kind):
    """The view of packed rows, made of that of rows by themselves."""
    visible = _views.visibility(mask, length, kind.window)
    own = visible[:, 0, start:].reshape(-1, group_size if mask is not None else 1, length - start, length)
    own = jnp.broadcast_to(own, (own.shape[0], group_size, *own.shape[2:]))
    turn = _views.angles(None, mask, length, config, kind)
    if turn is not None:
        cos, sin = (_pack(part[:, 0], start, group_size)[:, None] for part in turn)
        turn = cos, sin
    return View(GroupMask(visible[::group_size, :, :start, :start], own), turn)


def _pack(rows, start, group_size):
    """A row for a group: what its rows share, then the rest of each; `[B or 1, T, ...]`, T first after it."""
    rest = rows[:, start:]
    if rows.shape[0] == 1:
        rest = jnp.tile(rest, (1, group_size, *[1] * (rows.ndim - 2)))
    else:
        rest = rest.reshape(-1, group_size * rest.shape[1], *rest.shape[2:])
    return jnp.concatenate([rows[::group_size, :start], rest], axis=1)
