"""Sampling inside jit: prefill, then one token at a time against a key-value cache."""

from typing import Any

import jax

from proxlm import _validation, sharding
from proxlm._decoding import config as decoding
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Samples
from proxlm.lm import _arguments, _parameters, _token_loop
from proxlm.lm._config import ModelConfig, Params


@sharding.automatic
def sample(
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
    num_microbatches: int = 1,
) -> Samples:
    """Continues every prompt by up to `num_tokens` tokens.

    Args:
      key: a typed key, or `[B]` of them; consumed. One uniform number is drawn per token and row.
        With one key the numbers of a row depend on how many rows there are; with a key for each
        row, a row's text depends on its own key alone.
      prompts: integers `[B, P]` from the vocabulary.
      num_tokens: R, the length of the longest response.
      prompt_mask: bool `[B, P]`, False where a prompt is padding, on whichever side; None: none
        is. Every row needs a valid token.
      early_exit: stop when all rows have ended. A `while_loop`: leave it off under `vmap`.
      segment: attention reads this many columns more at a time, so hardly more than are filled;
        each growth, of at most four, compiles the step again.
      group_size: G, how often each of N prompts is answered, in rows on end: B = N·G. The prompts
        are run once, and the tokens are those of the prompts repeated.
      num_microbatches: slices of the prompts, one after another, to bound the memory of cache and
        logits; the tokens are the same.

    The layers of a deep model, by `config.unroll` and where they are stacked, are scanned: they compile
    once, and their weights are not copied. A list of them (`unstack`) is unrolled, which compiles each
    layer at each growth, and is faster for a few rows. So are up to 8 stacked layers, copied once a call,
    for a slice is a copy on a CPU; unroll=1 scans them too. Of 8 layers of 512, 109 MB, 48 tokens of one row
    took .43 CPU s copied and .62 scanned, with 179 and 13 MB of temporaries; 32 tokens of 32 rows 1.53 and
    1.62 s, 187 and 48 MB; read in place and unrolled .61 and 1.52 s (medians, n=3, one shared Xeon core).

    Raises:
      ValueError: P + R exceeds the context, or an argument is not as above.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> samples = sample(jax.random.key(1), params, jax.numpy.zeros((2, 3), int), config, 5)
    >>> samples.tokens.shape, samples.log_probs.shape
    ((2, 8), (2, 5))
    """
    prompts, prompt_mask = check(key, params, prompts, prompt_mask, num_tokens, config, sampling, group_size)
    _validation.integer(1, "sample", segment=segment)
    _validation.to_int(1, "sample", num_microbatches=num_microbatches)
    number, rest = divmod(prompts.shape[0], num_microbatches)
    if rest:
        expected = f"a divisor of the {prompts.shape[0]} prompts"
        raise _validation.invalid("num_microbatches", num_microbatches, expected)
    params, ready = _token_loop.ready(key, params, prompts, prompt_mask, config, num_tokens, group_size)
    how = {"params": params, "config": config, "sampling": sampling}
    how |= {"segment": segment, "early_exit": early_exit, "group_size": group_size}
    run = lambda rows: _token_loop.start(*rows, **how)[0]
    if num_microbatches == 1:
        return run(ready)
    prompts, prompt_mask, uniform = ready
    cut = lambda x: x.reshape(num_microbatches, number, *x.shape[1:])
    uniform = uniform.reshape(num_tokens, num_microbatches, -1).swapaxes(0, 1)
    rows = sharding.pieces(jax.tree.map(cut, (prompts, prompt_mask)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(run, (*rows, uniform)))


def check(
    key: Any,
    params: Params,
    prompts: Any,
    prompt_mask: Any,
    num_tokens: int,
    config: ModelConfig,
    sampling: SamplingConfig,
    group_size: int = 1,
    *,
    name: str = "prompts",
    before: int = 0,
) -> tuple[jax.Array, jax.Array | None]:
    """Raises the ValueErrors of `sample` before any compute; returns prompts and mask as arrays.

    They may have another name, and columns before them.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params, how = lm.init(jax.random.key(0), config), (config, SamplingConfig())
    >>> check(jax.random.key(1), params, [[1, 2, 3]], None, 5, *how)[0].shape
    (1, 3)
    """
    prompts, prompt_mask = _arguments.token_ids(prompts, prompt_mask, config, name)
    if not before:
        _arguments.rows_have_tokens(prompt_mask, "prompt_mask")
    _validation.to_int(1, "sample", group_size=group_size)
    _arguments.typed_key(key, prompts.shape[0] * group_size)
    _arguments.num_tokens(num_tokens, before + prompts.shape[1], config)
    _parameters.check(params, config, stacked=False, factors=True)
    if not isinstance(sampling, SamplingConfig):
        raise _validation.invalid("sampling", sampling, "a SamplingConfig")
    if not config.lm_head:
        raise _validation.invalid("config.lm_head", False, "True", "Tokens are sampled from the LM head.")
    decoding.check_tokens(sampling, config.vocab_size)
    decoding.check_stops("sample", sampling, num_tokens)
    return prompts, prompt_mask
