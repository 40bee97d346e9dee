"""The metrics of a run as JSON lines: written, read back, and loaded with all else into arrays."""

import contextlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.support import Refusal
from experiments.support.run import _folders, files, processes

METRICS = "metrics.jsonl"


def log(run: Any, stage: str, **metrics: Any) -> None:
    """Appends one JSON line to the run's metrics; numbers keep six digits, NaN becomes "nan"."""
    if not processes.is_first():
        return
    row = {"stage": stage} | {name: _rounded(value) for name, value in metrics.items()}
    with open(run.path / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    if run.tracker and "step" in metrics:
        run.tracker(stage, metrics["step"], {name: x for name, x in metrics.items() if name != "step"})


def read_log(run: Any, stage: str | None = None) -> list[dict[str, Any]]:
    """Reads the metrics of a run, of one stage if named; a line cut by a kill is left out.

    Raises:
      Refusal: a line is damaged, with the file and the number of the line.
    """
    processes.agreed(None)  # all that the first has logged is there
    return [row for row in _rows(run.path / METRICS) if stage in (None, row["stage"])]


def truncate_log(run: Any, stage: str | None = None, step: int = -1) -> None:
    """Drops what a stage logged at or after a step, or all of it, which a resume logs again.

    Without a stage it only mends a log whose last line a kill cut in two.
    """
    if processes.is_first() and (run.path / METRICS).exists():
        is_old = lambda row: row["stage"] != stage or row.get("step", -1) < step
        rows = [row for row in _rows(run.path / METRICS) if is_old(row)]
        files.write_text(run.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


class Record(NamedTuple):
    """A run that was read back.

    Attributes:
      name: of the experiment.
      path: its folder.
      about: when it started, at which commit, whether as a smoke run.
      config: its configuration.
      numbers: of its report; empty before its end.
      metrics: stage ↦ name ↦ steps `[N]` and values `[N, ...]`, of each number that was logged.
    """

    name: str
    path: pathlib.Path
    about: dict[str, Any]
    config: dict[str, Any]
    numbers: dict[str, Any]
    metrics: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


def load(path: str | os.PathLike) -> Record:
    """Reads a run's folder into arrays.

    Raises:
      Refusal: it is not the folder of a run, or a file in it is damaged.
    """
    path = pathlib.Path(path)
    try:
        about, config = (_folders.read_json(path / name) for name in (_folders.ABOUT, _folders.CONFIG))
        done = path / "numbers.json"
        numbers = _folders.read_json(done) if done.exists() else {}
    except (OSError, ValueError) as error:
        raise Refusal(
            f"{path} is not the folder of a run ({error}); give runs/<experiment>/<time>"
        ) from error
    found: dict[str, dict[str, list]] = {}
    for row in _rows(path / METRICS):
        for name, value in row.items():
            if name not in ("stage", "step") and "step" in row:
                found.setdefault(row["stage"], {}).setdefault(name, []).append((row["step"], value))
    metrics = {stage: dict(_arrays(series)) for stage, series in found.items()}
    return Record(path.parent.name, path, about, config, numbers, metrics)


def _arrays(series):
    for name, pairs in series.items():
        steps, values = zip(*pairs, strict=True)
        with contextlib.suppress(ValueError):  # words are left out
            yield name, (np.array(steps), np.array(values, np.float64))


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


def _rows(path):
    lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else [""]
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            row["stage"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise Refusal(f"line {number} of {path} is damaged: remove it, or start anew") from None
        rows.append(row)
    return rows
