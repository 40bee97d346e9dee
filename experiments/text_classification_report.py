"""What `experiments.text_classification` shows: tables, confusion, calibration, words."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.figure
import numpy as np

from experiments import report

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


def accuracy(judged: Judged) -> float:
    return float(np.mean(judged.log_probs.argmax(axis=1) == judged.labels))


def reliability(judged: Judged, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts, mean confidence and accuracy of each bin of confidence that has texts."""
    confidence = np.exp(judged.log_probs.max(axis=1))
    right = judged.log_probs.argmax(axis=1) == judged.labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(places, minlength=bins)
    some = counts > 0
    mean = lambda x: np.bincount(places, x, minlength=bins)[some] / counts[some]
    return counts[some], mean(confidence), mean(right)


def calibration_error(judged: Judged, bins: int = BINS) -> float:
    """Expected calibration error Σ (n_b / n) |accuracy_b − confidence_b| (Naeini et al. 2015).

    >>> calibration_error(Judged(np.log([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1])))
    0.25
    """
    counts, confidence, right = reliability(judged, bins)
    return float(np.sum(counts * np.abs(right - confidence)) / counts.sum())


def confusion(judged: Judged) -> np.ndarray:
    """How many texts of each class (row) were taken for each class (column)."""
    size = judged.log_probs.shape[1]
    matrix = np.zeros((size, size), int)
    np.add.at(matrix, (judged.labels, judged.log_probs.argmax(axis=1)), 1)
    return matrix


def telling_words(
    tokens: np.ndarray, evidence: np.ndarray, classes: np.ndarray, words: Sequence[str],
    num_classes: int, count: int = 6, least: int = 5,
) -> list[list[str]]:  # fmt: skip
    """For each class, the words that add most to its score where it wins, seen `least` times."""
    result = []
    for label in range(num_classes):
        chosen = tokens[classes == label].ravel()
        total = np.bincount(chosen, evidence[classes == label].ravel(), minlength=len(words))
        seen = np.bincount(chosen, minlength=len(words))
        mean = np.where(seen >= least, total / np.maximum(seen, 1), -np.inf)
        mean[:2] = -np.inf  # padding, and words seen too rarely
        best = np.argsort(-mean, kind="stable")[:count]
        result.append([words[i] for i in best if np.isfinite(mean[i])])
    return result


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
                axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour,
                          fontsize=size)  # fmt: skip
        places = np.arange(len(classes))
        axis.set_xticks(places, classes, rotation=90 if len(classes) > 5 else 0, fontsize=size)
        axis.set_yticks(places, classes, fontsize=size)
        axis.set_title(f"{title}: % of each true class (row)", loc="left", fontsize=10)
    figure.savefig(path, dpi=130, format="png")


def write(run, found: Mapping[str, dict]) -> dict:
    """Prints tables, words and plots; `found` is corpus ↦ what `text_classification` measured."""
    text, numbers = "", {}
    panels, matrices = {}, {}
    for corpus, entry in found.items():
        judged, classes = entry["judged"], entry["classes"]
        base = accuracy(judged["naive Bayes"])
        rows = [
            [name, f"{100 * accuracy(own):.1f}", f"{100 * (accuracy(own) - base):+.1f}",
             f"{calibration_error(own):.3f}", entry["words"].get(name, "")]
            for name, own in judged.items()
        ]  # fmt: skip
        count = len(judged["naive Bayes"].labels)
        headers = [f"{corpus}, n={count:,}", "accuracy, %", "over Bayes", "ECE", "words kept"]
        text += report.table(rows, headers) + "\n\n"
        text += report.table([*zip(classes, map(" ".join, entry["telling"]), strict=True)],
                             ["class", "words that mattered most"]) + "\n\n"  # fmt: skip
        curve = lambda own: reliability(own)[1:]
        panels[f"{corpus}: accuracy"] = {"as it should be": ([0, 1], [0, 1])} | {
            name: curve(own) for name, own in judged.items()
        }
        matrices[corpus] = (confusion(judged[entry["shown"]]), classes)
        numbers[corpus] = {
            name: {"accuracy": accuracy(own), "over_bayes": accuracy(own) - base,
                   "calibration_error": calibration_error(own)}
            for name, own in judged.items()
        }  # fmt: skip
    report.curves(run.path / "reliability.png", panels, xlabel="confidence")
    plot_confusion(run.path / "confusion.png", matrices)
    (run.path / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (run.path / "report.txt").write_text(text)
    print(text + f"written to {run.path}: report.txt, confusion.png, reliability.png")
    return numbers
