"""Panels for `plots.panels`: lines, histograms, surfaces, images and points.

Each function gives one that draws on a matplotlib axis; an experiment may write its own.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.axes
import matplotlib.colors
import matplotlib.ticker
import numpy as np

Draw = Callable[[matplotlib.axes.Axes], None]

COLOURS = ("#1f4e79", "#c8553d", "#3a7d44", "#8e6c8a", "#d9a441", "#5b5b5b", "#2a9d8f", "#b56576", "#84a59d")


def lines(
    series: Mapping[str, tuple],
    xlabel: str = "step",
    ylabel: str = "",
    log: str = "",
    marks: Mapping[str, float] | None = None,
) -> Draw:
    """Curves by their labels: (x, y), or (x, mean, spread) for a mean in a band of mean ± spread.

    `log` names the axes, "x", "y" or "xy", that are logarithmic. A mark is a dashed line across at
    its height. A curve that lies on earlier ones is dashed, so that all are seen. A legend appears
    where there is a choice.
    """
    for label, curve in series.items():
        if len(curve) not in (2, 3):
            raise ValueError(f"series: {label!r} has {len(curve)} parts; give (x, y[, spread]).")

    def draw(axis):
        drawn = []
        for (label, curve), colour in zip(series.items(), itertools.cycle(COLOURS), strict=False):
            x, y, *spread = (np.asarray(part, np.float64) for part in curve)
            look = {"color": colour, "linestyle": _dashes(x, y, drawn), "linewidth": 1.6, "markersize": 3}
            axis.plot(x, y, label=label, marker="o" if len(x) < 12 else None, **look)
            drawn.append((x, y))
            for band in spread:
                tint = 0.82 + 0.18 * np.array(matplotlib.colors.to_rgb(colour))  # opaque: colours do not mix
                axis.fill_between(x, y - band, y + band, color=tint, linewidth=0, zorder=1)
                for edge in (y - band, y + band):
                    axis.plot(x, edge, color=colour, linewidth=0.5, zorder=1.5)
        for label, height in (marks or {}).items():
            axis.axhline(height, color="#5b5b5b", linestyle="--", linewidth=1.0, label=label)
        for name, values in zip(
            "xy", zip(*(curve[:2] for curve in series.values()), strict=True), strict=True
        ):
            scale(axis, name, values, name in log)
        axis.grid(True, which="both", color="#e4e4e4", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.margins(x=0.02)
        _label(axis, xlabel, ylabel, legend=len(series) + len(marks or {}) > 1)

    return draw


def histogram(
    samples: Mapping[str, Any],
    xlabel: str,
    bins: int = 40,
    log: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Draw:
    """Histograms of samples in bins that all share. Values that are not finite are left out,
    and with `log` those that are not positive. A mark is a dashed line at a value.
    """
    marks = marks or {}
    usable = {name: _usable(values, log) for name, values in samples.items()}
    together = np.concatenate([*usable.values(), np.asarray([*marks.values()], np.float64)])
    if not together.size:
        raise ValueError("samples holds no finite value; there is nothing to count.")

    def draw(axis):
        low, high = together.min(), together.max()
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        edges = (np.geomspace if log else np.linspace)(low, high, bins + 1)
        for (label, values), colour in zip(usable.items(), itertools.cycle(COLOURS), strict=False):
            counts, _ = np.histogram(values, edges)
            axis.stairs(counts, edges, color=colour, linewidth=1.6, label=label)
        for label, value in marks.items():
            axis.axvline(value, color="#1a1a1a", linestyle="--", linewidth=1.0, label=label)
        scale(axis, "x", usable.values(), log)
        _label(axis, xlabel, "count", legend=len(usable) + len(marks) > 1)

    return draw


def surface(
    x: Any,
    y: Any,
    values: Any,
    xlabel: str,
    ylabel: str,
    paths: Mapping[str, Any] | None = None,
    points: Mapping[str, Any] | None = None,
    levels: int = 24,
) -> Draw:
    """Heights `[len(y), len(x)]` as filled contours, with paths `[steps, 2]` and points `[2]`."""
    values = np.asarray(values, np.float64)
    if values.shape != (len(y), len(x)):
        raise ValueError(f"values has shape {values.shape}: expected {(len(y), len(x))}, y by x")

    def draw(axis):
        axis.contourf(x, y, values, levels, cmap="Greys_r")
        named = (paths or {}).items()
        for (label, path), colour in zip(named, itertools.cycle(COLOURS), strict=False):
            path = np.asarray(path)
            axis.plot(*path.T, color=colour, linewidth=1.4, label=label)
            axis.plot(*path[0], color=colour, marker="o", markersize=3)
        place = {"markersize": 9, "markeredgecolor": "white", "linestyle": "none"}
        for (label, point), marker in zip((points or {}).items(), "*Xsdv^", strict=False):
            axis.plot(*np.asarray(point), marker=marker, color="black", label=label, **place)
        axis.set_xlim(np.min(x), np.max(x))
        axis.set_ylim(np.min(y), np.max(y))
        _label(axis, xlabel, ylabel, legend=bool(paths or points))

    return draw


def image(
    values: Any,
    xlabel: str,
    ylabel: str,
    extent: tuple[float, float, float, float] | None = None,
    limits: tuple[float, float] | None = None,
    unit: str = "",
) -> Draw:
    """A matrix as colours, its first row at the bottom; grey where it is not finite.

    `extent` is where its edges lie, (left, right, bottom, top); `limits` are the values of the
    first and the last colour, to compare panels.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ValueError(f"values has shape {values.shape}: expected a matrix")

    def draw(axis):
        low, high = limits or (None, None)
        axis.set_facecolor("#c8c8c8")
        shown = axis.imshow(
            np.ma.masked_invalid(values),
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=low,
            vmax=high,
            cmap="viridis",
            interpolation="nearest",
        )
        bar = axis.figure.colorbar(shown, ax=axis, label=unit)
        bar.ax.tick_params(labelsize=8)
        _label(axis, xlabel, ylabel, legend=False)

    return draw


