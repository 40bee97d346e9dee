"""Orbax on a folder of checkpoints: opened, quiet, its writes waited for, its damage named."""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from proxlm import _validation

_KEEP = 2
_running: dict[pathlib.Path, "Saving"] = {}


class Saving:
    """A checkpoint that is being written, by an open manager of its folder.

    >>> Saving(pathlib.Path("steps"), contextlib.ExitStack()).wait()
    """

    def __init__(self, folder: pathlib.Path, manager: contextlib.ExitStack):
        self._folder, self._manager = folder.absolute(), manager
        _running[self._folder] = self

    def wait(self) -> None:
        """Returns when the step is on disk; raises what writing it raised. Once more, it does nothing."""
        _running.pop(self._folder, None)
        self._manager.close()


@contextlib.contextmanager
def opened(folder: str | os.PathLike, cleanup: bool = False) -> Iterator[tuple[Any, Any]]:
    """Opens Orbax on a folder, quietly, when this process has no more to write there; waits in the end.

    `cleanup` removes what killed saves left behind. Only the writer cleans: a reader that did would
    remove the step being written beside it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, opened(folder) as (_, manager):
    ...     manager.all_steps()
    []
    """
    import orbax.checkpoint as ocp

    folder = pathlib.Path(folder).absolute()
    if folder in _running:
        _running[folder].wait()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEEP, enable_async_checkpointing=cleanup, cleanup_tmp_directories=cleanup
    )
    logger, quiet = logging.getLogger("absl"), lambda record: record.levelno >= logging.CRITICAL
    logger.addFilter(quiet)  # what Orbax logs as an error, it raises too
    try:
        with ocp.CheckpointManager(folder, options=options) as manager:
            yield ocp, manager
    finally:
        logger.removeFilter(quiet)


@contextlib.contextmanager
def damage_named(manager: Any, folder: str | os.PathLike, step: int) -> Iterator[None]:
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


def writable(folder: str | os.PathLike) -> pathlib.Path:
    """The folder, made where it is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writable(f"{folder}/run").name
    'run'
    """
    cause, error, path = "", None, pathlib.Path()
    try:
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        cause = "" if os.access(path, os.W_OK) else "cannot be written to"
    except (OSError, TypeError) as failure:
        cause, error = f"cannot be made ({getattr(failure, 'strerror', failure)})", failure
    if cause:
        found = _validation.Verbatim(f"{str(folder)!r}, which {cause}")
        raise _validation.invalid(
            "folder", found, "writable", "Choose another.", "checkpoint.save"
        ) from error
    return path


def read_about(ocp: Any, manager: Any, folder: str | os.PathLike, step: int) -> dict[str, Any]:
    """The description that a step was saved with."""
    with damage_named(manager, folder, step):
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if missing := {"config", "form", "checksums", "non_finite"} - set(about):
            raise ValueError(f"its description has no {', '.join(sorted(missing))}")
        return about
