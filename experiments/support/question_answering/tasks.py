"""Questions with answers that can be checked: arithmetic made up here, and QuaRTz's science.

QuaRTz (Tafjord et al. 2019, CC BY 4.0; its 3,860 questions as the wheel of `evals` has them) asks
which of two things happens. Most questions have a near twin that differs in a word or two, and so
in the answer: "Ron adds more resistors" and "Ron takes away resistors". Twins stay together.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csgraph
from sklearn import feature_extraction, preprocessing

from experiments.support.data import corpora

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
END_TOKEN = 1
LARGEST = 99  # number in a sum
LONGEST = 64  # tokens of a science question; the few longer ones are left out
TWINS = 0.6  # the cosine from which two questions are taken for one another's near copies

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|\d|[^\sa-z\d]")
_NUMBER = re.compile(r"\d+")
_CHOICE_A, _CHOICE_B = re.compile(r"\bA\s*:"), re.compile(r"\bB\s*:")
_SUMS = (
    "{a} + {b} =",
    "What is {a} plus {b}?",
    "{name} had {a} {things} and got {b}. How many now?",
    "A shop had {a} {things} and made {b}. How many now?",
)
_DIFFERENCES = (
    "{a} - {b} =",
    "What is {a} minus {b}?",
    "{name} had {a} {things} and lost {b}. How many now?",
    "A shop had {a} {things} and sold {b}. How many now?",
)
_NAMES = ("Ann", "Tom", "Mia", "Sam", "Eva", "Max")
_THINGS = ("apples", "eggs", "books", "coins", "pens", "stones")


class Exercise(NamedTuple):
    """A question and its answer, as text."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Words:
    """Tokens are words, single digits and marks, in lower case."""

    vocabulary: list[str]

    @functools.cached_property
    def index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.vocabulary)}

    def encode(self, text: str) -> list[int]:
        return [self.index.get(word, self.index[UNKNOWN]) for word in words(text)]

    def unknown(self, text: str) -> list[str]:
        """The words that the model has never seen."""
        return [word for word in words(text) if word not in self.index]

    def decode(self, tokens: Sequence[int]) -> str:
        """The tokens up to the end, written together: an answer is a number or a letter."""
        found = [self.vocabulary[token] for token in tokens]
        found = found[: found.index(END)] if END in found else found
        text = "".join(reversed(found))
        return str(int(text)) if text.isdigit() else text


def vocabulary_of(texts: Iterable[str], least: int = 1) -> Words:
    """The words that occur so often; the others will be unknown."""
    counts = collections.Counter(word for text in texts for word in words(text))
    return Words([PAD, END, UNKNOWN, *sorted(w for w, n in counts.items() if n >= least)])


class Encoded(NamedTuple):
    """Questions as arrays: prompts end in the last column, answers start in the first."""

    prompts: np.ndarray  # [N, P]
    prompt_mask: np.ndarray
    answers: np.ndarray  # [N, R], END included
    answer_mask: np.ndarray


class Task(NamedTuple):
    """Exercises for training and judging a model, and its tokens."""

    train: list[Exercise]
    held_out: list[Exercise]
    words: Words
    longest: int  # P
    response: int  # R

    def encode(self, exercises: Sequence[Exercise]) -> Encoded:
        return encode(exercises, self.words, self.longest, self.response)


def words(text: str) -> list[str]:
    """Splits into words, marks and digits, two or more a number, its units first.

    So one adds by hand. Source: Lee et al. 2023, Teaching arithmetic to small transformers.

    >>> words("Ann's 12 + 7 =")
    ["ann's", '2', '1', '+', '7', '0', '=']
    """
    return _WORD.findall(_NUMBER.sub(lambda number: number[0].zfill(2)[::-1], text.lower()))


def arithmetic(seed: int, train: int, held_out: int) -> Task:
    """Sums and differences of numbers up to 99, plain and in words.

    A tenth of the pairs {a, b} is held out, whatever their order, and whatever is done with them.
    """
    rng = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(a + 1)]
    split = corpora.split(pairs, seed, held_out=0.1)
    lists = [
        [exercise(rng, pairs[i]) for i in rng.integers(0, len(pairs), count)]
        for pairs, count in ((split.train, train), (split.held_out, held_out))
    ]
    forms = " ".join((*_SUMS, *_DIFFERENCES, *_NAMES, *_THINGS, "0123456789"))
    longest = max(len(words(e.question)) for part in lists for e in part)
    return Task(lists[0], lists[1], vocabulary_of([forms]), longest, response=4)


