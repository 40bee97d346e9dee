"""Run folders: `runs/<name>/<time>/`, with config.json, metrics.jsonl and what the experiment adds."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np

from experiments.support import Refusal
from experiments.support.data import corpora
from experiments.support.run import _folders, configs, files, plots
from proxlm import settings

_METRICS = "metrics.jsonl"
_SMOKE = "SMOKE: a tiny configuration, whose numbers mean nothing"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run, none of which changes a result."""

    smoke: bool = False  # a tiny configuration, seconds: a test that all of it runs
    resume: bool = False  # continue the newest run of this configuration
    runs: str = "runs"  # the folder of all runs
    data: str = str(corpora.WHEELS)  # the folder of fetched texts


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of an experiment; `reused` when it continues an older folder."""

    name: str
    path: pathlib.Path
    reused: bool = False
    options: Options = Options()
    config: Any = dataclasses.field(default_factory=dict)

    @property
    def cache(self) -> pathlib.Path:
        """The folder of the stages that runs of this name share."""
        return self.path.parent / "cache"

    @property
    def data(self) -> pathlib.Path:
        """The folder of fetched texts."""
        return pathlib.Path(self.options.data)

    @property
    def title(self) -> str:
        """The name, the seeds and the commit, for the head of a figure."""
        given = settings.plain(self.config)
        first, count = given.get("seed"), given.get("seeds", 1)
        seeds = f"seeds {first} to {first + count - 1}" if count > 1 else f"seed {first}"
        commit = f"commit {_commit()}" if _commit() else ""
        return ", ".join(filter(None, (self.name, seeds if first is not None else "", commit)))

    def write(
        self,
        numbers: dict[str, Any],
        report: Sequence[str],
        figures: Mapping[str, matplotlib.figure.Figure] | None = None,
    ) -> dict[str, Any]:
        """Prints the report and writes it, the numbers and the figures; returns the numbers.

        Args:
          numbers: for numbers.json; arrays become lists there.
          report: paragraphs and tables for report.txt.
          figures: by the names of their files, without an ending.
        """
        text = "\n\n".join([_SMOKE, *report] if self.options.smoke else report)
        print(text)
        files.write_text(self.path / "report.txt", text + "\n")
        files.write_text(self.path / "numbers.json", json.dumps(_plain(numbers), indent=2) + "\n")
        for name, figure in (figures or {}).items():
            plots.save(figure, self.path / name, self.title, self.options.smoke)
        names = ("report.txt", "numbers.json", *(f"{name}.png" for name in figures or {}))
        print(f"\nWritten to {self.path}: {', '.join(names)}")
        return numbers

    def check_input(self, path: str | os.PathLike) -> None:
        """Records the SHA-256 of a file that the run reads; a resumed run must find the same.

        Raises:
          Refusal: the run is resumed, and the content is another.
        """
        about, path = _folders.read_json(self.path / _folders.ABOUT), str(path)
        sha256, known = files.sha256(path), about.setdefault("inputs", {})
        if known.setdefault(path, sha256) != sha256:
            raise Refusal(
                f"resume: {path} has changed since {self.path} read it (sha256 {known[path][:8]}, now "
                f"{sha256[:8]}). Restore the file, or start anew without resume"
            )
        files.write_text(self.path / _folders.ABOUT, json.dumps(about) + "\n")


def open_run(
    name: str,
    config: Any,
    root: str | os.PathLike = "runs",
    resume: bool = False,
    options: Options | None = None,
) -> Run:
    """Makes the folder of a new run and writes its config; with `resume`, finds the old folder.

    Resuming takes the newest run of this name whose config equals the given one, and mends a log
    whose last line a kill cut in two. Leave out of `config` what may change, as the resume flag.

    Raises:
      ValueError: by `configs.check`.
      Refusal: no root to write to; nothing to resume, or only runs of other configs.
    """
    configs.check(config)
    options = options or Options(resume=resume, runs=str(root))
    given, folder = settings.plain(config), pathlib.Path(root) / name
    if resume:
        run = Run(name, _folders.newest_with(folder, given), True, options, config)
        _rewrite_log(run, read_log(run))
        return run
    path = _folders.new(folder)
    files.write_text(path / _folders.CONFIG, json.dumps(given, indent=2) + "\n")
    about = {"started": path.name, "smoke": options.smoke, "commit": _commit()}
    files.write_text(path / _folders.ABOUT, json.dumps(about) + "\n")
    return Run(name, path, options=options, config=config)


@contextlib.contextmanager
def opened(name: str, config: Any, options: Options) -> Iterator[Run]:
    """Opens a run as its only writer; removes its folder if a refusal comes before any work."""
    folder = pathlib.Path(options.runs) / name
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    run = open_run(name, config, options.runs, options.resume, options)
    with files.locked(run.path):
        try:
            yield run
        except (Refusal, OSError):
            if not run.reused and {path.name for path in run.path.iterdir()} <= {
                _folders.CONFIG,
                _folders.ABOUT,
                files.LOCK,
            }:
                for path in run.path.iterdir():
                    path.unlink()
                for path in (run.path, *missing):
                    with contextlib.suppress(OSError):  # another run may have come
                        path.rmdir()
            raise


def log(run: Run, stage: str, **metrics: Any) -> None:
    """Appends one JSON line to the run's metrics; numbers keep six digits, NaN becomes "nan"."""
    row = {"stage": stage} | {name: _rounded(value) for name, value in metrics.items()}
    with open(run.path / _METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_log(run: Run, stage: str | None = None) -> list[dict[str, Any]]:
    """Reads the metrics of a run, of one stage if named; a line cut by a kill is left out.

    Raises:
      Refusal: a line is damaged, with the file and the number of the line.
    """
    path = run.path / _METRICS
    lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else [""]
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            is_of_stage = stage is None or row["stage"] == stage
        except (json.JSONDecodeError, KeyError, TypeError):
            raise Refusal(f"line {number} of {path} is damaged: remove it, or start anew") from None
        rows += [row] if is_of_stage else []
    return rows


def truncate_log(run: Run, stage: str, step: int = -1) -> None:
    """Drops what a stage logged at or after a step, or all of it, which a resume logs again."""
    is_old = lambda row: row["stage"] != stage or row.get("step", -1) < step
    _rewrite_log(run, [row for row in read_log(run) if is_old(row)])


@functools.cache
def _commit() -> str:
    """The commit of the code, with a + where files differ from it; empty outside of a clone."""
    run = lambda *words: subprocess.run(["git", *words], cwd=corpora.ROOT, capture_output=True, text=True)
    with contextlib.suppress(OSError):
        head, changed = run("rev-parse", "--short", "HEAD"), run("status", "--porcelain", "-uno")
        return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else ""
    return ""


def _plain(tree):
    if isinstance(tree, Mapping):
        return {str(name): _plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return tree if isinstance(tree, str | int | float | None) else np.asarray(tree).tolist()


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
    for row in read_log(Run(path.parent.name, path)):
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


def _rewrite_log(run, rows):
    if (run.path / _METRICS).exists():
        files.write_text(run.path / _METRICS, "".join(json.dumps(row) + "\n" for row in rows))
