"""Atomic checkpoints that come back bit for bit, over Orbax.

Orbax writes a step aside and commits it by a rename, so a kill at any moment leaves the previous
step whole. By itself it casts to another dtype without a word, drops weak types, commits every
array to a device, and refuses empty arrays and NumPy scalars; a resume must do none of that. So it
is handed a flat dict of plain arrays, and a description of the state and of the settings travels
with each step and is compared before anything is read, as are the checksums of what was read.
Orbax takes seconds to import, so it is imported on first use.
"""

import contextlib
import operator
import os
import pathlib
from typing import Any

import chex
import jax

from proxlm import _checkpoint_leaves, _checkpoint_storage, _validation, settings
from proxlm._checkpoint_storage import Saving

__all__ = ["Saving", "latest", "restore", "save", "start_save"]


def save(
    folder: str | os.PathLike,
    step: int,
    state: chex.ArrayTree,
    config: Any,
    *,
    allow_non_finite: bool = False,
) -> None:
    """Writes the state at a step; returns when it is on disk, and keeps the newest two steps.

    A leaf that was finite in the newest step and holds NaN or infinity now is refused, so that a
    run that has diverged does not push out its last good state. A leaf that begins as NaN or
    infinity, such as a loss not yet measured, passes.

    Args:
      folder: where the steps of one run live; made when missing.
      step: an integer ≥ 0 that grows from save to save.
      state: a pytree of JAX or NumPy arrays, typed keys, and Python or NumPy numbers.
      config: the settings of the run, a dataclass or a dict; `restore` asks for them again.
      allow_non_finite: also write a state that is no longer finite.

    Raises:
      ValueError: the step is not an integer ≥ 0, or is not after the newest; the folder cannot be
        written, or holds another config; a leaf of the state cannot be stored, or is no longer
        finite.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, 3, {"w": jnp.arange(2)}, {"seed": 0})
    ...     latest(folder)
    3
    """
    start_save(folder, step, state, config, allow_non_finite=allow_non_finite).wait()


def start_save(
    folder: str | os.PathLike,
    step: int,
    state: chex.ArrayTree,
    config: Any,
    *,
    allow_non_finite: bool = False,
) -> Saving:
    """As `save`, but returns when the state may be donated to the next step, and writes while that runs.

    What opens the folder next waits for it, and raises a fault of the disk. Wait also where a program ends.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saving = start_save(folder, 3, {"w": jnp.arange(2)}, {"seed": 0})
    ...     saving.wait()
    ...     latest(folder)
    3
    """
    step = _validation.to_int(0, "checkpoint.save", "Count the steps from 0.", step=step)
    kinds = _checkpoint_leaves.kinds(state)
    arrays = dict(zip(kinds, map(_checkpoint_leaves.as_array, jax.tree.leaves(state)), strict=True))
    about = {
        "config": settings.plain(config),
        "form": kinds,
        "checksums": {name: _checkpoint_leaves.checksum(array) for name, array in arrays.items()},
        "non_finite": [name for name, array in arrays.items() if not _checkpoint_leaves.is_finite(array)],
    }
    folder = _checkpoint_storage.writable(folder)
    with contextlib.ExitStack() as stack:
        ocp, manager = stack.enter_context(_checkpoint_storage.opened(folder, cleanup=True))
        newest = manager.latest_step()
        if newest is not None:
            before = _checkpoint_storage.read_about(ocp, manager, folder, newest)
            _check_config("checkpoint.save", folder, before, about["config"])
            if step <= newest:
                expected = f"an integer above {newest}, the newest step in {folder}"
                remedy = "Restore that one and go on from there, or use another folder."
                raise _validation.invalid("step", step, expected, remedy, "checkpoint.save")
            if not allow_non_finite:
                _check_finite(folder, newest, before["non_finite"], about["non_finite"])
        items = {"about": ocp.args.JsonSave(about)}
        if stored := _stored(arrays.values()):
            items["state"] = ocp.args.StandardSave(stored)
        manager.save(step, args=ocp.args.Composite(**items))
        return Saving(folder, stack.pop_all())


@_validation.typed
def latest(folder: str | os.PathLike) -> int | None:
    """Returns the newest complete step in a folder, None when there is none.

    >>> latest("no/such/folder") is None
    True
    """
    if not pathlib.Path(folder).is_dir():
        return None
    with _checkpoint_storage.opened(folder) as (_, manager):
        return manager.latest_step()


