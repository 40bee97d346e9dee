"""Compares runs: their numbers in a table, their differing settings, their curves in one figure.

    python -m experiments.compare runs/sparse_lm/TIME runs/sparse_lm/TIME

Writes curves.png and curves.svg into a folder of its own, runs/compare/<time>.
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from experiments.support import Refusal
from experiments.support.run import _folders, cli, page, plots, runs, tables

MOST = 24  # panels of the figure


@dataclasses.dataclass(frozen=True)
class Config:
    paths: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]  # folders of runs
    only: str = ""  # compare only numbers and curves whose name holds this text
    into: pathlib.Path = pathlib.Path("runs/compare")  # the folder of comparisons


def label(record: runs.Record) -> str:
    """The experiment and the time of a run, and whether it was a smoke run."""
    return f"{record.name} {record.path.name}{' SMOKE' if record.about.get('smoke') else ''}"


def numbers_of(records: list[runs.Record], only: str = "") -> str:
    """A row a number, a column a run."""
    found = [dict(page.flat(record.numbers)) for record in records]
    names = [name for name in dict.fromkeys(name for own in found for name in own) if only in name]
    rows = [[name, *(own.get(name, "-") for own in found)] for name in names]
    return tables.table(rows, ["number", *map(label, records)])


def differences(records: list[runs.Record]) -> str:
    """A row a setting in which the runs differ."""
    names = dict.fromkeys(name for record in records for name in record.config)
    rows = [[name, *(str(record.config.get(name, "-")) for record in records)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return tables.table(rows, ["setting", *map(label, records)]) if rows else "The settings are the same."


def curves(records: list[runs.Record], only: str = "") -> dict[str, dict[str, tuple]]:
    """Stage and name ↦ the curve of each run that logged it, as a mean over its seeds in a band."""
    found: dict[str, dict[str, tuple]] = {}
    for record in records:
        for stage, series in record.metrics.items():
            for name, (steps, values) in series.items():
                if only in (title := f"{stage}: {name}") and len(steps) > 1:
                    flat = values.reshape(len(values), -1)
                    found.setdefault(title, {})[label(record)] = plots.band(flat.T, steps)
    return found


def main(config: Config) -> None:
    """Prints the tables and draws the figure."""
    if len(config.paths) < 2:
        raise Refusal(f"paths has {len(config.paths)} folders; give two or more runs")
    records = [runs.load(path) for path in config.paths]
    print(numbers_of(records, config.only), differences(records), sep="\n\n")
    drawn = curves(records, config.only)
    if drawn:
        path = _folders.new(config.into) / "curves"
        shown = dict([*drawn.items()][:MOST])
        left = f"{len(drawn) - MOST} more are left out: name them by --only" if len(drawn) > MOST else ""
        smoke = any(record.about.get("smoke") for record in records)
        figure = plots.curves(shown, note=left)
        print(f"\nWritten to {plots.save(figure, path, 'runs compared', smoke)}")


if __name__ == "__main__":
    cli.call(main, "compare", __doc__)
