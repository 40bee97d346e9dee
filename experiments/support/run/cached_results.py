"""Caches named results on disk, so that an interrupted run resumes after the last finished one.

For what is computed in one call, without steps of its own to save; training that has them goes by
`supervised`. Results are numbers and arrays in dicts, which may hold dicts, and come back as NumPy
arrays, the same whether they were computed or read.
"""

import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from experiments.support import Refusal
from experiments.support.run import files, processes, runs, tables

Results = dict[str, Any]  # arrays, or dicts of them


def compute_once(run: runs.Run, name: str, compute: Callable[[], Mapping[str, Any]]) -> Results:
    """The result of compute(), read from disk where a resumed run finds it there.

    Raises:
      ValueError: a name in the results holds a slash, which stands between the names of dicts.
      Refusal: the file is damaged.
    """
    path = path_of(run, name)
    if not processes.agreed(path.exists()):
        found = _flat(processes.everywhere(compute()))
        path.parent.mkdir(exist_ok=True)
        with files.replacing(path) as file:
            np.savez(file, **found)  # pyright: ignore[reportArgumentType]
        processes.agreed(None)  # it is there for all
    try:
        with open(path, "rb") as file, np.load(file) as saved:
            return traverse_util.unflatten_dict(dict(saved), sep="/")
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise Refusal(f"{path} is damaged ({error}): remove it, and it is computed again") from error


def compute_each(
    run: runs.Run,
    name: str,
    members: Sequence[str],
    compute: Callable[[str], Mapping[str, Any]],
    shown: Sequence[str] = (),
) -> dict[str, Results]:
    """Member ↦ compute(member), each saved when it is done; means of those `shown` are logged."""
    names = [f"{name}-{i}" for i in range(len(members))]
    done = sum(path_of(run, each).exists() for each in names)
    # All are logged again: the kill may have come between the saving of one and its line.
    runs.truncate_log(run, name)
    results = {}
    with tables.progress(len(members), name, completed=done) as show:
        for i, member in enumerate(members):
            found = compute_once(run, names[i], lambda member=member: compute(member))
            means = {part: np.mean(found[part]) for part in shown}
            runs.log(run, name, step=i + 1, member=member, **means)
            if i >= done:
                show(**means)
            results[member] = found
    return results


def stacked(results: Mapping[str, Results]) -> Results:
    """The results of `compute_each` in arrays `[members, ...]`."""
    return jax.tree.map(lambda *rows: np.stack(rows), *results.values())


def path_of(run: runs.Run, name: str) -> pathlib.Path:
    """The file of a result."""
    return run.path / "parts" / f"{name.replace(' ', '-')}.npz"


def _flat(results):
    """Maps "outer/inner" to the array there."""
    flat = traverse_util.flatten_dict(results)
    if slashed := [name for place in flat for name in place if "/" in name]:
        raise ValueError(f"results: the name {slashed[0]!r} holds a slash; give it another.")
    return {"/".join(place): np.asarray(array) for place, array in flat.items()}
