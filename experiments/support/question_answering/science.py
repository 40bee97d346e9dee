"""Two-choice questions by a pretrained model: ridge regression on its states and its words, with a kernel.

x is the mean over a question's tokens of the residual stream after some of the layers, less the mean of all
that are learnt from, of length 1; d is the mean row of the embedding over the tokens of choice A less that of
choice B, of length 1. The answer is A where xᵀ W d + wᵀ d is positive. W and w are regressed on ±1 in their
dual, by the kernel (x·x' + BIAS) d·d', so that the order of the choices makes no difference.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.support.models import smollm
from experiments.support.question_answering import tasks
from experiments.support.question_answering.tasks import Exercise
from experiments.support.run import files, runs, stages
from proxlm import lm

LAYERS = 22  # of SmolLM2's 30 that read
BIAS = 0.1  # of the kernel
RIDGE = 3.0
LONGEST = 128  # tokens of a question
PART = 512  # questions whose states a kill may lose


def accuracy(run: runs.Run, splits: Sequence[tasks.Task]) -> np.ndarray:
    """Shares of right answers to the held-out questions of each split, `[splits]`."""
    parts = [(split.train[::2], split.held_out) for split in splits]  # each question in one order
    model = smollm.load(run.data)
    exercises = [e for pair in parts for part in pair for e in part]
    states = states_of(run, model, sorted({stem_of(e) for e in exercises}))
    words = np.asarray(model.params["embedding"]["kernel"])
    towards = lambda part: np.stack([difference(model, words, e) for e in part])
    found = []
    for train, held_out in parts:
        x, y = (np.stack([states[stem_of(e)] for e in part]) for part in (train, held_out))
        scores = fit(x, towards(train), signs(train), y, towards(held_out))
        found.append(np.mean((scores > 0) == (signs(held_out) > 0)))
    return np.array(found)


def fit(
    x: np.ndarray, d: np.ndarray, answers: np.ndarray, new_x: np.ndarray, new_d: np.ndarray
) -> np.ndarray:
    """Kernel ridge regression of answers `[N]` in ±1 on states and choices `[N, D]`; scores of new ones."""
    mean = x.mean(axis=0)
    x, d, new_x, new_d = unit(x - mean), unit(d), unit(new_x - mean), unit(new_d)
    kernel = lambda a, b: (a @ x.T + BIAS) * (b @ d.T)
    dual = np.linalg.solve(kernel(x, d) + RIDGE * np.eye(len(x), dtype=x.dtype), answers)
    return kernel(new_x, new_d) @ dual


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; one of zeros stays."""
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


def signs(exercises: Sequence[Exercise]) -> np.ndarray:
    """1 where the answer is A, −1 where it is B."""
    return np.array([1.0 if e.answer == "A" else -1.0 for e in exercises], np.float32)


def stem_of(exercise: Exercise) -> str:
    """The question without its choices."""
    return tasks.stem_and_choices(exercise.question)[0]


def difference(model: lm.Pretrained, words: np.ndarray, exercise: Exercise) -> np.ndarray:
    """The mean row of the embedding over the tokens of choice A less that of choice B, `[D]`."""
    a, b = (words[ids(model, f" {c}")].mean(axis=0) for c in tasks.stem_and_choices(exercise.question)[1:])
    return a - b


def ids(model: lm.Pretrained, text: str) -> list[int]:
    """The tokens of a text, as many as a question has at most."""
    tokenizer: Any = model.tokenizer
    return tokenizer.encode(text, add_special_tokens=False).ids[:LONGEST]


def states_of(run: runs.Run, model: lm.Pretrained, stems: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Stem ↦ the mean over its tokens of what `LAYERS` layers make of them; computed once for these stems."""
    settings = {"layers": LAYERS, "texts": hashlib.sha256("\n".join(stems).encode()).hexdigest()}

    def compute(folder: pathlib.Path):
        params, config = smollm.first_layers(model, LAYERS, LONGEST)
        rows = [ids(model, stem) for stem in stems]
        states = smollm.states_by_parts(params, rows, config, folder, PART, batch=32, first=0)
        with files.replacing(folder / "means.npy") as file:
            np.save(file, states)

    path = stages.stage(run, "question-states", settings, compute).path
    return dict(zip(stems, np.load(path / "means.npy"), strict=True))
