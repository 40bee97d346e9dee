"""Rewards of answers by their text, from one line each.

    exact                      1 where the answer is the right one, white space aside
    choice                     1 where the right choice, and no other, is in the answer
    regex:^-?\\d+$              1 where the expression is found in the answer
    task                       what the task itself says
    python:module.function     your function of (answer, problem)

A weight may stand before each, as in "0.2*regex:^\\d+$"; the reward is the weighted sum.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.support.reinforce.tasks import Problem, Task
from proxlm import _validation

EXPECTED = '"exact", "choice", "regex:PATTERN", "task" or "python:module.function", a weight in front or not'


class Reward(NamedTuple):
    """A function of (answer, problem), its name and its weight."""

    name: str
    weight: float
    score: Callable[[str, Problem], float]


def parse(texts: Sequence[str], task: Task) -> list[Reward]:
    """The rewards of a command line; ValueError for what is none.

    >>> task = Task([], [])
    >>> (one,) = parse(["0.5*exact"], task)
    >>> one.weight, one.score(" 7", Problem("3 + 4 =", "7"))
    (0.5, 1.0)
    """
    found = []
    for text in texts:
        weight, star, name = text.partition("*")
        if not star or not re.fullmatch(r"[\d.]+", weight):
            weight, name = "1", text
        kind, _, rest = name.partition(":")
        if name in ("exact", "choice"):
            score = _exact if name == "exact" else _choice
        elif name == "task" and task.score is not None:
            score = task.score
        elif kind == "regex" and rest:
            score = _matching(rest)
        elif kind == "python" and "." in rest:
            score = _imported(rest)
        else:
            raise _validation.invalid("reward", text, EXPECTED)
        found.append(Reward(name, float(weight), score))
    return found


def total(rewards: Sequence[Reward], answers: Sequence[str], problems: Sequence[Problem]) -> np.ndarray:
    """The weighted sum of each answer, `[B]`; None of a function counts as not judged, NaN."""
    judged = [[r.score(a, p) for r in rewards] for a, p in zip(answers, problems, strict=True)]
    scores = np.array([[np.nan if x is None else float(x) for x in row] for row in judged])
    return scores @ np.array([r.weight for r in rewards])


def _exact(answer: str, problem: Problem) -> float:
    return float(answer.split() == problem.answer.split())


def _choice(answer: str, problem: Problem) -> float:
    named = [c for c in problem.choices if re.search(rf"\b{re.escape(c)}\b", answer)]
    return float(named == [problem.answer])


def _matching(pattern):
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise _validation.invalid("reward", pattern, f"a regular expression ({error})") from error
    return lambda answer, problem: float(expression.search(answer) is not None)


def _imported(path):
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        expected = f"a function that can be imported ({error})"
        raise _validation.invalid("reward", f"python:{path}", expected) from error
