"""Atomic checkpoints that come back bit for bit, over Orbax.

Orbax writes a step aside and commits it by a rename, so a kill at any moment leaves the previous
step whole. By itself it casts to another dtype without a word, drops weak types, commits every
array to a device, and refuses empty arrays and NumPy scalars; a resume must do none of that. So it
is handed a flat dict of plain arrays, and a description of the state and of the settings travels
with each step and is compared before anything is read, as are the checksums of what was read.
Orbax takes seconds to import, so it is imported on first use.
"""

import contextlib
import logging
import operator
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import chex
import jax

from proxlm import _checkpoint_leaves, _validation, settings

__all__ = ["latest", "restore", "save"]

_KEEP = 2


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
    step = _validation.to_int(0, "checkpoint.save", "Count the steps from 0.", step=step)
    kinds = _checkpoint_leaves.kinds(state)
    arrays = dict(zip(kinds, map(_checkpoint_leaves.as_array, jax.tree.leaves(state)), strict=True))
    about = {
        "config": settings.plain(config),
        "form": kinds,
        "checksums": {name: _checkpoint_leaves.checksum(array) for name, array in arrays.items()},
        "non_finite": [name for name, array in arrays.items() if not _checkpoint_leaves.is_finite(array)],
    }
    folder = _writable(folder)
    with _manager(folder, cleanup=True) as (ocp, manager):
        newest = manager.latest_step()
        if newest is not None:
            before = _read_about(ocp, manager, folder, newest)
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


@_validation.typed
def latest(folder: str | os.PathLike) -> int | None:
    """Returns the newest complete step in a folder, None when there is none.

    >>> latest("no/such/folder") is None
    True
    """
    if not pathlib.Path(folder).is_dir():
        return None
    with _manager(folder) as (_, manager):
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
    with _manager(folder) as (ocp, manager):
        about = _read_about(ocp, manager, folder, step)
        _check_config("checkpoint.restore", folder, about, given)
        if found := settings.differences(about["form"], kinds):
            expected = f"of the form of step {step} in {folder}"
            remedy = "Build the model and optimizer of the saved run, or use another folder."
            found = _validation.Verbatim("; ".join(found))
            raise _validation.invalid("like", found, expected, remedy, "checkpoint.restore")
        arrays = {_slot(i): _checkpoint_leaves.target(leaf) for i, leaf in enumerate(leaves)}
        if stored := _stored(arrays.values()):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
            with _damage_named(manager, folder, step):
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


@contextlib.contextmanager
def _damage_named(manager, folder, step):
    """Turns whatever reading a damaged step raises into one line that names it, and the remedy."""
    try:
        yield
    except Exception as error:
        older = [other for other in manager.all_steps() if other < step]
        remedy = "there is no older one: start anew in another folder"
        if older:
            remedy = f"remove {pathlib.Path(folder) / str(step)} to go on from step {max(older)}"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"step {step} in {folder} is damaged ({reason}); {remedy}.") from error


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


def _writable(folder):
    cause, error = "", None
    try:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        cause = "" if os.access(folder, os.W_OK) else "cannot be written to"
    except (OSError, TypeError) as failure:
        cause, error = f"cannot be made ({getattr(failure, 'strerror', failure)})", failure
    if cause:
        found = _validation.Verbatim(f"{str(folder)!r}, which {cause}")
        raise _validation.invalid(
            "folder", found, "writable", "Choose another.", "checkpoint.save"
        ) from error
    return folder


def _read_about(ocp, manager, folder, step):
    with _damage_named(manager, folder, step):
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if missing := {"config", "form", "checksums", "non_finite"} - set(about):
            raise ValueError(f"its description has no {', '.join(sorted(missing))}")
        return about


@contextlib.contextmanager
def _manager(folder, cleanup=False) -> Iterator[tuple[Any, Any]]:
    """Opens Orbax on a folder, quietly; `cleanup` removes what killed saves left behind.

    Only the writer cleans: a reader that did would remove the step being written beside it.
    """
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=cleanup
    )
    logger.setLevel(max(level, logging.CRITICAL))  # what Orbax logs as an error, it raises too
    try:
        with ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options) as manager:
            yield ocp, manager
    finally:
        logger.setLevel(level)
