"""Problems with right answers: a file of yours, sums, or a generator of reasoning-gym."""

import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.support import Refusal
from proxlm import _validation

SUMS, GYM = "sums", "reasoning_gym/"
GENERATED = 1000  # problems that a generator is asked for
EXPECTED = f'a file of JSON lines, "{SUMS}", "{SUMS}:30" or "{GYM}NAME" or "{GYM}NAME:OPTION=NUMBER,..."'


class Problem(NamedTuple):
    """A question and its answer; the choices, if the answer is one of several; a generator's entry."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    entry: Any = None


class Task(NamedTuple):
    """Problems to learn from and to judge by, and what scores an answer where the task says it itself."""

    train: list[Problem]
    held_out: list[Problem]
    score: Callable[[str, Problem], float] | None = None


def load(name: str, held_out: int, seed: int) -> Task:
    """The problems of a task, shuffled; the first of them held out.

    Raises:
      Refusal: there is no such task, a line of the file is no problem, or there are too few.
    """
    score = None
    if name.startswith(GYM):
        problems, score = _generated(name.removeprefix(GYM), held_out, seed)
    elif name.split(":")[0] == SUMS and not pathlib.Path(name).exists():
        problems = _sums(name)
    else:
        problems = _of_file(pathlib.Path(name))
    if len(problems) < 2 * held_out:
        raise Refusal(f"task: {name} has {len(problems)} problems, of which {held_out} are to be held out")
    order = np.random.default_rng(seed).permutation(len(problems))
    shuffled = [problems[i] for i in order]
    return Task(shuffled[held_out:], shuffled[:held_out], score)


def _sums(name):
    """All sums a + b of two numbers up to 9, or up to the number after the colon."""
    _, _, largest = name.partition(":")
    if largest and not (largest.isdecimal() and int(largest) > 0):
        raise _validation.invalid("task", name, EXPECTED)
    numbers = range(int(largest or 9) + 1)
    return [Problem(f"{a} + {b} =", str(a + b)) for a in numbers for b in numbers]


def _of_file(path):
    """A problem a line: {"question": ..., "answer": ...}, and "choices" if there are some."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"task must be {EXPECTED}, got {str(path)!r}, which cannot be read") from error
    problems = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            problem = Problem(row["question"], str(row["answer"]), tuple(map(str, row.get("choices", ()))))
            if not (isinstance(problem.question, str) and problem.question):
                raise ValueError("the question is no text")
            problems.append(problem)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = '{"question": "2 + 2 =", "answer": "4"}'
            raise Refusal(f"task: line {number} of {path} must be as {wanted} ({error!r})") from error
    return problems


def _generated(name, held_out, seed):
    try:
        reasoning_gym = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise Refusal("task needs reasoning-gym: pip install reasoning-gym") from error
    name, _, options = name.partition(":")
    try:
        given = {
            key: json.loads(value) for key, _, value in (x.partition("=") for x in options.split(",") if x)
        }
        made = reasoning_gym.create_dataset(name, size=GENERATED + held_out, seed=seed, **given)
    except (ValueError, TypeError, AssertionError) as error:
        raise Refusal(
            f"task must be {EXPECTED}, got {GYM}{name} with {options or 'no options'!r}: {error}"
        ) from error
    problems = {
        entry["question"]: Problem(entry["question"], str(entry["answer"]), (), entry) for entry in made
    }
    return list(problems.values()), lambda response, problem: made.score_answer(response, problem.entry)