def restore(
    folder: str | os.PathLike, like: chex.ArrayTree, config: Any, step: int | None = None
) -> chex.ArrayTree:
    """Reads a state back, every leaf with the bits, the dtype and the kind it was saved with.

    Args:
      folder: where `save` wrote.
      like: a pytree as the saved one: a fresh state, or `jax.eval_shape` of what makes one. Its
        values are not read; a leaf committed to devices says where the restored one goes.
      config: the settings, which must equal those of the checkpoint.
      step: which step; the newest by default.

    Raises:
      ValueError: no such checkpoint; other settings, each differing field named with both values;
        another shape, dtype or path, each named; a damaged step, with the older one to go on from.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, 1, {"w": jnp.arange(2), "lr": 0.1}, {"seed": 0})
    ...     restore(folder, {"w": jnp.zeros(2, jnp.int32), "lr": 0.0}, {"seed": 0})
    {'lr': 0.1, 'w': Array([0, 1], dtype=int32)}
    """
    given, kinds, leaves = settings.plain(config), _checkpoint_leaves.kinds(like), jax.tree.leaves(like)
    step = _existing_step(folder, step)
    with _checkpoint_storage.opened(folder) as (ocp, manager):
        about = _checkpoint_storage.read_about(ocp, manager, folder, step)
        _check_config("checkpoint.restore", folder, about, given)
        if found := settings.differences(about["form"], kinds):
            expected = f"of the form of step {step} in {folder}"
            remedy = "Build the model and optimizer of the saved run, or use another folder."
            found = _validation.Verbatim("; ".join(found))
            raise _validation.invalid("like", found, expected, remedy, "checkpoint.restore")
        arrays = {_slot(i): _checkpoint_leaves.target(leaf) for i, leaf in enumerate(leaves)}
        if stored := _stored(arrays.values()):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
            with _checkpoint_storage.damage_named(manager, folder, step):
                arrays |= manager.restore(step, args=args)["state"]
                _check_sums(about["checksums"], dict(zip(kinds, arrays.values(), strict=True)))
    values = map(_checkpoint_leaves.as_leaf, arrays.values(), leaves)
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _slot(index):
    return f"{index:06d}"


def _stored(arrays):
    """Slot ↦ array, of those that are not empty, which Orbax refuses."""
    return {_slot(i): array for i, array in enumerate(arrays) if array.size}


def _check_config(function, folder, about, given):
    if found := settings.differences(about["config"], given):
        expected, remedy = f"that of the checkpoints in {folder}", "Use another folder, or the old settings."
        raise _validation.invalid(
            "config", _validation.Verbatim("; ".join(found)), expected, remedy, function
        )


def _check_finite(folder, newest, before, after):
    if lost := [name for name in after if name not in before]:
        more = f" and {len(lost) - 1} more leaves that are" if len(lost) > 1 else ", which is"
        found = _validation.Verbatim(f"{lost[0]}{more} not")
        expected = f"finite as step {newest} in {folder} was"
        remedy = (
            "That step stays the newest: restore it and take a smaller learning rate or clip the gradient, "
            "or save with allow_non_finite=True."
        )
        raise _validation.invalid("state", found, expected, remedy, "checkpoint.save")


def _check_sums(expected, arrays):
    for name, array in arrays.items():
        found = _checkpoint_leaves.checksum(array)
        if None not in (found, expected[name]) and found != expected[name]:
            raise ValueError(f"the checksum of {name} is {found}, and {expected[name]} was written")


def _existing_step(folder, step):
    _validation.integer(0, "checkpoint.restore", step=step)
    newest = latest(folder)
    if newest is None:
        found = _validation.Verbatim(f"{str(folder)!r}, which holds no checkpoint")
        remedy = "Start anew, or name the folder of one."
        raise _validation.invalid("folder", found, "that of checkpoints", remedy, "checkpoint.restore")
    if step is not None and not (pathlib.Path(folder) / str(operator.index(step))).is_dir():
        expected = f"a step in {folder}, whose newest is {newest}"
        raise _validation.invalid("step", step, expected, "Restore that.", "checkpoint.restore")
    return newest if step is None else operator.index(step)
