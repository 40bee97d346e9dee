"""Deltas of fine-tuning as small files: low-rank factors, or places with their new values.

A delta is a dict of NumPy arrays: `path:left:i` and `path:right:i` for the i-th matrix of a leaf,
`path:index` and `path:value` for single weights, `path:whole` for a leaf that is better kept so.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from experiments.support import Refusal
from experiments.support.run import files

Delta = dict[str, np.ndarray]

# The axes that are rows and columns of a leaf's matrices; an axis before them counts these.
MATRICES = {
    "embedding/kernel": ((0,), (1,)),
    "qkv/kernel": ((1,), (2, 3)),
    "out/kernel": ((1, 2), (3,)),
    "gate_up/kernel": ((1,), (2, 3)),
    "down/kernel": ((1,), (2,)),
}


def axes_of(path: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The rows and columns of the leaf at a path; None for what is no matrix."""
    return next((axes for end, axes in MATRICES.items() if path.endswith(end)), None)


def by_path(params: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def sparse(params: Any, anchor: Any) -> Delta:
    """The weights that differ from the anchor's, with their bits."""
    delta = {}
    for path, new, old in _pairs(params, anchor):
        places = np.flatnonzero(new != old).astype(np.int32)
        if 2 * len(places) >= new.size:
            delta[f"{path}:whole"] = new
        elif len(places):
            delta |= {f"{path}:index": places, f"{path}:value": new.ravel()[places]}
    return delta


def low_rank(params: Any, anchor: Any, ranks: Mapping[str, Any] | None = None) -> Delta:
    """Factors of every matrix's change; what is no matrix goes in by its changed weights.

    A singular value counts if it is more than the rounding of the params makes, or as many of the
    largest as `ranks` says: path ↦ integers `[matrices]`.
    """
    delta = {}
    for path, new, old in _pairs(params, anchor):
        if axes_of(path) is None:
            delta |= sparse({path: new}, {path: old})
            continue
        u, sizes, v = factors(path, new, old)
        kept = ranks[path] if ranks else np.sum(sizes > rounding(new), axis=1)
        if sum(kept) * (u.shape[1] + v.shape[2]) >= new.size:
            delta[f"{path}:whole"] = new
            continue
        for i, r in enumerate(kept):
            delta[f"{path}:left:{i}"] = u[i, :, :r] * sizes[i, :r]
            delta[f"{path}:right:{i}"] = v[i, :r]
    return delta


def truncated(params: Any, anchor: Any, most: int) -> Delta:
    """A low-rank delta of at most so many bytes: the largest singular values, of all matrices."""
    changes = {p: factors(p, n, o) for p, n, o in _pairs(params, anchor) if axes_of(p)}
    none = {path: np.zeros(len(sizes), int) for path, (_, sizes, _) in changes.items()}
    rest = size({k: v for k, v in low_rank(params, anchor, none).items() if "left" not in k})
    ranks, values = dict(none), np.concatenate([s.ravel() for _, s, _ in changes.values()])
    cost = np.concatenate([np.full(s.size, 4 * (u.shape[1] + v.shape[2])) for u, s, v in changes.values()])
    order = np.argsort(-values)
    kept = order[rest + np.cumsum(cost[order]) <= most]
    chosen = np.isin(np.arange(len(values)), kept)
    for path, (_, sizes, _) in changes.items():
        ranks[path], chosen = (chosen[: sizes.size].reshape(sizes.shape).sum(axis=1), chosen[sizes.size :])
    return low_rank(params, anchor, ranks)


def largest(params: Any, anchor: Any, most: int) -> Delta:
    """A sparse delta of about so many bytes: the largest changes of single weights."""
    pairs = _pairs(params, anchor)
    if most >= size(by_path(params)):
        return sparse(params, anchor)
    changes = np.sort(np.concatenate([np.abs(new - old).ravel() for _, new, old in pairs]))
    least = changes[-min(len(changes), most // 8)] if most >= 8 else np.inf
    kept = {path: np.where(np.abs(new - old) >= least, new, old) for path, new, old in pairs}
    return sparse(kept, {path: old for path, _, old in pairs})


def factors(path: str, new: np.ndarray, old: np.ndarray):
    """The singular value decomposition of the change of each matrix of a leaf."""
    return np.linalg.svd(_matrices(path, new - old), full_matrices=False)


def rounding(new: np.ndarray) -> float:
    """About the largest singular value that the rounding of such params can make."""
    return 8 * np.finfo(new.dtype).eps * np.abs(new).max() * math.sqrt(max(new.shape))


def apply(anchor: Any, delta: Delta) -> Any:
    """The params that the delta was made of: to the bit for single weights, else to rounding.

    Raises:
      ValueError: the delta names a leaf that the anchor lacks, or does not fit its shape.
    """
    leaves = by_path(anchor)
    for name in delta:
        if name.split(":")[0] not in leaves:
            raise ValueError(
                f"delta: {name!r} is of no leaf of the anchor, which has {', '.join(leaves)}: give "
                "the params that the delta was made against"
            )

    def changed(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        own = {k.removeprefix(f"{path}:"): v for k, v in delta.items() if k.split(":")[0] == path}
        try:
            return jnp.asarray(_changed(path, np.array(leaf), own))
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(
                f"delta: what it has for {path} does not fit a leaf of shape {np.shape(leaf)} "
                f"({error}): give the params that the delta was made against"
            ) from error

    return jax.tree_util.tree_map_with_path(changed, anchor)


def save(path: str | os.PathLike, delta: Delta) -> int:
    """Writes a delta as safetensors; returns the size of the file in bytes."""
    path = pathlib.Path(path)
    with files.replacing(path) as file:
        file.write(safetensors.numpy.save(delta))
    return path.stat().st_size


def load(path: str | os.PathLike) -> Delta:
    """Reads a delta.

    Raises:
      Refusal: the file is damaged.
    """
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise Refusal(f"{path} is damaged ({error}): write the delta again") from error


def size(delta: Delta) -> int:
    """Bytes of the arrays of a delta."""
    return sum(array.nbytes for array in delta.values())


def _pairs(params, anchor):
    """Lists path, new leaf and old leaf."""
    new, old = by_path(params), by_path(anchor)
    shapes = [{path: leaf.shape for path, leaf in leaves.items()} for leaves in (new, old)]
    if shapes[0] != shapes[1]:
        odd = sorted(p for p in new.keys() | old.keys() if shapes[0].get(p) != shapes[1].get(p))
        raise ValueError(f"anchor: {', '.join(odd)} differ in shape from the params; give the start")
    return [(path, new[path], old[path]) for path in new]


def _matrices(path, x):
    """A leaf as a stack of matrices `[N, rows, columns]`."""
    sizes = [math.prod(x.shape[i] for i in axes) for axes in axes_of(path) or ()]
    return x.reshape(-1, *sizes)


def _changed(path, leaf, own):
    if "whole" in own:
        return own["whole"].reshape(leaf.shape)
    if "index" in own:
        leaf.ravel()[own["index"]] = own["value"]
        return leaf
    if not own:
        return leaf
    matrices = _matrices(path, leaf)
    change = [own[f"left:{i}"] @ own[f"right:{i}"] for i in range(len(matrices))]
    return (matrices + np.stack(change)).reshape(leaf.shape)
