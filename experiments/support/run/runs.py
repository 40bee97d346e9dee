"""Run folders, cached stages, and long loops that a kill does not undo.

A run lives in `runs/<name>/<time>/` and holds config.json, metrics.jsonl and whatever its
experiment adds. Stages that several runs share, such as pretraining, live in
`runs/<name>/cache/`, each under a fingerprint of its settings and of the stages it stands on.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from experiments.support.data import corpora
from experiments.support.run import configs
from proxlm import checkpoint, settings

_CONFIG, _METRICS, _DONE = "config.json", "metrics.jsonl", "DONE"


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run an experiment; none of this changes a result."""

    smoke: bool = False
    resume: bool = False
    runs: str = "runs"
    data: str = str(corpora.WHEELS)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of an experiment; `reused` when it continues an older folder."""

    name: str
    path: pathlib.Path
    reused: bool = False

    @property
    def cache(self) -> pathlib.Path:
        """Where stages are kept that the runs of this name share."""
        return self.path.parent / "cache"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its fingerprint, and whether it was found finished."""

    name: str
    path: pathlib.Path
    fingerprint: str
    reused: bool


def open_run(name: str, config: Any, root: str | os.PathLike = "runs", resume=False) -> Run:
    """Makes the folder of a new run and writes its config; with `resume`, finds the old folder.

    Resuming takes the newest run of this name whose config equals the given one, and mends a log
    whose last line a kill cut in two. Leave out of `config` what may change, as the resume flag.

    Raises:
      ValueError: by `configs.check`; no root to write to; nothing to resume, or another config.
    """
    configs.check(config)
    given, folder = settings.plain(config), pathlib.Path(root) / name
    if resume:
        run = Run(name, _newest_with(folder, given), reused=True)
        _rewrite_log(run, read_log(run))
        return run
    path = _new_folder(folder)
    _write(path / _CONFIG, json.dumps(given, indent=2) + "\n")
    return Run(name, path)


def check_run(name: str, config: Any, root: str | os.PathLike = "runs", resume=False) -> None:
    """Raises what `open_run` would, and makes nothing: to be asked before the data are prepared."""
    configs.check(config)
    path = pathlib.Path(root).absolute() / name
    if resume:
        _newest_with(path, settings.plain(config))
        return
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "cannot be written to" if place.is_dir() else "is a file"
        raise ValueError(f"runs: {str(path)!r} cannot be made, as {place} {what}; give another.")


@contextlib.contextmanager
def compilation(quick: bool):
    """Leaves out most of XLA's optimisations if `quick`: a smoke run does little but compile."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", quick or before)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write to, so that a kill leaves the old one or the whole new one, never a part."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def log(run: Run, stage: str, **metrics: Any) -> None:
    """Appends one JSON line to the run's metrics; numbers keep six digits, NaN becomes "nan"."""
    row = {"stage": stage} | {name: _rounded(value) for name, value in metrics.items()}
    with open(run.path / _METRICS, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_log(run: Run, stage: str | None = None) -> list[dict[str, Any]]:
    """Reads the metrics of a run, of one stage if named; a line cut by a kill is left out."""
    path = run.path / _METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if stage is None or row["stage"] == stage]


def truncate_log(run: Run, stage: str, step: int = -1) -> None:
    """Drops what a stage logged at or after a step, or all of it, which a resume logs again."""
    is_old = lambda row: row["stage"] != stage or row.get("step", -1) < step
    _rewrite_log(run, [row for row in read_log(run) if is_old(row)])


def stage(
    run: Run,
    name: str,
    config: Any,
    compute: Callable[[pathlib.Path], None],
    depends_on: Sequence[Stage] = (),
) -> Stage:
    """Computes a stage once: `compute(path)` fills its folder, which later runs find and reuse.

    The folder's name carries sha256(settings of the stage, fingerprints of those it depends on),
    so a changed setting recomputes this stage and all that stand on it. A stage that was killed
    finds what it had written, as checkpoints for `run_chunks`. A change of code is not seen.
    """
    parts = [name, settings.plain(config), [parent.fingerprint for parent in depends_on]]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    path = run.cache / f"{name}-{fingerprint}"
    if (path / _DONE).exists():
        return Stage(name, path, fingerprint, reused=True)
    path.mkdir(parents=True, exist_ok=True)
    _write(path / _CONFIG, json.dumps(parts[1], indent=2) + "\n")
    compute(path)
    _write(path / _DONE, fingerprint + "\n")
    return Stage(name, path, fingerprint, reused=False)


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

    The state is saved every so many chunks and at the end. A run that finds checkpoints goes on
    from the newest, and since chunk i's key depends on i alone it ends at the bits of a run that
    was never stopped. `on_chunk(i, metrics)` gets host arrays; chunks after the last checkpoint
    are run, and reported, again: call `truncate_log(run, stage, first_chunk(folder))` before.

    Raises:
      ValueError: bad counts; checkpoints of another config or key, or beyond `num_chunks`.
    """
    if num_chunks < 1 or every < 1:
        raise ValueError(f"num_chunks={num_chunks} and every={every} must be at least 1.")
    owner = settings.plain(config) | {"chunk_key": jax.random.key_data(key).tolist()}
    start = first_chunk(checkpoint_folder)
    if start > num_chunks:
        raise ValueError(
            f"num_chunks={num_chunks}, but {checkpoint_folder} holds a checkpoint after {start};"
            " ask for as many chunks at least, or use another folder."
        )
    if start:
        state = checkpoint.restore(checkpoint_folder, state, owner)
    for index in range(start, num_chunks):
        state, metrics = run_chunk(state, jax.random.fold_in(key, index))
        on_chunk(index, jax.device_get(metrics))
        if (index + 1) % every == 0 or index + 1 == num_chunks:
            checkpoint.save(checkpoint_folder, index + 1, state, owner)
    return state


def first_chunk(checkpoint_folder: str | os.PathLike) -> int:
    """The chunk that `run_chunks` would run first: 0, or the number of chunks already saved."""
    return checkpoint.latest(checkpoint_folder) or 0


def _new_folder(folder):
    while True:
        path = folder / datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(
                f"runs: {str(path)!r} cannot be made ({error.strerror}); give another folder."
            ) from error


def _newest_with(folder, given):
    paths = sorted((path.parent for path in folder.glob(f"[0-9]*/{_CONFIG}")), reverse=True)
    if not paths:
        raise ValueError(f"resume: there is no run in {folder}; start one without resume.")
    configs = [json.loads((path / _CONFIG).read_text()) for path in paths]
    found = [settings.differences(saved, given) for saved in configs]
    for path, differing in zip(paths, found, strict=True):
        if not differing:
            return path
    raise ValueError(
        f"resume: no run in {folder} has this config. The newest, {paths[0].name}, differs in"
        f" {'; '.join(found[0])}. Give its settings, or start anew without resume."
    )


def _rounded(value):
    if isinstance(value, str | bool | int | None):
        return value
    array = np.asarray(value)
    if array.ndim:
        return [_rounded(item) for item in array]
    if array.dtype.kind in "biu":
        return array.item()
    number = float(array)
    return float(f"{number:.6g}") if np.isfinite(number) else str(number)


def _rewrite_log(run, rows):
    if (run.path / _METRICS).exists():
        _write(run.path / _METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def _write(path, text):
    with replacing(path) as file:
        file.write(text.encode())
