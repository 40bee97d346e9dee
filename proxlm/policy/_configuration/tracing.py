"""Checks of a configuration's parts by tracing them on shapes, so that they refuse their settings at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from proxlm import _validation

__all__ = ["PARTS", "trace_parts"]

PARTS = ("advantage", "loss", "length_penalty", "group_filter", "correction", "reward_normalisation")


def trace_parts(config: Any) -> None:
    """Traces the parts of a `PPOConfig` that are the library's own and whose numbers are plain.

    >>> from proxlm.policy import PPOConfig, losses, partial
    >>> PPOConfig(loss=partial(losses.clipped, clip_low=-1.0))
    Traceback (most recent call last):
        ...
    ValueError: clipped: clip_low must be a number in [0, 1], got -1.0.
    """
    for slot in PARTS:
        part = getattr(config, slot)
        numbers, structure = jax.tree.flatten(part)
        own = getattr(getattr(part, "fn", None), "__module__", "").startswith("proxlm.policy.")
        if own and all(isinstance(number, float) for number in numbers):
            try:
                _trace(slot, tuple(numbers), structure, config.group_size)
            except ValueError as error:
                # without JAX's notes on its own traceback
                raise ValueError(*error.args) from None
            except TypeError as error:
                raise _validation.invalid(
                    slot, part, "a part with settings of the right kind", f"{error}."
                ) from None


@functools.cache
def _trace(slot, numbers, structure, group_size):
    """Traces a part on the shapes of one group of two tokens each, so that it checks its settings."""
    part, shape = jax.tree.unflatten(structure, numbers), (group_size, 2)
    x, mask = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.bool_)
    row, valid = jax.ShapeDtypeStruct(shape[:1], jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.bool_)
    data = {
        "advantage": (x, x, mask),
        "loss": (x, x, x, mask),
        "correction": (x, x, mask),
        "length_penalty": (row,),
        "group_filter": (row, valid, valid, row),
        "reward_normalisation": (row, valid),
    }
    constants = {"advantage": (group_size,), "length_penalty": (shape[1],)}
    jax.eval_shape(lambda *arrays: part(*arrays, *constants.get(slot, ())), *data[slot])
