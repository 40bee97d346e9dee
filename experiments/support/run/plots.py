"""Figures as PNG: curves, bars, and panels that functions draw, such as those of `plot_panels`."""

import itertools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.axes
import matplotlib.figure
import numpy as np

COLOURS = ("#1f4e79", "#c8553d", "#3a7d44", "#8e6c8a", "#d9a441", "#5b5b5b", "#2a9d8f", "#b56576")


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


def band(x: Any, values: Any) -> tuple:
    """The curve of a mean over seeds `[seeds, len(x)]` with its spread; without one for a single seed."""
    values = np.asarray(values, np.float64)
    mean = values.mean(axis=0)
    return (x, mean, values.std(axis=0, ddof=1)) if len(values) > 1 else (x, mean)


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
    path: str | os.PathLike, rows: Mapping[str, Mapping[str, float]], columns: Sequence[str], title: str = ""
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


def _saved(figure, path):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")
    return path


def _draw(axis, series):
    for colour, (label, curve) in zip(itertools.cycle(COLOURS), series.items(), strict=False):
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
