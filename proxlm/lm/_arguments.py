"""Checks of arguments that most functions here share, and the rule for token ids.

A token id outside of the vocabulary is refused where its value is known. Traced ids cannot be
checked: they give NaN in their whole row, as the losses of Optax do. What stands where a mask is
False is never read.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.lm._config import ModelConfig


def token_ids(
    tokens: Any, mask: Any, config: ModelConfig, name: str = "tokens"
) -> tuple[jax.Array, jax.Array | None]:
    """Checks token ids and their mask; ids that are masked out become 0.

    >>> token_ids([[3, 1]], None, ModelConfig(vocab_size=16))[0].tolist()
    [[3, 1]]
    """
    tokens = _array(tokens, name)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise _validation.invalid(f"{name}.dtype", tokens.dtype, "an integer one", "Cast them to int32.")
    if tokens.ndim != 2 or 0 in tokens.shape:
        remedy = f"One sequence is {name}[None]." if tokens.ndim == 1 else "Leave empty batches out."
        raise _validation.invalid(f"{name}.shape", tokens.shape, "[B, T] with B, T ≥ 1", remedy)
    _check_length(tokens.shape[1], config)
    if mask is not None:
        mask = _mask(mask, tokens, name)
    _check_range(tokens, mask, config.vocab_size, name)
    if mask is None:
        return jnp.asarray(tokens), None
    return jnp.where(mask, tokens, 0), jnp.asarray(mask)


def typed_key(key: Any, batch: int) -> jax.Array:
    """Checks a typed key, or `[batch]` of them.

    >>> typed_key(jax.random.key(0), 3).shape
    ()
    """
    if not jnp.issubdtype(getattr(key, "dtype", np.float32), jax.dtypes.prng_key):
        raise _validation.invalid("key", key, "a typed key", "Make one by jax.random.key(seed).")
    if key.shape not in ((), (batch,)):
        expected = f"() or ({batch},), one key for all rows or one for each"
        raise _validation.invalid("key.shape", key.shape, expected)
    return key


def num_tokens(number: Any, length: int, config: ModelConfig) -> None:
    """Checks the number of tokens to add to a row of `length`.

    >>> num_tokens(5, 3, ModelConfig(vocab_size=16))
    """
    if number is None:
        raise _validation.invalid("num_tokens", None, "an integer ≥ 1")
    _validation.integer(1, num_tokens=number)
    _check_length(length + number, config)


def rows_have_tokens(mask: Any, name: str) -> None:
    """Raises ValueError where a row of a known mask is all False.

    >>> rows_have_tokens(np.ones((2, 3), bool), "prompt_mask")
    """
    if mask is not None and _validation.is_known(mask):
        empty = np.flatnonzero(~np.asarray(mask).any(axis=1))
        if len(empty):
            given = _validation.Verbatim(f"nothing but padding in row {empty[0]}")
            raise _validation.invalid(name, given, "True for at least one token of every row")


def _array(tokens, name):
    if hasattr(tokens, "dtype"):
        return tokens
    try:
        return np.asarray(tokens)
    except ValueError:
        remedy = "Pad the rows to one length and say by a mask which tokens are real."
        given = _validation.Verbatim("rows of several lengths")
        raise _validation.invalid(name, given, "integers [B, T]", remedy) from None


def _mask(mask, tokens, name):
    argument = "mask" if name == "tokens" else f"{name.removesuffix('s')}_mask"
    mask = mask if hasattr(mask, "dtype") else np.asarray(mask)
    if mask.shape != tokens.shape:
        expected = f"{tokens.shape}, the shape of {name}"
        raise _validation.invalid(f"{argument}.shape", mask.shape, expected)
    _validation.boolean("", **{argument: mask})
    return mask


def _check_range(tokens, mask, vocab_size, name):
    if not (_validation.is_known(tokens) and (mask is None or _validation.is_known(mask))):
        return
    ids = np.asarray(tokens)
    outside = (ids < 0) | (ids >= vocab_size)
    if mask is not None:
        outside &= np.asarray(mask)
    if outside.any():
        remedy = "Mark what is no token by a mask." if (ids[outside] < 0).any() else ""
        expected = f"ids from 0 to {vocab_size - 1}, the vocabulary of the config"
        raise _validation.invalid(name, int(ids[outside][0]), expected, remedy)


def _check_length(length, config):
    """Raises ValueError when a row of `length` tokens does not fit the context."""
    if length > config.max_length:
        raise ValueError(
            f"{length} tokens do not fit the context of max_length={config.max_length}: "
            "cut the prompt, sample fewer tokens, or use a config with a longer context"
        )
