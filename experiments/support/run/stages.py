"""Stages that several runs share, and long loops that a kill does not undo.

Stages such as pretraining live in `runs/<name>/cache/`, each under a fingerprint of its settings and
of the stages it stands on.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support import Refusal
from experiments.support.run import files, processes, runs, stopping
from proxlm import checkpoint, settings, sharding

_CONFIG, _DONE = "config.json", "DONE"


class StorageFailure(Refusal):
    """A checkpoint that could not be written; those before it are whole."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its fingerprint, and whether it was found finished."""

    name: str
    path: pathlib.Path
    fingerprint: str
    reused: bool


def stage(
    run: runs.Run,
    name: str,
    config: Any,
    compute: Callable[[pathlib.Path], None],
    depends_on: Sequence[Stage] = (),
) -> Stage:
    """Computes a stage once: `compute(path)` fills its folder, which later runs find and reuse.

    The folder's name carries sha256(settings of the stage, fingerprints of those it depends on),
    so a changed setting recomputes this stage and all that stand on it; blanks, colons and slashes in
    `name` become hyphens. A stage that was killed finds what it had written, as checkpoints for
    `run_chunks`; one that another process computes is waited for. A change of code is not seen.
    """
    name = re.sub(r"[ :/]", "-", name)
    parts = [name, settings.plain(config), [parent.fingerprint for parent in depends_on]]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    path = run.cache / f"{name}-{fingerprint}"
    if processes.agreed((path / _DONE).exists()):
        return Stage(name, path, fingerprint, reused=True)
    path.mkdir(parents=True, exist_ok=True)
    with files.locked(path, wait=True):
        reused = processes.agreed((path / _DONE).exists())
        if not reused:
            files.write_text(path / _CONFIG, json.dumps(parts[1], indent=2) + "\n")
            compute(path)
            files.write_text(path / _DONE, fingerprint + "\n")
            processes.agreed(None)  # it is there for all
    return Stage(name, path, fingerprint, reused)


def run_chunks(
    run_chunk: Callable[[Any, jax.Array], tuple[Any, Any]],
    state: Any,
    num_chunks: int,
    *,
    key: jax.Array,
    checkpoint_folder: str | os.PathLike,
    config: Any,
    every: int = 1,
    on_chunk: Callable[[int, Any], None] = lambda index, metrics: None,
) -> Any:
    """Runs `state, metrics = run_chunk(state, fold_in(key, i))` for i < num_chunks, resumably.

    The state is saved every so many chunks, at the end, and when a signal asks the process to stop.
    A run that finds checkpoints goes on from the newest, and since chunk i's key depends on i alone
    it ends at the bits of a run that was never stopped. `on_chunk(i, metrics)` gets host arrays, while
    the next chunk runs, and so is a checkpoint written;
    chunks after the last checkpoint are run, and reported, again: call
    `truncate_log(run, stage, first_chunk(folder))` before.

    Raises:
      ValueError: bad counts.
      Refusal: checkpoints of another config or key, damaged ones, or one beyond `num_chunks`; or
        parameters that are not finite, of which no checkpoint is made.
    """
    if num_chunks < 1 or every < 1:
        raise ValueError(f"num_chunks={num_chunks} and every={every} must be at least 1.")
    owner = settings.plain(config) | {"chunk_key": jax.random.key_data(key).tolist()}
    start = first_chunk(checkpoint_folder)
    if start > num_chunks:
        raise Refusal(
            f"num_chunks={num_chunks}, but {checkpoint_folder} holds a checkpoint after {start};"
            " ask for as many chunks at least, or use another folder."
        )
    if not (mesh := jax.sharding.get_mesh()).empty:
        state = sharding.put(state, mesh)
    if start:
        state = restore(checkpoint_folder, state, owner)
    before, wait = [], lambda: None
    try:
        for index in range(start, num_chunks):
            with stopping.deferred() as is_asked:
                state, metrics = run_chunk(state, jax.random.fold_in(key, index))
                _report(on_chunk, before)
                before = [(index, metrics)]
                asked, last = processes.largest(is_asked()), index + 1 == num_chunks
                if (index + 1) % every == 0 or last or asked:
                    _check_finite(state, index + 1, checkpoint_folder)
                    _report(on_chunk, before)
                    wait()
                    wait = start_save(checkpoint_folder, index + 1, state, owner)
                # The next chunk hears of what has come since, and after the last nobody would.
                if asked or (last and (asked := processes.largest(is_asked()))):
                    stopping.stop(asked)
    finally:
        wait()
    return state


def _report(on_chunk, chunks):
    """Takes chunks off a list, and gives their metrics on."""
    while chunks:
        index, metrics = chunks.pop(0)
        on_chunk(index, jax.device_get(metrics))


def first_chunk(checkpoint_folder: str | os.PathLike) -> int:
    """The chunk that `run_chunks` would run first: 0, or the number of chunks already saved."""
    return processes.agreed(checkpoint.latest(checkpoint_folder) or 0)


def save(folder: str | os.PathLike, step: int, state: Any, config: Any) -> None:
    """Writes a checkpoint; a refusal of the library and a failure of the disk are one line each."""
    start_save(folder, step, state, config)()


def start_save(folder: str | os.PathLike, step: int, state: Any, config: Any) -> Callable[[], None]:
    """As `save`, but writes while the run goes on; what it gives waits for the end, and fails as `save`."""
    with _refusals(folder, step):
        saving = checkpoint.start_save(folder, step, state, config)

    def wait():
        with _refusals(folder, step):
            saving.wait()

    return wait


@contextlib.contextmanager
def _refusals(folder, step):
    """Turns what a save raises into Refusals, and drops what the threads of the storage print."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except OSError:
        raise
    except ValueError as error:
        if "Error writing" not in str(error):
            raise Refusal(str(error)) from error
        reason = "no space is left" if "No space left" in str(error) else str(error)[:120]
        raise StorageFailure(f"checkpoint {step} of {folder} could not be written: {reason}") from error


def restore(folder: str | os.PathLike, like: Any, config: Any) -> Any:
    """Reads the newest checkpoint of a folder; a damaged one, or one of another config, is a Refusal."""
    try:
        return checkpoint.restore(folder, like, config)
    except ValueError as error:
        raise Refusal(str(error)) from error
    except Exception as error:  # what the storage raises for damaged files is of many kinds
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Refusal(f"the checkpoint in {folder} is damaged ({line}); remove it, or start anew") from error


def _check_finite(state, chunk, folder):
    """Looks at the parameters only: a best loss may well be infinite before the first one."""
    holders = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, "params"))
    params = [node.params for node in holders if hasattr(node, "params")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not _is_finite(leaf):
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            last = f"that after part {saved}" if (saved := first_chunk(folder)) else "that of the start"
            raise Refusal(
                f"the parameters ({name} first) are not finite after part {chunk}; the last good state, "
                f"{last}, is kept in {folder}. Lower the learning rate and start anew"
            )


def _is_finite(leaf):
    if leaf.is_fully_addressable:
        return np.isfinite(np.asarray(leaf, np.float32)).all()
    return bool(jnp.isfinite(leaf).all())