def heatmap(
    values: Any, rows: Sequence[str], columns: Sequence[str], words: Any, unit: str = "", rotation: int = 0
) -> Draw:
    """A matrix of shares as colours, its first row at the top, with a word in each cell."""

    def draw(axis):
        shown = axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for place, word in np.ndenumerate(words):
            colour = "white" if values[place] > 0.5 else "black"
            axis.text(*place[::-1], word, ha="center", va="center", color=colour, fontsize=7)
        axis.set_xticks(range(len(columns)), columns, fontsize=7, rotation=rotation)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.figure.colorbar(shown, ax=axis, label=unit).ax.tick_params(labelsize=8)

    return draw


def points(
    groups: Mapping[str, Any], xlabel: str, ylabel: str, borders: Mapping[str, tuple[Any, Any]] | None = None
) -> Draw:
    """Points `[N, 2]`, a colour a group, and lines (x, y) that do not widen the view."""

    def draw(axis):
        for (label, group), colour in zip(groups.items(), itertools.cycle(COLOURS), strict=False):
            x, y = np.asarray(group).T
            axis.scatter(x, y, s=9, color=colour, label=label, linewidths=0)
        view = axis.get_xlim(), axis.get_ylim()
        styles = itertools.cycle(("-", "--", ":", "-."))
        for (label, (x, y)), style in zip((borders or {}).items(), styles, strict=False):
            axis.plot(x, y, color="#1a1a1a", linestyle=style, linewidth=1.4, label=label)
        axis.set_xlim(*view[0])
        axis.set_ylim(*view[1])
        _label(axis, xlabel, ylabel, legend=True)

    return draw


def scale(axis: matplotlib.axes.Axes, name: str, values: Iterable[Any], log: bool = False) -> None:
    """Makes an axis, "x" or "y", logarithmic, or puts its ticks at integers where all its values are."""
    if log:
        axis.set(**{f"{name}scale": "log"})
    elif all(np.all(np.mod(part, 1) == 0) for part in values):
        getattr(axis, f"{name}axis").set_major_locator(matplotlib.ticker.MaxNLocator("auto", integer=True))


def _dashes(x, y, earlier):
    """A line that is the more broken the more of the earlier curves it lies on."""
    near = lambda a, b: a.shape == b.shape and np.allclose(a, b, rtol=0.03)
    covered = sum(near(x, its_x) and near(y, its_y) for its_x, its_y in earlier)
    return ("-", (0, (5, 5)), (0, (2, 6)))[min(covered, 2)]


def _usable(values, log):
    values = np.asarray(values, np.float64).ravel()
    return values[np.isfinite(values) & ((values > 0) | (not log))]


def _label(axis, xlabel, ylabel, legend):
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    if legend:
        axis.legend(framealpha=0.8, edgecolor="none", fontsize=7)
