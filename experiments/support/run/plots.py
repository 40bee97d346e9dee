"""Figures: panels that functions draw, such as those of `plot_panels`, curves and bars."""

import math
import os
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np

from experiments.support.run import plot_panels

Draw = Callable[[matplotlib.axes.Axes], None]


def panels(
    drawings: Mapping[str, Draw],
    columns: int = 3,
    size: tuple[float, float] = (4.0, 3.0),
    note: str = "",
    sharey: bool = False,
) -> matplotlib.figure.Figure:
    """Lets a function draw each titled panel, `columns` in a row at most, of a size in inches."""
    if not drawings:
        raise ValueError("drawings is empty; give at least one title with its panel.")
    if columns < 1:
        raise ValueError(f"columns={columns}: expected at least 1")
    rows = math.ceil(len(drawings) / columns)
    columns = math.ceil(len(drawings) / rows)
    whole = (size[0] * columns, size[1] * rows)
    figure = matplotlib.figure.Figure(figsize=whole, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for axis, (title, draw) in zip(axes, drawings.items(), strict=False):
        axis.set_title(title, loc="left", fontsize=10)
        axis.tick_params(labelsize=8, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#999999")
        draw(axis)
    for axis in axes[len(drawings) :]:
        axis.set_axis_off()
    if note:
        figure.supxlabel(textwrap.fill(note, int(13 * whole[0])), fontsize=9)
    return figure


def curves(
    series: Mapping[str, Mapping[str, tuple]],
    xlabel: str | Mapping[str, str] = "step",
    columns: int = 3,
    log_scale: Sequence[str] = (),
    note: str = "",
) -> matplotlib.figure.Figure:
    """Draws a panel of `plot_panels.lines` a title; `xlabel` may differ from title to title.

    The titles in `log_scale` get a logarithmic y-axis. Where there are bands, the note below says so.
    """
    label = lambda title: xlabel if isinstance(xlabel, str) else xlabel[title]
    log = lambda title: "y" if title in log_scale else ""
    drawings = {title: plot_panels.lines(own, label(title), log=log(title)) for title, own in series.items()}
    has_bands = any(len(curve) == 3 for own in series.values() for curve in own.values())
    note = "; ".join(filter(None, (note, "bands: ± a standard deviation" if has_bands else "")))
    return panels(drawings, columns, (4.0, 2.8), note)


def band(values: Any, x: Any = None) -> tuple:
    """The curve of a mean over seeds `[seeds, N]` with its spread; without one for a single seed.

    Without x the values are those after 1, 2, ... N steps.
    """
    values = np.asarray(values, np.float64)
    mean = values.mean(axis=0)
    x = np.arange(1, len(mean) + 1) if x is None else x
    return (x, mean, values.std(axis=0, ddof=1)) if len(values) > 1 else (x, mean)


def logged(rows: Sequence[Mapping[str, Any]], name: str) -> tuple:
    """The curve of a number in the lines of a log that have it, as of `runs.read_log`."""
    rows = [row for row in rows if name in row]
    values = np.array([np.ravel(row[name]) for row in rows], np.float64)
    return band(values.T, [row["step"] for row in rows])


def bars(
    rows: Mapping[str, Mapping[str, float]], columns: Sequence[str], note: str = ""
) -> matplotlib.figure.Figure:
    """Draws horizontal bars, a row a name and a panel a column; none for infinity."""
    if not rows:
        raise ValueError("rows is empty; give at least one.")
    places = np.arange(len(rows))[::-1]

    def drawing(column):
        values = np.nan_to_num([row[column] for row in rows.values()], posinf=0.0, neginf=0.0)

        def draw(axis):
            axis.barh(places, values, color=plot_panels.COLOURS[0])
            axis.set_yticks(places, list(rows))

        return draw

    drawings = {column: drawing(column) for column in columns}
    return panels(drawings, len(columns), (3.6, 1.0 + 0.25 * len(rows)), note, sharey=True)


def save(
    figure: matplotlib.figure.Figure, path: str | os.PathLike, title: str = "", smoke: bool = False
) -> pathlib.Path:
    """Writes a figure as PNG and as SVG; the path is given without an ending.

    A `smoke` run's is marked all across, so that nobody takes it for a result.
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    if title:
        figure.suptitle(title, fontsize=9, color="#5b5b5b", x=0.01, ha="left")
    if smoke:
        mark = {"fontsize": 72, "color": "#c8553d", "alpha": 0.25, "rotation": 20}
        figure.text(0.5, 0.5, "SMOKE", ha="center", va="center", **mark)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "proxlm"}):
        figure.savefig(f"{path}.svg", metadata={"Date": None})
    figure.set_layout_engine(None)  # the places are found: the next file has the same
    figure.savefig(f"{path}.png", dpi=150)
    return pathlib.Path(f"{path}.png")
