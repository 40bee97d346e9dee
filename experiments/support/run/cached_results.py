"""Work in parts, each kept when it is done: a run that was killed goes on with the next.

This is for what is computed in one call, without steps of its own to save; training that has them
goes by `fitting`. Results are numbers and arrays in dicts, which may hold dicts, and come back as
NumPy arrays, the same whether they were computed or read.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from experiments.support.run import runs, tables

Results = dict[str, Any]  # arrays, or dicts of them


def keep(run: runs.Run, name: str, compute: Callable[[], Mapping[str, Any]]) -> Results:
    """What compute() gives, with the bits it was kept with where a run is resumed.

    Raises:
      ValueError: a name in the results holds a slash, which stands between the names of dicts.
    """
    path = path_of(run, name)
    if not path.exists():
        found = _flat(jax.device_get(compute()))
        path.parent.mkdir(exist_ok=True)
        with runs.replacing(path) as file:
            np.savez(file, **found)
    with np.load(path) as kept:
        return traverse_util.unflatten_dict(dict(kept), sep="/")


def each(
    run: runs.Run,
    name: str,
    members: Sequence[str],
    compute: Callable[[str], Mapping[str, Any]],
    shown: Sequence[str] = (),
) -> dict[str, Results]:
    """compute(member) by member, each kept when it is done; means of those `shown` are logged."""
    names = [f"{name}-{i}" for i in range(len(members))]
    done = sum(path_of(run, each).exists() for each in names)
    # All are logged again: the kill may have come between the keeping of one and its line.
    runs.truncate_log(run, name)
    results = {}
    with tables.progress(len(members), name, completed=done) as show:
        for i, member in enumerate(members):
            found = keep(run, names[i], lambda member=member: compute(member))
            means = {part: np.mean(found[part]) for part in shown}
            runs.log(run, name, step=i + 1, member=member, **means)
            if i >= done:
                show(**means)
            results[member] = found
    return results


def stacked(results: Mapping[str, Results]) -> Results:
    """The results of `each` in arrays `[members, ...]`."""
    return jax.tree.map(lambda *rows: np.stack(rows), *results.values())


def path_of(run: runs.Run, name: str) -> pathlib.Path:
    """Where a part is kept."""
    return run.path / "parts" / f"{name.replace(' ', '-')}.npz"


def _flat(results):
    """Maps "outer/inner" to the array there."""
    flat = traverse_util.flatten_dict(results)
    if strangers := [name for place in flat for name in place if "/" in name]:
        raise ValueError(f"results: the name {strangers[0]!r} holds a slash; give it another.")
    return {"/".join(place): np.asarray(array) for place, array in flat.items()}
