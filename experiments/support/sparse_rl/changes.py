"""Measures of what training has changed: how many weights, in which precision, where, in how many bytes."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.run import processes
from proxlm import lm


@jax.jit
def counts(start: Any, before: Any, after: Any) -> dict[str, jax.Array]:
    """Weights that differ from those of a step before and from the start, as they are and in bfloat16."""
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    return {
        "moved": lm.delta.count(before, after),
        "moved_since_start": lm.delta.count(start, after),
        "bfloat16_moved": lm.delta.count(half(before), half(after)),
        "bfloat16_moved_since_start": lm.delta.count(half(start), half(after)),
    }


@jax.jit
def cut(start: Any, after: Any, share: float) -> Any:
    """The parameters with no more than a share of their changes, the largest."""
    change = jax.tree.map(jnp.subtract, after, start)
    least = lm.delta.strength(change, share)
    return jax.tree.map(lambda x, y, d: jnp.where(jnp.abs(d) > least, y, x), start, after, change)


def by_leaf(start: Any, after: Any) -> dict[str, np.ndarray]:
    """Path ↦ the share of weights that differ in each trained layer, `[k]`."""
    rows = jax.tree_util.tree_leaves_with_path(jax.tree.map(_share, start, after))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): processes.everywhere(x) for path, x in rows
    }


def save(path: pathlib.Path, start: Any, after: Any) -> int:
    """Writes the delta, by the first process alone, and reads it back to the same bits; its bytes."""
    start, after = processes.everywhere((start, after))
    return processes.decided(lambda: _save(path, start, after))


def save_patch(path: pathlib.Path, model: lm.Pretrained, after: Any) -> int:
    """Writes, by the first process alone, what changed as samplers in bfloat16 take it; its bytes."""
    base, after = processes.everywhere((model.params, after))

    def write():
        lm.delta.save_patch(path, base, after, model.config, dtype="bfloat16")
        return path.stat().st_size

    return processes.decided(write)


def _save(path, start, after):
    lm.delta.save(path, start, after)
    again = lm.delta.apply(start, path)
    if int(lm.delta.count(after, again)):
        raise AssertionError(f"{path} does not give the bits that it was made of")
    return path.stat().st_size


@jax.jit
def _share(old, new):
    return jnp.mean(old != new, axis=tuple(range(1, old.ndim)))
