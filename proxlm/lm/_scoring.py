"""Teacher-forced scores of given tokens, under the distribution they were sampled from."""

import jax
import numpy as np

from proxlm import _validation
from proxlm._decoding import distribution
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Scores
from proxlm.lm import _arguments, _chunks, _forward
from proxlm.lm._config import ModelConfig, Params


def score(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    mask: jax.Array | None = None,
    start: int = 1,
    sampling: SamplingConfig = SamplingConfig(),
    full: bool = False,
) -> Scores:
    """Log-probabilities, entropies and values of the tokens from column `start` on.

    Args:
      tokens: integers `[B, T]` from the vocabulary. Ids outside of it, such as labels of −100,
        are refused where they are known and the mask is True; traced ones give NaN in their row.
      mask: bool `[B, T]` of valid tokens; scores where it is False have no meaning, but are
        finite. Column start − 1 must hold the token before the first scored one, as in `Samples`.
      start: the first scored column, at least 1; R = T − start.
      sampling: the settings the tokens were sampled with.
      full: also return the whole distribution.

    Raises:
      ValueError: as `apply`, or there is no column from `start` on.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> score(params, jax.numpy.zeros((2, 8), int), config, start=3).log_probs.shape
    (2, 5)
    """
    tokens, mask = _arguments.token_ids(tokens, mask, config)
    hidden = _hidden_before(params, tokens, config, mask, start)
    shape = (tokens.shape[0], tokens.shape[1] - start)

    def of(logits, targets):
        log_probs = distribution.log_probs(logits, sampling, keep=targets)
        whole = log_probs if full else None
        return distribution.select(log_probs, targets), distribution.entropy(log_probs), whole

    scores = _chunks.map_logits(of, params, hidden, config, tokens[:, start:].reshape(-1), strided=not full)
    log_probs, entropy, whole = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), scores)
    values = _forward.values(params, hidden, config).reshape(shape) if config.value_head else None
    return Scores(log_probs, entropy, values, whole)


def values(
    params: Params, tokens: jax.Array, config: ModelConfig, *, mask: jax.Array | None = None, start: int = 1
) -> jax.Array:
    """Values `[B, T − start]` of the states before the tokens from column `start` on.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> values(lm.init(jax.random.key(0), config), jax.numpy.zeros((2, 8), int), config).shape
    (2, 7)
    """
    hidden = _hidden_before(params, tokens, config, mask, start)
    return _forward.values(params, hidden, config).reshape(tokens.shape[0], -1)


def _hidden_before(params, tokens, config, mask, start):
    """Hidden states that predict the columns from `start` on, `[B·R, D]`."""
    batch, length = np.shape(tokens) if np.ndim(tokens) == 2 else (0, 0)
    if (batch, length) != (0, 0) and not (_validation.is_integer(start) and 1 <= start < length):
        expected = f"an integer from 1 to {length - 1}, inside the {length} columns"
        raise _validation.invalid("start", start, expected)
    hidden = _forward.encode(params, tokens, config, mask=mask)
    hidden = hidden.reshape(batch, length, -1)[:, start - 1 : -1]
    return hidden.reshape(batch * (length - start), -1)