def exercise(rng: np.random.Generator, pair: tuple[int, int]) -> Exercise:
    """A question about a pair a ≥ b, in one of the forms."""
    a, b = pair
    forms, answer = ((_SUMS, a + b), (_DIFFERENCES, a - b))[rng.integers(2)]
    if forms is _SUMS and rng.integers(2):
        a, b = b, a
    form = forms[rng.integers(len(forms))]
    name, things = (str(rng.choice(options)) for options in (_NAMES, _THINGS))
    return Exercise(form.format(a=a, b=b, name=name, things=things), str(answer))


def choices(question: str) -> tuple[str, str, str] | None:
    """The stem and the two choices of a question, or None if it gives no choice.

    >>> choices("The heat will go  A: up  B: down")
    ('The heat will go', 'up', 'down')
    """
    first = _CHOICE_A.search(question)
    second = first and _CHOICE_B.search(question, first.end())
    if not (first and second):
        return None
    parts = question[: first.start()], question[first.end() : second.start()], question[second.end() :]
    stem, a, b = (" ".join(part.split()) for part in parts)
    return stem, a, b


def quartz(
    seed: int,
    folder: pathlib.Path = corpora.WHEELS,
    requirements: pathlib.Path = corpora.MORE,
    held_out: float = 0.15,
) -> Task:
    """QuaRTz, its near twins on one side; to learn from, each question in both orders of choice."""
    pattern = r"evals/registry/data/quartz/samples\.jsonl"
    (lines,) = corpora.members("evals", pattern, folder, requirements)
    rows = [json.loads(line) for line in lines.splitlines()]
    found = distinct((row["input"][-1]["content"], row["ideal"]) for row in rows)
    parts = corpora.split(together(found), seed, held_out)
    train, judged = ([e for group in part for e in group] for part in parts)
    tokens = vocabulary_of((e.question for e in train), least=2)
    fits = lambda part: [e for e in part if len(words(e.question)) <= LONGEST]
    both = [e for own in fits(train) for e in (own, swapped(own))]
    return Task(both, fits(judged), tokens, LONGEST, response=2)


def stem_and_choices(question: str) -> tuple[str, str, str]:
    """The same of a question that has to give a choice."""
    if (parts := choices(question)) is None:
        raise ValueError(f"{question!r}: expected choices A and B")
    return parts


def distinct(rows: Iterable[tuple[str, str]]) -> list[Exercise]:
    """Each question once, whatever the case of its letters and the order of its choices."""
    found = {}
    for text, answer in rows:
        stem, a, b = stem_and_choices(text)
        if answer not in ("A", "B"):
            raise ValueError(f"{text!r} with answer {answer!r}: expected choices A and B")
        key = (stem.lower(), *sorted((a.lower(), b.lower())))
        found.setdefault(key, Exercise(f"{stem} A: {a} B: {b}", answer))
    return list(found.values())


def swapped(exercise: Exercise) -> Exercise:
    """The same question with its choices in the other order.

    >>> swapped(Exercise("Up or down? A: up B: down", "A"))
    Exercise(question='Up or down? A: down B: up', answer='B')
    """
    stem, a, b = stem_and_choices(exercise.question)
    return Exercise(f"{stem} A: {b} B: {a}", {"A": "B", "B": "A"}[exercise.answer])


def together(exercises: Sequence[Exercise]) -> list[list[Exercise]]:
    """Groups of near twins: linked by stems whose tf-idf vectors have a cosine of TWINS or more."""
    vectors = tf_idf([words(stem_and_choices(e.question)[0]) for e in exercises])
    _, labels = csgraph.connected_components(vectors @ vectors.T >= TWINS, directed=False)
    groups = collections.defaultdict(list)
    for label, exercise in zip(labels.tolist(), exercises, strict=True):
        groups[label].append(exercise)
    return list(groups.values())


def tf_idf(bags: Sequence[Sequence[str]]) -> np.ndarray:
    """Unit vectors `[N, V]` of the words that occur, each weighted by ln(N / texts that have it)."""
    analyzer: Any = list
    occurs: Any = feature_extraction.text.CountVectorizer(analyzer=analyzer, binary=True).fit_transform(bags)
    rarity = np.log(len(bags) / occurs.getnnz(axis=0))
    vectors: Any = preprocessing.normalize(occurs.multiply(rarity))
    return vectors.toarray()


def encode(exercises: Sequence[Exercise], tokens: Words, longest: int, response: int) -> Encoded:
    prompts = np.zeros((len(exercises), longest), np.int32)
    answers = np.zeros((len(exercises), response), np.int32)
    masks = np.zeros(prompts.shape, bool), np.zeros(answers.shape, bool)
    for i, (question, answer) in enumerate(exercises):
        row, reply = tokens.encode(question), [*tokens.encode(answer), END_TOKEN]
        prompts[i, longest - len(row) :], masks[0][i, longest - len(row) :] = row, True
        answers[i, : len(reply)], masks[1][i, : len(reply)] = reply, True
    return Encoded(prompts, masks[0], answers, masks[1])
