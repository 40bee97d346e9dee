"""Report of `experiments.text_classification`: tables, confusion, calibration, words."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.figure
import numpy as np

from experiments.support.run import plots, tables

BAYES = "naive Bayes"
BINS = 15


class Judged(NamedTuple):
    """Log-probabilities `[N, K]` of the held-out texts, and their labels."""

    log_probs: np.ndarray
    labels: np.ndarray


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Of a grid, the divisor of the scores that makes the labels likeliest (Guo et al. 2017).

    >>> temperature(np.array([[9.0, 0.0], [9.0, 0.0]]), np.array([0, 1])) > 5
    True
    """
    grid = np.geomspace(0.25, 16.0, 61)
    rows = np.arange(len(labels))
    likelihood = [log_softmax(scores / divisor)[rows, labels].mean() for divisor in grid]
    return float(grid[int(np.argmax(likelihood))])


def right(judged: Judged) -> np.ndarray:
    return judged.log_probs.argmax(axis=1) == judged.labels


def accuracy(judged: Judged) -> float:
    return float(np.mean(right(judged)))


def standard_error(judged: Judged) -> float:
    """Of the accuracy, by the number of texts."""
    return float(right(judged).std() / np.sqrt(len(judged.labels)))


def reliability(judged: Judged, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts, mean confidence and accuracy of each bin of confidence that has texts."""
    confidence = np.exp(judged.log_probs.max(axis=1))
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(places, minlength=bins)
    some = counts > 0
    mean = lambda x: np.bincount(places, x, minlength=bins)[some] / counts[some]
    return counts[some], mean(confidence), mean(right(judged))


def calibration_error(judged: Judged, bins: int = BINS) -> float:
    """Expected calibration error Σ (n_b / n) |accuracy_b − confidence_b| (Naeini et al. 2015).

    >>> calibration_error(Judged(np.log([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1])))
    0.25
    """
    counts, confidence, right = reliability(judged, bins)
    return float(np.sum(counts * np.abs(right - confidence)) / counts.sum())


def confusion(judged: Judged) -> np.ndarray:
    """Counts of texts by true class (row) and predicted class (column)."""
    size = judged.log_probs.shape[1]
    matrix = np.zeros((size, size), int)
    np.add.at(matrix, (judged.labels, judged.log_probs.argmax(axis=1)), 1)
    return matrix


def plot_confusion(path: pathlib.Path, parts: Mapping[str, tuple[np.ndarray, Sequence[str]]]):
    """A panel for each corpus: shares of each true class, row by row."""
    figure = matplotlib.figure.Figure(figsize=(6.0 * len(parts), 5.6), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False).ravel()
    for axis, (title, (matrix, classes)) in zip(axes, parts.items(), strict=True):
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        size = 7 if len(classes) > 5 else 11
        for (i, j), value in np.ndenumerate(share):
            if value >= 0.02:
                colour = "white" if value > 0.5 else "black"
                axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=size)
        places = np.arange(len(classes))
        axis.set_xticks(places, classes, rotation=90 if len(classes) > 5 else 0, fontsize=size)
        axis.set_yticks(places, classes, fontsize=size)
        axis.set_title(f"{title}: % of each true class (row)", loc="left", fontsize=10)
    figure.savefig(path, dpi=130, format="png")


def plot_accuracy(path: pathlib.Path, parts: Mapping[str, Mapping[str, Judged]], aim: float):
    """A panel for each corpus: every method with its standard error, beside Bayes and the aim."""

    def panel(judged):
        names = [name for name in judged if name != BAYES]
        base, places = 100 * accuracy(judged[BAYES]), np.arange(len(names))[::-1]
        values = [100 * accuracy(judged[name]) for name in names]
        errors = [100 * standard_error(judged[name]) for name in names]

        def draw(axis):
            reached = [value >= base + aim for value in values]
            colours = [plots.COLOURS[2] if ok else plots.COLOURS[0] for ok in reached]
            axis.axvline(base, color="#5b5b5b", linewidth=1.0)
            axis.axvline(base + aim, color=plots.COLOURS[1], linewidth=1.0, linestyle="--")
            axis.hlines(places, base, values, color=colours, linewidth=2.2, alpha=0.35)
            axis.errorbar(values, places, xerr=errors, fmt="none", ecolor=colours, elinewidth=1.2)
            axis.scatter(values, places, color=colours, s=34, zorder=3)
            for value, error, place in zip(values, errors, places, strict=True):
                axis.annotate(
                    f"{value:.1f}",
                    (value + error, place),
                    (5, 0),
                    va="center",
                    textcoords="offset points",
                    fontsize=9,
                )
            axis.set_yticks(places, names, fontsize=9)
            axis.set_ylim(-0.6, len(names) + 0.1)
            low = min(base, *(v - e for v, e in zip(values, errors, strict=True)))
            high = max(base + aim, *(v + e for v, e in zip(values, errors, strict=True)))
            axis.set_xlim(low - 0.06 * (high - low), high + 0.2 * (high - low))
            for x, label in ((base, f"{BAYES} {base:.1f}"), (base + aim, f"+{aim:g}")):
                axis.text(x, len(names) - 0.3, f" {label}", fontsize=8, color="#5b5b5b")
            axis.set_xlabel("right, % of held-out texts", fontsize=9)
            axis.grid(True, axis="x", color="#eeeeee", linewidth=0.6)
            axis.set_axisbelow(True)

        return draw

    title = lambda name, judged: f"{name}, n={len(judged[BAYES].labels):,}"
    drawings = {title(name, judged): panel(judged) for name, judged in parts.items()}
    plots.draw_panels(path, drawings, size=(4.6, 2.9))


def write(run, found: Mapping[str, dict]) -> dict:
    """Writes the report; `found` maps a corpus to what `text_classification.learn` returns."""
    report, numbers, panels, matrices = [], {}, {}, {}
    for corpus, entry in found.items():
        judged, classes = entry["judged"], entry["classes"]
        numbers[corpus] = {name: measure(own, judged[BAYES]) for name, own in judged.items()}
        points = lambda row, name: f"{100 * row[name]:+.1f} ± {100 * row[name + '_error']:.1f}"
        rows = [
            [
                name,
                points(row, "accuracy").lstrip("+"),
                points(row, "over_bayes"),
                f"{row['calibration_error']:.3f}",
                entry["kept"].get(name, ""),
            ]
            for name, row in numbers[corpus].items()
        ]
        rows[0][2] = ""
        headers = [f"{corpus}, n={len(judged[BAYES].labels):,}", "right, %", "over Bayes", "ECE"]
        report.append(tables.table(rows, [*headers, "kept"]))
        for way, words in entry["telling"].items():
            rows = [*zip(classes, map(", ".join, words), strict=True)]
            report.append(tables.table(rows, ["class", f"what mattered most: {way}"]))
        panels[f"{corpus}: accuracy"] = {"as it should be": ([0, 1], [0, 1])} | {
            name: reliability(judged[name])[1:] for name in entry["shown"]
        }
        matrices[corpus] = (confusion(judged[entry["shown"][-1]]), classes)
    judged = {corpus: entry["judged"] for corpus, entry in found.items()}
    figures = {
        "reliability.png": functools.partial(plots.curves, panels=panels, xlabel="confidence"),
        "confusion.png": functools.partial(plot_confusion, parts=matrices),
        "accuracy.png": functools.partial(plot_accuracy, parts=judged, aim=3.0),
    }
    return run.write(numbers, report, figures)


def measure(own: Judged, base: Judged) -> dict[str, float]:
    """Accuracy and what it is more than the base's, with standard errors; the calibration error."""
    gain = right(own).astype(float) - right(base)
    return {
        "accuracy": accuracy(own),
        "accuracy_error": standard_error(own),
        "over_bayes": float(gain.mean()),
        "over_bayes_error": float(gain.std() / np.sqrt(len(gain))),
        "calibration_error": calibration_error(own),
    }
