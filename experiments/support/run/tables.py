"""Text that an experiment shows: progress, tables, and samples side by side."""

import contextlib
import io
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

# Blanks between columns, and a rule below their headers.
_BOX = rich.box.Box("\n".join(["    ", "    ", " -  ", *5 * ["    "]]), ascii=True)


def mean_spread(values: Sequence[float], digits: int = 2) -> str:
    """Writes a mean over seeds with its sample standard deviation, as "0.93 ± 0.01 (n=3)"."""
    values = np.asarray(values, np.float64).ravel()
    if values.size == 0:
        raise ValueError("values is empty; give the result of at least one seed.")
    if values.size == 1:
        return f"{values[0]:.{digits}f} (n=1)"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f} (n={values.size})"


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """Aligns rows under headers as plain text: numbers to the right, words to the left.

    Floats show four significant digits; a column is numeric when all it holds are numbers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"rows: {row!r} has {len(row)} cells for {len(headers)} headers.")
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in headers]
    drawn = rich.table.Table(box=_BOX, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header, column in zip(headers, columns, strict=True):
        to_right = bool(column) and all(_is_number(cell) for cell in column)
        drawn.add_column(rich.text.Text(header), justify="right" if to_right else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(rich.text.Text(_cell(cell)) for cell in row))
    console = rich.console.Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip("\n").splitlines())


def side_by_side(
    before: Sequence[str], after: Sequence[str], width: int = 100, headers=("before", "after")
) -> str:
    """Sets samples of text next to one another, wrapped to `width` columns in all, pair by pair."""
    half = (width - 3) // 2
    if half < 1:
        raise ValueError(f"width={width} leaves no room for two columns; give 5 or more.")
    if len(before) != len(after):
        raise ValueError(f"before has {len(before)} samples and after {len(after)}; give as many of each.")
    pairs = [_columns(left, right, half) for left, right in zip(before, after, strict=True)]
    rule = "-" * half + "-+-" + "-" * half
    return f"\n{rule}\n".join([_columns(*headers, half), *pairs])


@contextlib.contextmanager
def progress(
    total: int, description: str, completed: int = 0, console: rich.console.Console | None = None
) -> Iterator[Callable[..., None]]:
    """Shows a loop's progress; yields `advance(**numbers)`, to be called once a step.

    On a terminal a bar with the remaining time and the numbers; elsewhere a line every tenth.
    """
    console = rich.console.Console() if console is None else console
    if not console.is_terminal:
        yield _plain_advance(total, description, completed, console)
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}"),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, completed=completed, numbers="")
        yield lambda **numbers: bar.update(task, advance=1, numbers=_phrase(numbers))


def _plain_advance(total, description, completed, console):
    done, began = completed, time.monotonic()

    def advance(**numbers):
        nonlocal done
        done += 1
        if 10 * done // total == 10 * (done - 1) // total and done != completed + 1:
            return
        text = f"{description} {done}/{total}  {time.monotonic() - began:.0f} s  {_phrase(numbers)}"
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    return advance


def _phrase(numbers):
    return "  ".join(f"{name} {float(value):.4g}" for name, value in numbers.items())


def _is_number(cell):
    return isinstance(cell, int | float | np.number) and not isinstance(cell, bool)


def _cell(cell):
    return f"{float(cell):.4g}" if isinstance(cell, float | np.floating) else str(cell)


def _columns(left, right, half):
    halves = [_wrapped(text, half) for text in (left, right)]
    height = max(map(len, halves))
    filled = [lines + [""] * (height - len(lines)) for lines in halves]
    rows = zip(*filled, strict=True)
    return "\n".join(f"{one.ljust(half)} | {other}".rstrip() for one, other in rows)


def _wrapped(text, half):
    return [piece for line in text.splitlines() for piece in textwrap.wrap(line, half) or [""]]
