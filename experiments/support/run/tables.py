"""Text that an experiment shows: progress, tables, and samples side by side."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

# Blanks between columns and a rule below their headers; or a line between two columns, and between rows.
_PLAIN = rich.box.Box("\n".join(["    ", "    ", " -  ", *5 * ["    "]]), ascii=True)
_RULED = rich.box.Box("\n".join(["    ", *2 * ["  | ", " -+ "], "    ", "  | ", "    "]), ascii=True)


def mean_spread(values: Any, digits: int = 2, count: bool = True) -> str:
    """Writes a mean over seeds with its sample standard deviation, as "0.93 ± 0.01 (n=3)"."""
    flat = np.asarray(values, np.float64).ravel()
    if flat.size == 0:
        raise ValueError("values is empty; give the result of at least one seed.")
    spread = f" ± {flat.std(ddof=1):.{digits}f}" if flat.size > 1 else ""
    return f"{flat.mean():.{digits}f}{spread}{f' (n={flat.size})' if count else ''}"


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """Aligns rows under headers as plain text: numbers to the right, words to the left.

    Floats show four significant digits; a column is numeric when all it holds are numbers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"rows: {row!r} has {len(row)} cells for {len(headers)} headers.")
    columns = [[row[i] for row in rows] for i in range(len(headers))]
    drawn = rich.table.Table(box=_PLAIN, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header, column in zip(headers, columns, strict=True):
        to_right = bool(column) and all(_is_number(cell) for cell in column)
        drawn.add_column(rich.text.Text(header), justify="right" if to_right else "left", no_wrap=True)
    return _rendered(drawn, rows, 10_000)


def side_by_side(
    before: Sequence[str], after: Sequence[str], width: int = 100, headers=("before", "after")
) -> str:
    """Sets samples of text next to one another, wrapped to `width` columns in all, pair by pair."""
    if width < 5:
        raise ValueError(f"width={width} leaves no room for two columns; give 5 or more.")
    if len(before) != len(after):
        raise ValueError(f"before has {len(before)} samples and after {len(after)}; give as many of each.")
    drawn = rich.table.Table(box=_RULED, show_edge=False, pad_edge=False, show_lines=True)
    for header in headers:
        drawn.add_column(header, width=(width - 3) // 2, overflow="fold")
    return _rendered(drawn, [*zip(before, after, strict=True)], width)


def _rendered(drawn, rows, width):
    for row in rows:
        drawn.add_row(*(rich.text.Text(_cell(cell)) for cell in row))
    console = rich.console.Console(file=(text := io.StringIO()), width=width, color_system=None)
    console.print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").splitlines())


@contextlib.contextmanager
def progress(
    total: int, description: str, completed: int = 0, console: rich.console.Console | None = None
) -> Iterator[Callable[..., None]]:
    """Shows a loop's progress; yields `advance(**numbers)`, to be called once a step.

    On a terminal a bar with the remaining time and the numbers; elsewhere a line every tenth, and every
    minute, with the time that is left.
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
    done, told = completed, (began := time.monotonic())

    def advance(**numbers):
        nonlocal done, told
        done, now = done + 1, time.monotonic()
        tenth = 10 * done // total > 10 * (done - 1) // total
        if tenth or done == completed + 1 or now - told >= 60:
            told, left = now, (now - began) / (done - completed) * (total - done)
            text = f"{description} {done}/{total}  {now - began:.0f} s, {left:.0f} s left  {_phrase(numbers)}"
            console.print(text, soft_wrap=True, markup=False, highlight=False)

    return advance


def _phrase(numbers):
    return "  ".join(f"{name} {float(value):.4g}" for name, value in numbers.items())


def _is_number(cell):
    return isinstance(cell, int | float | np.number) and not isinstance(cell, bool)


def _cell(cell):
    return f"{float(cell):.4g}" if isinstance(cell, float | np.floating) else str(cell)
