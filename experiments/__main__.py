"""All experiments, one after another, into one folder.

    make experiments                     each in its smoke mode: minutes in all
    make experiments ARGS="--full"       as in the README's table: the numbers and the plots

Each is a process of its own. What it prints goes to <folder>/<name>.txt, what it writes to
<folder>/<name>/. A run that was stopped goes on with --resume --into <folder>: it leaves out what
is finished and resumes the one that was not.
"""

import dataclasses
import datetime
import pathlib
import subprocess
import sys
import time

import tyro

from experiments.support.run import tables

ROOT = pathlib.Path(__file__).resolve().parent
DONE = "finished after"


@dataclasses.dataclass(frozen=True)
class Config:
    full: bool = False  # the runs of the README's table, hours in all
    only: tuple[str, ...] = ()  # names; none: all
    into: str = ""  # a folder; empty: a new one in runs/experiments
    resume: bool = False  # with --into: leave out what is finished there

    def __post_init__(self):
        """Finds out now what would otherwise stop the runs late."""
        unknown = sorted(set(self.only) - set(names()))
        if unknown:
            raise ValueError(f"only={unknown}: there are {', '.join(names())}")
        if self.resume and not pathlib.Path(self.into, "").is_dir():
            raise ValueError(f"resume: into={self.into!r} is no folder; name the one to go on with")


def names() -> list[str]:
    """Every experiment: the modules here that have a main with options."""
    marker = "options: runs.Options = runs.Options()"
    return sorted(path.stem for path in ROOT.glob("[a-z]*.py") if marker in path.read_text("utf-8"))


def main(config: Config) -> int:
    """Runs them, prints a table of what happened; returns how many failed."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = pathlib.Path(config.into or f"runs/experiments/{now}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in config.only or names():
        rows.append([name, *run(name, folder, config)])
        print("  ".join(map(str, rows[-1])), flush=True)
    text = tables.table(rows, ["experiment", "seconds", "ended"])
    (folder / "table.txt").write_text(text + "\n")
    print(f"\n{text}\n\nWritten to {folder}")
    return sum(ended != "well" for *_, ended in rows)


def run(name: str, folder: pathlib.Path, config: Config) -> tuple[int, str]:
    """Runs one experiment; how long it took, in seconds, and how it ended."""
    said, resumed = folder / f"{name}.txt", config.resume and has_run(folder, name)
    last = said.read_text("utf-8").splitlines()[-1:] if config.resume and said.exists() else []
    if last and last[0].startswith(DONE):
        return int(last[0].split()[2]), "well"
    flags = ["--runs", str(folder), *([] if config.full else ["--smoke"])]
    began = time.monotonic()
    with open(said, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", f"experiments.{name}", *flags]
        code = subprocess.run(
            [*command, "--resume"] if resumed else command, stdout=file, stderr=subprocess.STDOUT
        ).returncode
        seconds = round(time.monotonic() - began)
        if code == 0:
            file.write(f"\n{DONE} {seconds} seconds\n")
    return seconds, "well" if code == 0 else f"with {code}; see {said}"


def has_run(folder: pathlib.Path, name: str) -> bool:
    """Whether an experiment came to open a run there; its folder may have dashes in its name."""
    names = {name, name.replace("_", "-")}
    return any(any(folder.glob(f"{each}/[0-9]*/config.json")) for each in names)


if __name__ == "__main__":
    sys.exit(min(main(tyro.cli(Config)), 1))
