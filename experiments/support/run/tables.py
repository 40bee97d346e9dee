"""What an experiment shows: progress, tables, samples side by side, and curves as PNG."""

import contextlib
import math
import os
import pathlib
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np
import rich.console
import rich.progress

COLOURS = ("#1f4e79", "#c8553d", "#3a7d44", "#8e6c8a", "#d9a441", "#5b5b5b", "#2a9d8f", "#b56576")


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
    to_right = [bool(column) and all(_is_number(cell) for cell in column) for column in columns]
    texts = [[str(header), *map(_cell, column)] for header, column in zip(headers, columns, strict=True)]
    padded = [_pad(column, right) for column, right in zip(texts, to_right, strict=True)]
    lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    rule = "  ".join("-" * len(column[0]) for column in padded)
    return "\n".join([lines[0], rule, *lines[1:]])


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


def curves(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, tuple]],
    xlabel: str | Mapping[str, str] = "step",
    columns: int = 3,
    log_scale: Sequence[str] = (),
    note: str = "",
) -> pathlib.Path:
    """Draws one small panel a title, each with its labelled curves, into a PNG.

    A curve is (x, y), or (x, mean, spread) for a mean over seeds in a band of mean ± spread. The
    titles in `log_scale` get a logarithmic y-axis; `columns` is the most panels in a row; `xlabel`
    may differ from title to title. A legend appears where there is a choice, the note below all.
    """
    if not panels:
        raise ValueError("panels is empty; give at least one title with its curves.")

    def drawing(title, series):
        def draw(axis):
            _draw(axis, series)
            axis.set_xlabel(xlabel if isinstance(xlabel, str) else xlabel[title], fontsize=9)
            axis.set_yscale("log" if title in log_scale else "linear")

        return draw

    drawings = {title: drawing(title, series) for title, series in panels.items()}
    return draw_panels(path, drawings, columns, (4.0, 2.8), note)


def draw_panels(
    path: str | os.PathLike,
    drawings: Mapping[str, Callable[[matplotlib.axes.Axes], None]],
    columns: int = 3,
    size: tuple[float, float] = (4.0, 3.0),
    note: str = "",
) -> pathlib.Path:
    """Lets a function draw each titled panel of a PNG, `columns` in a row at most, in inches."""
    if not drawings:
        raise ValueError("drawings is empty; give at least one title with its panel.")
    if columns < 1:
        raise ValueError(f"columns={columns}: expected at least 1")
    rows = math.ceil(len(drawings) / columns)
    columns = math.ceil(len(drawings) / rows)
    whole = (size[0] * columns, size[1] * rows)
    figure = matplotlib.figure.Figure(figsize=whole, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, draw) in zip(axes, drawings.items(), strict=False):
        axis.set_title(title, loc="left", fontsize=10)
        axis.tick_params(labelsize=8, color="#999999")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#999999")
        draw(axis)
    for axis in axes[len(drawings) :]:
        axis.set_axis_off()
    if note:
        figure.supxlabel(note, fontsize=9)
    return _saved(figure, path)


def bars(
    path: str | os.PathLike,
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    title: str = "",
) -> pathlib.Path:
    """Draws horizontal bars, a row a name and a panel a column, into a PNG; none for infinity."""
    if not rows or not columns:
        raise ValueError("rows or columns is empty; give at least one of each.")
    size = (3.6 * len(columns), 1.0 + 0.25 * len(rows))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    places = np.arange(len(rows))[::-1]
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False).ravel()
    for axis, column in zip(axes, columns, strict=True):
        values = np.nan_to_num([row[column] for row in rows.values()], posinf=0.0, neginf=0.0)
        axis.barh(places, values, color=COLOURS[0])
        axis.set_yticks(places, list(rows))
        axis.set_title(column, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return _saved(figure, path)


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


def _saved(figure, path):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")
    return path


def _draw(axis, series):
    for colour, (label, curve) in zip(_cycle(len(series)), series.items(), strict=True):
        if len(curve) not in (2, 3):
            raise ValueError(f"panels: {label!r} has {len(curve)} parts; give (x, y[, spread]).")
        x, y, *spread = (np.asarray(part, np.float64) for part in curve)
        marker = "o" if len(x) < 12 else None
        axis.plot(x, y, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3)
        for band in spread:
            axis.fill_between(x, y - band, y + band, color=colour, alpha=0.18, linewidth=0)
    axis.grid(True, color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(x=0.02)
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=8)


def _cycle(count):
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _is_number(cell):
    return isinstance(cell, int | float | np.number) and not isinstance(cell, bool)


def _cell(cell):
    return f"{float(cell):.4g}" if isinstance(cell, float | np.floating) else str(cell)


def _pad(column, right):
    width = max(map(len, column))
    return [text.rjust(width) if right else text.ljust(width) for text in column]


def _columns(left, right, half):
    halves = [_wrapped(text, half) for text in (left, right)]
    height = max(map(len, halves))
    filled = [lines + [""] * (height - len(lines)) for lines in halves]
    rows = zip(*filled, strict=True)
    return "\n".join(f"{one.ljust(half)} | {other}".rstrip() for one, other in rows)


def _wrapped(text, half):
    return [piece for line in text.splitlines() for piece in textwrap.wrap(line, half) or [""]]
