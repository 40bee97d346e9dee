"""Settings of sampling: the distribution of a token, and the tokens that end a response."""

import dataclasses
import operator
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from proxlm import _validation

__all__ = [
    "NUMBERS",
    "SamplingConfig",
    "as_greedy",
    "check_stops",
    "check_tokens",
    "is_stop",
    "stop_tokens",
    "untruncated",
]


# Of all rows and tokens, and traced.
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Settings of a token's distribution. Temperature, top-p and min-p may be traced; None switches one off.

    Attributes:
      temperature: divides the logits; > 0.
      logit_bias: added to the logits: {token: number}, or an array `[V]`; may be traced.
      repetition_penalty: > 0; divides the positive logits of tokens that the row has before, prompt
        included, and multiplies the negative ones (Keskar et al. 2019); may be traced.
      top_p: keep the fewest most likely tokens that hold this much probability, in (0, 1].
      min_p: keep the tokens at least this likely relative to the likeliest, in [0, 1].
      top_k: keep the k most likely (static).
      greedy: always take the most likely token, whatever the rest says (static).
      stop_token: the token, or a collection of tokens, any of which ends a response and is its last
        (static).
      min_new_tokens: tokens of a response that come before a stop token may (static).
      banned_tokens: a collection of tokens that are never drawn (static).

    Ties at a threshold are all kept. The order is bias, repetition, bans, temperature, top-k, top-p,
    min-p. Scoring follows all of them, and so does the reference up to the temperature. Traced values
    cannot be checked.

    >>> SamplingConfig(temperature=0.0)
    Traceback (most recent call last):
        ...
    ValueError: SamplingConfig: temperature must be a number > 0, got 0.0. For the likeliest token ...
    >>> SamplingConfig(stop_token={7, 2}).stop_token
    (2, 7)
    """

    temperature: float | jax.Array = 1.0
    top_p: float | jax.Array | None = None
    min_p: float | jax.Array | None = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    greedy: bool = dataclasses.field(default=False, metadata={"static": True})
    stop_token: int | Collection[int] | None = dataclasses.field(default=None, metadata={"static": True})
    logit_bias: Mapping[int, float | jax.Array] | jax.Array | None = None
    repetition_penalty: float | jax.Array | None = None
    min_new_tokens: int = dataclasses.field(default=0, metadata={"static": True})
    banned_tokens: Collection[int] | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        """Checks the values that are known, and sorts several stop tokens into a tuple."""
        for name in NUMBERS:
            number = getattr(self, name)
            if isinstance(number, str | bytes | list | dict | set | bool):
                raise _validation.invalid(name, number, "a number", function="SamplingConfig")
        numbers = lambda **fields: {k: x for k, x in fields.items() if isinstance(x, _validation.NUMBERS)}
        greedy = "For the likeliest token use greedy=True."
        known = numbers(temperature=self.temperature)
        _validation.positive("SamplingConfig", greedy, **known)
        _validation.finite("SamplingConfig", "A large one is as good as uniform.", **known)
        shares = numbers(top_p=self.top_p, min_p=self.min_p)
        _validation.within(0, 1, "SamplingConfig", "None is off.", **shares)
        above = numbers(top_p=self.top_p, repetition_penalty=self.repetition_penalty)
        _validation.positive("SamplingConfig", "None is off.", **above)
        _validation.integer(1, "SamplingConfig", "None is off.", top_k=self.top_k)
        _validation.one_of((False, True), "SamplingConfig", greedy=self.greedy)
        object.__setattr__(self, "stop_token", _stop_tokens(self.stop_token))
        banned = None if self.banned_tokens is None else _token_set("banned_tokens", self.banned_tokens)
        object.__setattr__(self, "banned_tokens", banned)
        _validation.to_int(0, "SamplingConfig", min_new_tokens=self.min_new_tokens)
        if self.min_new_tokens and self.stop_token is None:
            remedy = "Nothing ends a response early: give a stop_token, or leave it out."
            raise _validation.invalid(
                "min_new_tokens", self.min_new_tokens, "0 without a stop token", remedy, "SamplingConfig"
            )
        if isinstance(self.logit_bias, str | bytes | bool | int | float | list | tuple | set):
            expected = "a dict {token: number} or an array [V]"
            raise _validation.invalid("logit_bias", self.logit_bias, expected, function="SamplingConfig")
        if isinstance(self.logit_bias, Mapping):
            _token_set("logit_bias", self.logit_bias)


def _stop_tokens(stop):
    """None, an integer, or a sorted tuple of several."""
    if stop is None or _validation.is_integer(stop):
        return None if stop is None else operator.index(stop)
    first, *others = _token_set("stop_token", stop, "an integer, ")
    return (first, *others) if others else first


def _token_set(name, tokens, first=""):
    """A sorted tuple of distinct integers."""
    given = list(tokens) if isinstance(tokens, Collection) and not isinstance(tokens, str | bytes) else []
    if not given or not all(map(_validation.is_integer, given)):
        expected = f"{first}a collection of integers, or None"
        raise _validation.invalid(name, tokens, expected, function="SamplingConfig")
    return tuple(sorted({operator.index(token) for token in given}))


def check_tokens(sampling: SamplingConfig, vocab_size: int) -> None:
    """Raises ValueError when a token of the settings is not in the vocabulary, or all of it is banned.

    >>> check_tokens(SamplingConfig(stop_token=15), vocab_size=16)
    """
    banned, bias = sampling.banned_tokens or (), sampling.logit_bias
    biased = tuple(bias) if isinstance(bias, Mapping) else ()
    for name, tokens in {
        "stop_token": stop_tokens(sampling),
        "banned_tokens": banned,
        "logit_bias": biased,
    }.items():
        for token in tokens:
            if not 0 <= token < vocab_size:
                expected = f"from 0 to {vocab_size - 1}, the vocabulary, or None"
                raise _validation.invalid(name, token, expected)
    if bias is not None and not isinstance(bias, Mapping) and jnp.shape(bias) != (vocab_size,):
        raise _validation.invalid("logit_bias.shape", jnp.shape(bias), f"({vocab_size},), the vocabulary")
    early = stop_tokens(sampling) if sampling.min_new_tokens else ()
    if len({*banned, *early}) >= vocab_size:
        raise _validation.invalid("banned_tokens", banned, "fewer than the vocabulary")


def check_stops(function: str, sampling: SamplingConfig, num_tokens: int) -> None:
    """Raises ValueError for a stop token that no response of `num_tokens` can reach.

    >>> check_stops("make_actor", SamplingConfig(stop_token=1, min_new_tokens=3), 4)
    """
    if sampling.min_new_tokens >= num_tokens:
        expected = f"less than num_tokens={num_tokens}"
        remedy = "No response could end: allow more tokens, or leave the stop token out."
        raise _validation.invalid("min_new_tokens", sampling.min_new_tokens, expected, remedy, function)


def stop_tokens(sampling: SamplingConfig) -> tuple[int, ...]:
    """The stop tokens as a tuple.

    >>> stop_tokens(SamplingConfig(stop_token=3)), stop_tokens(SamplingConfig())
    ((3,), ())
    """
    stop = sampling.stop_token
    return () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)


def is_stop(tokens: jax.Array, sampling: SamplingConfig) -> jax.Array:
    """Mask of the tokens that end a response: integers `[...]` -> bool `[...]`.

    >>> is_stop(jnp.array([1, 2, 3]), SamplingConfig(stop_token={3, 1})).tolist()
    [True, False, True]
    """
    found = jnp.zeros(tokens.shape, bool)
    for token in stop_tokens(sampling):
        found |= tokens == token
    return found


def untruncated(sampling: SamplingConfig) -> SamplingConfig:
    """The settings without greediness and truncation: those of the reference's distribution.

    >>> untruncated(SamplingConfig(top_k=3, temperature=0.5)) == SamplingConfig(temperature=0.5)
    True
    """
    return dataclasses.replace(sampling, greedy=False, top_k=None, top_p=None, min_p=None)


def as_greedy(sampling: SamplingConfig) -> SamplingConfig:
    """The settings with the likeliest token for the drawn one.

    >>> as_greedy(SamplingConfig(stop_token=3)).greedy
    True
    """
    return dataclasses.replace(sampling, greedy=True)
