"""Rollouts of several turns: a tool's output after each, and the next turn sampled from the same cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation, sharding
from proxlm._decoding import turns
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Samples
from proxlm._decoding.rows import uniforms
from proxlm.lm import _cache, _sampling, _token_loop
from proxlm.lm._config import ModelConfig, Params


class Rollout(NamedTuple):
    """Samples that can be continued.

    Attributes:
      samples: what has been said; a response holds the tools' outputs between its turns, as holes of its
        `response_mask`.
      cache: keys and values of all columns but the last.
      alive: bool `[B]`, the rows to which a tool may answer: those that had a last turn.
    """

    samples: Samples
    cache: _cache.Cache
    alive: jax.Array


@sharding.automatic
def start_rollout(
    key: jax.Array,
    params: Params,
    prompts: jax.Array,
    config: ModelConfig,
    num_tokens: int,
    *,
    prompt_mask: jax.Array | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    early_exit: bool = False,
    segment: int = 32,
    group_size: int = 1,
) -> Rollout:
    """The first turn: `sample`, with the same arguments and tokens, and the cache to go on from.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params, prompts = lm.init(jax.random.key(0), config), jnp.zeros((2, 3), int)
    >>> start = jax.jit(lambda key: start_rollout(key, params, prompts, config, 5))
    >>> start(jax.random.key(1)).samples.tokens.shape
    (2, 8)
    """
    prompts, prompt_mask = _sampling.check(
        key, params, prompts, prompt_mask, num_tokens, config, sampling, group_size
    )
    _validation.integer(1, "start_rollout", segment=segment)
    params, ready = _token_loop.ready(key, params, prompts, prompt_mask, config, num_tokens, group_size)
    how = {"params": params, "config": config, "sampling": sampling}
    how |= {"segment": segment, "early_exit": early_exit, "group_size": group_size}
    samples, cache = _token_loop.start(*ready, **how)
    return Rollout(samples, cache, jnp.ones(len(samples.tokens), bool))


@sharding.automatic
def continue_rollout(
    key: jax.Array,
    params: Params,
    rollout: Rollout,
    outputs: jax.Array,
    config: ModelConfig,
    num_tokens: int,
    *,
    output_mask: jax.Array | None = None,
    sampling: SamplingConfig = SamplingConfig(),
    early_exit: bool = False,
    segment: int = 32,
) -> Rollout:
    """Appends what a tool has said to every row, and samples up to `num_tokens` tokens more.

    The turns of all rows begin in the same columns: P + R columns become P + R + K + num_tokens. Where a row
    has said less, or a tool, columns are masked, and positions do not count them. The tools' tokens are read
    and not learnt from: `mask` is True there and `response_mask` False. A row without output has ended for
    good. Stop tokens and `min_new_tokens` are of each turn. Arguments as in `sample`, but:

    Args:
      rollout: of `start_rollout` or this function; what it holds is run once, and not again.
      outputs: integers `[B, K]` from the vocabulary.
      output_mask: bool `[B, K]`, False at padding, on whichever side; None: all are tokens.

    Raises:
      ValueError: the rows exceed the context, or an argument is not as above.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> @jax.jit
    ... def play(keys):
    ...     first = start_rollout(keys[0], params, jnp.zeros((1, 3), int), config, 2)
    ...     return continue_rollout(keys[1], params, first, jnp.array([[7]]), config, 2)
    >>> play(jax.random.split(jax.random.key(1))).samples.response_mask.tolist()
    [[True, True, False, True, True]]
    """
    if not isinstance(rollout, Rollout):
        raise _validation.invalid("rollout", rollout, "a Rollout", "", "continue_rollout")
    old, cache, alive = rollout
    outputs, output_mask = _check(key, params, old, outputs, output_mask, num_tokens, config, sampling)
    _validation.integer(1, "continue_rollout", segment=segment)
    output_mask = jnp.ones(outputs.shape, bool) if output_mask is None else output_mask
    tokens, mask, alive = turns.extended(old, alive, outputs, output_mask)
    params = _token_loop.unstacked(params, config)
    cache = _cache.grow(cache, tokens.shape[1])
    hidden, cache = _cache.append(params, tokens[:, old.tokens.shape[1] - 1 :], cache, mask, config)
    uniform = uniforms(key, num_tokens, len(tokens))
    how = {"params": params, "config": config, "sampling": sampling}
    how |= {"segment": segment, "early_exit": early_exit}
    new, cache = _token_loop.go_on(hidden, cache, tokens, mask, ~alive, uniform, **how)
    return Rollout(turns.joined(old, alive, new), cache, alive)


def _check(key, params, old, outputs, output_mask, num_tokens, config, sampling):
    """The checks of `sample`, with the outputs in the place of prompts that follow others."""
    outputs, output_mask = _sampling.check(
        key,
        params,
        outputs,
        output_mask,
        num_tokens,
        config,
        sampling,
        name="outputs",
        before=old.tokens.shape[1],
    )
    if len(outputs) != len(old.tokens):
        expected = f"({len(old.tokens)}, K), a row for each of the rollout"
        raise _validation.invalid("outputs.shape", np.shape(outputs), expected, "", "continue_rollout")
    return outputs, output_mask
