"""Report of `experiments.text_classification`: tables, confusion, calibration, words."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from sklearn import metrics

from experiments.support.run import plot_panels, plots, tables

BAYES = "naive Bayes"
BINS = 15
AIM = 3.0  # points more than Bayes


class Judged(NamedTuple):
    """Log-probabilities `[N, K]` of the held-out texts, and their labels."""

    log_probs: np.ndarray
    labels: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.log_probs.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels


log_softmax = functools.partial(special.log_softmax, axis=1)


def temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Of a grid, the divisor of the scores that makes the labels likeliest (Guo et al. 2017).

    >>> temperature(np.array([[9.0, 0.0], [9.0, 0.0]]), np.array([0, 1])) > 5
    True
    """
    grid = np.geomspace(0.25, 16.0, 61)
    rows = np.arange(len(labels))
    likelihood = [log_softmax(scores / divisor)[rows, labels].mean() for divisor in grid]
    return float(grid[int(np.argmax(likelihood))])


def accuracy(judged: Judged) -> float:
    return float(np.mean(judged.right))


def standard_error(judged: Judged) -> float:
    """Of the accuracy, by the number of texts."""
    return float(judged.right.std() / np.sqrt(len(judged.labels)))


def reliability(judged: Judged, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts, mean confidence and accuracy of each bin of confidence that has texts."""
    confidence = np.exp(judged.log_probs.max(axis=1))
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(places, minlength=bins)
    some = counts > 0
    mean = lambda x: np.bincount(places, x, minlength=bins)[some] / counts[some]
    return counts[some], mean(confidence), mean(judged.right)


def calibration_error(judged: Judged, bins: int = BINS) -> float:
    """Expected calibration error Σ (n_b / n) |accuracy_b − confidence_b| (Naeini et al. 2015).

    >>> calibration_error(Judged(np.log([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1])))
    0.25
    """
    counts, confidence, right = reliability(judged, bins)
    return float(np.sum(counts * np.abs(right - confidence)) / counts.sum())


def confusion(judged: Judged) -> np.ndarray:
    """Counts of texts by true class (row) and predicted class (column)."""
    return metrics.confusion_matrix(judged.labels, judged.predicted, labels=range(judged.log_probs.shape[1]))


def confusion_panel(judged: Judged, classes: Sequence[str]) -> plots.Draw:
    """Shares of each true class, row by row."""
    counts = confusion(judged)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    words = np.vectorize(lambda value: f"{100 * value:.0f}" if value >= 0.02 else "", otypes=[str])(share)
    return plot_panels.heatmap(share, classes, classes, words, rotation=90 if len(classes) > 5 else 0)


def accuracy_panel(judged: Mapping[str, Judged]) -> plots.Draw:
    """Every method with its standard error, beside Bayes and the aim."""
    names = [name for name in judged if name != BAYES]
    places, base = np.arange(len(names))[::-1], 100 * accuracy(judged[BAYES])
    values = [100 * accuracy(judged[name]) for name in names]
    errors = [100 * standard_error(judged[name]) for name in names]
    colours = [plot_panels.COLOURS[2 if value >= base + AIM else 0] for value in values]

    def draw(axis):
        axis.axvline(base, color="#5b5b5b", linewidth=1.0, label=f"{BAYES} {base:.1f}")
        axis.axvline(base + AIM, color=plot_panels.COLOURS[1], linestyle="--", label=f"+{AIM:g}")
        axis.errorbar(values, places, xerr=errors, fmt="none", ecolor=colours, elinewidth=1.2)
        axis.scatter(values, places, color=colours, s=34, zorder=3)
        for value, error, place in zip(values, errors, places, strict=True):
            axis.text(value + error, place, f"  {value:.1f}", va="center", fontsize=9)
        axis.set_yticks(places, names, fontsize=9)
        axis.set_ylim(-0.6, len(names) + 0.6)
        axis.margins(x=0.2)
        axis.set_xlabel("right, % of held-out texts", fontsize=9)
        axis.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)

    return draw


def write(run, found: Mapping[str, dict]) -> dict:
    """Writes the report; `found` maps a corpus to what `text_classification.learn` returns."""
    report, numbers, reliabilities, matrices = [], {}, {}, {}
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
        reliabilities[f"{corpus}: accuracy"] = {"as it should be": ([0, 1], [0, 1])} | {
            name: reliability(judged[name])[1:] for name in entry["shown"]
        }
        title = f"{corpus}: % of each true class (row)"
        matrices[title] = confusion_panel(judged[entry["shown"][-1]], classes)
    accuracies = {
        f"{corpus}, n={len(entry['judged'][BAYES].labels):,}": accuracy_panel(entry["judged"])
        for corpus, entry in found.items()
    }
    figures = {
        "reliability": plots.curves(reliabilities, xlabel="confidence"),
        "confusion": plots.panels(matrices, size=(6.4, 5.6)),
        "accuracy": plots.panels(accuracies, size=(4.6, 2.9)),
    }
    return run.write(numbers, report, figures)


def measure(own: Judged, base: Judged) -> dict[str, float]:
    """Accuracy and what it is more than the base's, with standard errors; the calibration error."""
    gain = own.right.astype(float) - base.right
    return {
        "accuracy": accuracy(own),
        "accuracy_error": standard_error(own),
        "over_bayes": float(gain.mean()),
        "over_bayes_error": float(gain.std() / np.sqrt(len(gain))),
        "calibration_error": calibration_error(own),
    }
