"""Run folders: `runs/<name>/<time>/`, with config.json, metrics.jsonl and what the experiment adds."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import matplotlib.figure
import numpy as np
import tyro

from experiments.support import Refusal
from experiments.support.data import corpora
from experiments.support.run import _folders, configs, files, page, plots, processes, tracking
from experiments.support.run._log import Record as Record
from experiments.support.run._log import load as load
from experiments.support.run._log import log as log
from experiments.support.run._log import read_log as read_log
from experiments.support.run._log import truncate_log as truncate_log
from proxlm import settings

_SMOKE = "SMOKE: a tiny configuration, whose numbers mean nothing"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run, none of which changes a result."""

    smoke: bool = False  # a tiny configuration, seconds: a test that all of it runs; what you give stays
    resume: bool = False  # continue the newest run of this configuration
    runs: str = "runs"  # the folder of all runs
    # the folder of fetched texts
    data: Annotated[str, tyro.conf.arg(name="wheels")] = str(corpora.WHEELS)
    mesh: str = ""  # axes over all devices, such as data=-1 or data=2,fsdp=4; empty: one device
    distributed: bool = False  # one of several processes, as experiments.support.run.processes says
    coordinator: str = ""  # host:port of the first process, where nothing says it
    num_processes: int = 0  # with a coordinator
    process_id: int = -1  # with a coordinator, from 0
    # where metrics go beside metrics.jsonl
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of an experiment; `reused` when it continues an older folder."""

    name: str
    path: pathlib.Path
    reused: bool = False
    options: Options = Options()
    config: Any = dataclasses.field(default_factory=dict)
    tracker: tracking.Tracker | None = None

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
        if first is None:
            seeds = f"{count} seeds" if count > 1 else ""
        else:
            seeds = f"seeds {first} to {first + count - 1}" if count > 1 else f"seed {first}"
        return ", ".join(filter(None, (self.name, seeds, f"commit {_commit()}" if _commit() else "")))

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
        if not processes.is_first():
            return numbers
        smoke = _SMOKE if self.options.smoke else ""
        text = "\n\n".join([smoke, *report] if smoke else report)
        print(text)
        files.write_text(self.path / "report.txt", text + "\n")
        files.write_text(self.path / "numbers.json", json.dumps(_plain(numbers), indent=2) + "\n")
        for name, figure in (figures or {}).items():
            plots.save(figure, self.path / name, self.title, bool(smoke))
        page.write(self.path, self.title, smoke, settings.plain(self.config), _plain(numbers))
        names = ("index.html", "report.txt", "numbers.json", *(f"{name}.png" for name in figures or {}))
        print(f"\nWritten to {self.path}: {', '.join(names)}")
        return numbers

    def check_input(self, path: str | os.PathLike) -> None:
        """Records the SHA-256 of a file that the run reads; a resumed run must find the same.

        Raises:
          Refusal: the run is resumed, and the content is another.
        """
        processes.decided(lambda: self._check_input(path))

    def _check_input(self, path):
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
        path = pathlib.Path(processes.decided(lambda: str(_folders.newest_with(folder, given))))
        run = Run(name, path, True, options, config)
        truncate_log(run)
        return run
    path = pathlib.Path(processes.decided(lambda: str(_folders.new(folder))))
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
    track = options.track if processes.is_first() else "none"
    with files.locked(run.path):
        try:
            with tracking.started(track, name, run.path, settings.plain(config)) as tracker:
                yield dataclasses.replace(run, tracker=tracker)
        except (Refusal, OSError):
            if processes.is_first() and not run.reused:
                _remove_untouched(run.path, missing)
            raise


def _remove_untouched(folder, above):
    """Removes a run's folder that holds only what opening it wrote, and the empty ones above it."""
    found = list(folder.iterdir())
    if {path.name for path in found} <= {_folders.CONFIG, _folders.ABOUT, files.LOCK}:
        for path in found:
            path.unlink()
        for path in (folder, *above):
            with contextlib.suppress(OSError):  # another run may have come
                path.rmdir()


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
