"""Prompts of an iteration: from a function, an iterator or a loader; repeated, and for the reward."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.policy import protocols
from proxlm.policy._configuration.config import PPOConfig

__all__ = ["TokensAndMask", "arrays_of", "check", "check_pure", "for_reward", "is_arrays", "repeat", "source"]

_FIELDS = (
    ("tokens", jnp.integer, "an array of integers [B, P]"),
    ("mask", jnp.bool_, "an array of bool [B, P], or None"),
)
_HOST = "For a loader or other Python that changes take ppo.make_host_step, which calls it every iteration."


def source(prompts: protocols.PromptSource) -> Callable[[jax.Array], Any]:
    """A function of the key that gives the next prompts, for a loop in Python.

    >>> draw = source(["first", "second"])
    >>> [draw(None) for _ in range(3)]
    ['first', 'second', 'first']
    """
    if callable(prompts):
        return prompts
    if isinstance(prompts, str) or hasattr(prompts, "_fields") or not hasattr(prompts, "__iter__"):
        expected = "a function of a key, an iterator or a loader"
        raise _validation.invalid(
            "prompts", _kind(prompts), expected, "Write `lambda key: prompts`.", "make_host_step"
        )
    iterator = iter(prompts)

    def draw(_):
        nonlocal iterator
        try:
            return next(iterator)
        except StopIteration:
            pass
        iterator = iter(prompts)
        try:
            return next(iterator)
        except StopIteration:
            remedy = "Give a loader, which can begin again, or one that does not end."
            expected = "an iterator with prompts left"
            raise _validation.invalid("prompts", _kind(prompts), expected, remedy, "make_host_step") from None

    return draw


def check_pure(prompts: Any) -> None:
    """Raises ValueError for prompts that a function traced once would freeze.

    >>> check_pure(iter([]))
    Traceback (most recent call last):
        ...
    ValueError: make_step: prompts must be a pure function of a key, got a list_iterator. ...
    """
    expected = "a pure function of a key"
    if not callable(prompts):
        raise _validation.invalid("prompts", _kind(prompts), expected, _HOST, "make_step")
    try:
        pure = _validation.is_pure(prompts, jax.random.key(0))
    except TypeError as error:
        kind = "a pure function of a key to arrays"
        raise _validation.invalid("prompts", _kind(prompts), kind, _HOST, "make_step") from error
    if not pure:
        expected += ": called twice it gave two batches"
        raise _validation.invalid("prompts", _kind(prompts), expected, _HOST, "make_step")


def check(prompts: Any) -> None:
    """Raises ValueError for prompts that are no rows of tokens with a mask.

    >>> check({"tokens": jnp.zeros((2, 3), int)})
    Traceback (most recent call last):
        ...
    ValueError: prompts must be a NamedTuple of tokens [B, P] and mask, as lm.Prompts, got ...
    """
    if isinstance(prompts, Iterator) or not (hasattr(prompts, "tokens") and hasattr(prompts, "mask")):
        expected = "a NamedTuple of tokens [B, P] and mask, as lm.Prompts"
        raise _validation.invalid("prompts", _kind(prompts), expected, "Further fields are for the reward.")
    for name, kind, expected in _FIELDS:
        x = getattr(prompts, name)
        if name == "mask" and x is None:
            continue
        is_array = hasattr(x, "dtype")
        rows = is_array and x.ndim == 2 and len(x) > 0 and jnp.issubdtype(x.dtype, kind)
        if not rows or (name == "mask" and x.shape != prompts.tokens.shape):
            given = _validation.Verbatim(f"{x.dtype} of shape {x.shape}") if is_array else _kind(x)
            remedy = "A row a prompt, padded on the left."
            raise _validation.invalid(f"prompts.{name}", given, expected, remedy)


def repeat(prompts: Any, group_size: int) -> Any:
    """Prompts with every row as often as it is answered, side by side.

    >>> repeat(jnp.array([1, 2]), 2).tolist()
    [1, 1, 2, 2]
    """
    if group_size == 1:
        return prompts
    return jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=0), prompts)


def for_reward(prompts: Any, config: PPOConfig) -> tuple[Any, ...]:
    """The prompts as the reward's second argument, a row per row of the samples; or nothing.

    >>> for_reward(jnp.zeros(3), PPOConfig())
    ()
    """
    fields = getattr(prompts, "_fields", None) or getattr(prompts, "__dataclass_fields__", ())
    if not set(fields) - {"tokens", "mask"}:
        return ()
    if is_arrays(prompts):
        rows = repeat(prompts, config.group_size)
        if config.greedy_baseline:
            rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), rows, prompts)
        return (rows,)
    return (type(prompts)(**{name: _rows(getattr(prompts, name), config) for name in fields}),)


def _rows(x, config):
    """Ordinary Python per prompt, once per row of the samples: arrays, lists, and dicts of these."""
    if x is None:
        return None
    if isinstance(x, dict):
        return {name: _rows(part, config) for name, part in x.items()}
    rows = [row for row in x for _ in range(config.group_size)] + (list(x) if config.greedy_baseline else [])
    return np.asarray(rows) if hasattr(x, "dtype") else rows


class TokensAndMask(NamedTuple):
    """The arrays of prompts whose other fields are ordinary Python, such as strings."""

    tokens: Any
    mask: Any = None


def arrays_of(prompts: Any) -> Any:
    """Prompts as a jitted function can take them: without fields that are no arrays.

    >>> arrays_of(TokensAndMask(jnp.zeros((2, 3), int))).mask is None
    True
    """
    return prompts if is_arrays(prompts) else TokensAndMask(prompts.tokens, prompts.mask)


def is_arrays(tree: Any) -> bool:
    """Whether all leaves of a pytree are arrays that JAX knows, of no texts or other objects.

    >>> is_arrays((jnp.zeros(2), np.zeros(2))), is_arrays(["right"]), is_arrays(np.array(["right"]))
    (True, False, False)
    """
    of_python = lambda x: isinstance(x, np.ndarray) and x.dtype.kind in "OSU"
    return all(isinstance(x, np.ndarray | jax.Array) and not of_python(x) for x in jax.tree.leaves(tree))


def _kind(prompts):
    return _validation.Verbatim(f"a {type(prompts).__name__}")
