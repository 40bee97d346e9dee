"""Teacher-forced scores of given tokens, under the distribution they were sampled from."""

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation, sharding
from proxlm._decoding import config as decoding
from proxlm._decoding import distribution, history
from proxlm._decoding.config import SamplingConfig
from proxlm._decoding.records import Against, Scores
from proxlm.lm import _arguments, _chunks, _forward, _groups
from proxlm.lm._config import ModelConfig, Params


@sharding.automatic
@_validation.typed
def score(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    mask: jax.Array | None = None,
    start: int = 1,
    sampling: SamplingConfig = SamplingConfig(),
    full: bool = False,
    group_size: int = 1,
    response_mask: jax.Array | None = None,
    states: bool = False,
    against: Against | None = None,
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
      group_size: G; of each G rows on end the columns before `start` are the same prompt, which is run
        once for them. Not with rope scaling of kind "dynamic", which depends on the length.
      response_mask: bool `[B, R]`, which of the scored tokens were sampled, where the response has several
        turns, of each of which `sampling.min_new_tokens` asks; None: one turn.
      states: also return the hidden states, `[B, R, D]`, for an `Against`.
      against: a reference of the same config, to which distributions are compared by chunks, as in
        `map_logits`: an exact KL never holds `[B, R, V]`.

    Raises:
      ValueError: as `apply`, there is no column from `start` on, the rows are not groups, or the states of
        `against` are of others.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> params = lm.init(jax.random.key(0), config)
    >>> scored = jax.jit(score, static_argnames=("config", "start"))
    >>> scored(params, jax.numpy.zeros((2, 8), int), config, start=3).log_probs.shape
    (2, 5)
    """
    tokens, mask = _arguments.token_ids(tokens, mask, config)
    hidden = _hidden_before(params, tokens, config, mask, start, group_size)
    shape = (tokens.shape[0], tokens.shape[1] - start)
    first = history.of_rows(tokens, mask, config.vocab_size, sampling)
    rows, columns = (x.reshape(-1) for x in np.indices(shape))
    index = columns
    if response_mask is not None and sampling.min_new_tokens:
        _check_shape("response_mask", response_mask, shape, f", of the columns from {start} on")
        index = history.in_turn(jnp.asarray(response_mask)).reshape(-1)

    def of(logits, targets, rows, columns, index, known):
        past = history.before(first, rows, start + columns, index)
        log_probs = distribution.log_probs(logits, sampling, targets, past)
        found = distribution.select(log_probs, targets), distribution.entropy(log_probs)
        compared = None
        if against is not None:
            other = _forward.logits(against.params, known, config)
            other = distribution.log_probs(other, decoding.untruncated(sampling), targets, past)
            compared = against.fn(log_probs, other, targets)
        return *found, log_probs if full else None, compared

    known = None
    if against is not None:
        _check_shape("against.states", against.states, (*shape, hidden.shape[1]))
        known = against.states.reshape(hidden.shape)
    data = tokens[:, start:].reshape(-1), rows, columns, index, known
    found = _chunks.map_logits(of, params, hidden, config, *data, strided=not full)
    log_probs, entropy, whole, compared = found
    values = _forward.values(params, hidden, config) if config.value_head else None
    scores = Scores(log_probs, entropy, values, whole, hidden if states else None, compared)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), scores)


def _check_shape(argument, array, shape, whose=""):
    if np.shape(array) != shape:
        raise _validation.invalid(f"{argument}.shape", np.shape(array), f"{shape}{whose}", "", "score")


def values(
    params: Params,
    tokens: jax.Array,
    config: ModelConfig,
    *,
    mask: jax.Array | None = None,
    start: int = 1,
    group_size: int = 1,
) -> jax.Array:
    """Values `[B, T − start]` of the states before the tokens from column `start` on.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> params, tokens = lm.init(jax.random.key(0), config), jax.numpy.zeros((2, 8), int)
    >>> jax.jit(values, static_argnames="config")(params, tokens, config).shape
    (2, 7)
    """
    tokens, mask = _arguments.token_ids(tokens, mask, config)
    hidden = _hidden_before(params, tokens, config, mask, start, group_size)
    return _forward.values(params, hidden, config).reshape(tokens.shape[0], -1)


def final_values(
    params: Params, tokens: jax.Array, config: ModelConfig, *, mask: jax.Array | None = None
) -> jax.Array:
    """Values `[B]` of the states after the last valid column.

    >>> from proxlm import lm
    >>> config = lm.ModelConfig(vocab_size=16, num_layers=1, width=8, value_head=True)
    >>> params, tokens = lm.init(jax.random.key(0), config), jax.numpy.zeros((2, 8), int)
    >>> jax.jit(final_values, static_argnames="config")(params, tokens, config).shape
    (2,)
    """
    hidden = _forward.encode(params, tokens, config, mask=mask).reshape(*np.shape(tokens), -1)
    if mask is None:
        return _forward.values(params, hidden[:, -1], config)
    last = hidden.shape[1] - 1 - jnp.argmax(jnp.asarray(mask)[:, ::-1], axis=1)
    return _forward.values(params, jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], config)


def _hidden_before(params, tokens, config, mask, start, group_size):
    """Hidden states that predict the columns from `start` on, `[B·R, D]`."""
    batch, length = np.shape(tokens) if np.ndim(tokens) == 2 else (0, 0)
    if (batch, length) != (0, 0) and not (_validation.is_integer(start) and 1 <= start < length):
        expected = f"an integer from 1 to {length - 1}, inside the {length} columns"
        raise _validation.invalid("start", start, expected)
    if group_size != 1:
        _check_groups(tokens, config, start, group_size)
        return _groups.hidden_before(params, tokens, config, mask, start, group_size)
    hidden = _forward.encode(params, tokens, config, mask=mask)
    hidden = hidden.reshape(batch, length, -1)[:, start - 1 : -1]
    return hidden.reshape(batch * (length - start), -1)


def _check_groups(tokens, config, start, group_size):
    """Raises ValueError unless each `group_size` rows are known or believed to share a prompt."""
    _validation.to_int(1, "score", group_size=group_size)
    if len(tokens) % group_size:
        raise _validation.invalid("group_size", group_size, f"a divisor of the {len(tokens)} rows of tokens")
    if not can_pack(config):
        remedy = "Angles depend on the length: score the rows one by one."
        raise _validation.invalid("group_size", group_size, "1 with dynamic rope scaling", remedy)
    if _validation.is_known(tokens):
        prompts = np.asarray(tokens)[:, :start].reshape(-1, group_size, start)
        if (prompts != prompts[:, :1]).any():
            given = _validation.Verbatim("others")
            raise _validation.invalid("tokens", given, f"the same before column {start} in a group")


def can_pack(config: ModelConfig) -> bool:
    """Whether the answers of a group can be scored behind one prompt.

    >>> can_pack(ModelConfig(vocab_size=16))
    True
    """
    return config.rope_scaling is None or not config.rope_scaling.by_length
