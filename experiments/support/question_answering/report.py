"""Tables and curves of `experiments.question_answering`, with baselines that do not learn to read.

The baselines see the same training questions as the models.
"""

import collections
from collections.abc import Sequence

import matplotlib.figure
import numpy as np

from experiments.support.data import text_metrics
from experiments.support.question_answering import tasks
from experiments.support.question_answering.tasks import Exercise
from experiments.support.run import plots, runs, tables

LABELS = {"before": "supervised", "after": "then by reward"}


def majority(train: Sequence[Exercise], judged: Sequence[Exercise]) -> float:
    """Accuracy of the most common answer."""
    (answer, _), *_ = collections.Counter(e.answer for e in train).most_common(1)
    return float(np.mean([e.answer == answer for e in judged]))


def retrieval(train: Sequence[Exercise], judged: Sequence[Exercise]) -> float:
    """Accuracy of the answer to the nearest training question, by tf-idf and cosine.

    The words of a choice count as other words in the other choice, or the order would be lost.
    """
    vectors = tasks.tf_idf([marked(e.question) for e in (*train, *judged)])
    seen, asked = vectors[: len(train)], vectors[len(train) :]
    nearest = np.argmax(asked @ seen.T, axis=1)
    return float(np.mean([train[i].answer == e.answer for i, e in zip(nearest, judged, strict=True)]))


def naive_bayes(train: Sequence[Exercise], judged: Sequence[Exercise]) -> float:
    """Accuracy of naive Bayes on `pairs` of words: single words could not tell more from less."""
    questions, answers = zip(*train, strict=True)
    model = text_metrics.fit_naive_bayes(questions, answers, analyzer=pairs)
    asked, right = zip(*judged, strict=True)
    return float(np.mean(model.predict(asked) == np.array(right)))


def marked(question: str) -> list[str]:
    """Words, those of choices with the letter of the choice.

    >>> marked("It gets A: hot B: cold")
    ['it', 'gets', 'A=hot', 'B=cold']
    """
    parts = tasks.choices(question)
    if parts is None:
        return tasks.words(question)
    stem, *rest = parts
    own = [f"{c}={w}" for c, part in zip("AB", rest, strict=True) for w in tasks.words(part)]
    return tasks.words(stem) + own


def pairs(question: str) -> list[str]:
    """Each word of the stem with each of a choice; or, without choices, the words.

    >>> pairs("It gets A: hot B: cold")
    ['it A=hot', 'it B=cold', 'gets A=hot', 'gets B=cold']
    """
    parts = tasks.choices(question)
    found = marked(question)
    if parts is None:
        return found
    count = len(tasks.words(parts[0]))
    return [f"{word} {choice}" for word in found[:count] for choice in found[count:]]


def write(run, learnt, results):
    """Writes the report; returns accuracies: task ↦ name ↦ a number or one a seed."""
    baselines = {"majority": majority, "retrieval": retrieval, "naive Bayes": naive_bayes}
    numbers: dict[str, dict] = {}
    report = []
    for name, task in learnt.items():
        found = {k: 100 * judge(task.train, task.held_out) for k, judge in baselines.items()}
        found |= {k: 100 * values for k, values in results[name].items()}
        numbers[name] = found
        rows = [[k, f"{found[k]:.1f}", "", ""] for k in baselines]
        for key, label in LABELS.items():
            columns = (key, f"{key}, sampled", f"{key}, seen")
            rows.append([label, *(tables.mean_spread(found[k], 1) for k in columns)])
        if (shares := found.get("SmolLM2")) is not None:
            rows.append(["SmolLM2's states", tables.mean_spread(shares, 1), "", ""])
        report.append(f"{name}: % right of {len(task.held_out)} held-out questions")
        report.append(tables.table(rows, ["", "held out", "sampled", "training questions"]))
    return run.write(numbers, report, {"learning": draw(run, numbers)})


def draw(run, numbers) -> matplotlib.figure.Figure:
    """The losses and rewards of training, with the accuracies before, after and without it."""
    panels, steps = {}, {}
    for name, found in numbers.items():
        title = f"{name}, supervised: loss, nats per token"
        rows = runs.read_log(run, f"{name}, supervised")
        panels[title], steps[title] = {"loss": plots.logged(rows, "loss")}, "supervised step"
        title = f"{name}, by reward: share right"
        rows = runs.read_log(run, f"{name}, by reward")
        ends = [1, rows[-1]["step"]]
        panels[title] = {"sampled, in training": plots.logged(rows, "reward")} | {
            f"{judge}, held out": (ends, [found[judge] / 100] * 2) for judge in ("retrieval", "naive Bayes")
        }
        means = [np.mean(found[key]) / 100 for key in LABELS]
        panels[title]["likeliest answer, held out"] = (ends, means)
        steps[title] = "iteration"
    return plots.curves(panels, steps, columns=2)
