"""Judges of written text that know nothing of the model which wrote it.

Sentiment, by a classifier that is fitted to reviews and by a lexicon; and variety, by counting
n-grams. A reward is never its own judge: what one of these rewards, another one should judge.
"""

import collections
import functools
import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from vaderSentiment import vaderSentiment

_WORD = re.compile(r"\w+(?:'\w+)*")

Tokens = Sequence[Hashable]


def words(text: str) -> list[str]:
    """Splits into lower-cased words, apostrophes inside them kept.

    >>> words("Don't panic: it's 42!")
    ["don't", 'panic', "it's", '42']
    """
    return _WORD.findall(text.lower())


class NaiveBayes(NamedTuple):
    """What a multinomial naive Bayes classifier of two classes remembers."""

    columns: dict[str, int]
    log_ratios: np.ndarray  # [V], ln p(word | 1) - ln p(word | 0)
    prior_log_odds: float


def fit_naive_bayes(texts: Sequence[str], labels: Sequence[int]) -> NaiveBayes:
    """Counts words: p(w | c) = (n_wc + 1) / (Σ_v n_vc + V), with V words seen in either class.

    Args:
        texts: B texts.
        labels: B labels, 0 or 1, each occurring.

    Raises:
        ValueError: if labels are others, lack a class, or are not as many as the texts; or if
            there is no word in the texts.

    >>> model = fit_naive_bayes(["good film", "bad film"], [1, 0])
    >>> naive_bayes_log_odds(model, ["good", "film", "bad", "unseen"]).round(3).tolist()
    [0.693, 0.0, -0.693, 0.0]
    """
    if len(texts) != len(labels):
        raise ValueError(f"labels has {len(labels)} entries for {len(texts)} texts: give one each")
    if {*labels} != {0, 1}:
        raise ValueError(f"labels holds {sorted({*labels})}: give zeros and ones, some of both")
    counts = (collections.Counter(), collections.Counter())
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(words(text))
    columns = {word: column for column, word in enumerate(sorted(counts[0] | counts[1]))}
    if not columns:
        raise ValueError("texts hold no word at all: give texts with letters or digits in them")
    log_likelihoods = []
    for count in counts:
        smoothed = np.array([count[word] + 1 for word in columns], np.float64)
        log_likelihoods.append(np.log(smoothed) - np.log(smoothed.sum()))
    positive = sum(labels)
    prior_log_odds = float(np.log(positive) - np.log(len(labels) - positive))
    return NaiveBayes(columns, log_likelihoods[1] - log_likelihoods[0], prior_log_odds)


def naive_bayes_log_odds(model: NaiveBayes, texts: Iterable[str]) -> np.ndarray:
    """Sums evidence: ln p(1 | text) - ln p(0 | text), in nats; [B]. Unseen words say nothing."""
    ratios = dict(zip(model.columns, model.log_ratios.tolist(), strict=True))
    evidence = [sum(ratios.get(word, 0.0) for word in words(text)) for text in texts]
    return model.prior_log_odds + np.array(evidence, np.float64)


def accuracy(log_odds: np.ndarray, labels: Sequence[int]) -> float:
    """Gives the share of texts on the right side of even odds.

    >>> accuracy(np.array([2.0, -1.0, 0.5, 3.0]), [1, 0, 0, 1])
    0.75
    """
    return float(np.mean((np.asarray(log_odds) > 0) == np.asarray(labels, bool)))


@functools.cache
def _analyser() -> vaderSentiment.SentimentIntensityAnalyzer:
    # Building it reads the lexicon, which takes longer than scoring a hundred sentences.
    return vaderSentiment.SentimentIntensityAnalyzer()


def vader(texts: Iterable[str]) -> np.ndarray:
    """Scores sentiment by VADER's lexicon (Hutto and Gilbert 2014): compound in [-1, 1]; [B].

    >>> vader(["A wonderful film!", "A table.", "A boring mess."]).round(2).tolist()
    [0.61, 0.0, -0.59]
    """
    analyser = _analyser()
    return np.array([analyser.polarity_scores(text)["compound"] for text in texts], np.float64)


def _ngrams(text: str | Tokens, n: int) -> Iterator[tuple]:
    if n < 1:
        raise ValueError(f"n is {n}: give the length of the n-grams, 1 or more")
    tokens = words(text) if isinstance(text, str) else np.asarray(text).tolist()
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def distinct_n(texts: Iterable[str | Tokens], n: int) -> float:
    """Measures variety: distinct n-grams over n-grams, both counted over all texts together.

    A text is a string, cut into `words`, or its tokens. N-grams do not reach across texts. It
    falls as more text is pooled, so compare pools of one size. Without any n-gram it is 0.

    Raises:
        ValueError: if n is below 1.

    Source: Li et al. 2016, a diversity-promoting objective for conversation models.

    >>> distinct_n(["the cat sat", "the cat ran"], 2)
    0.75
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len({*grams}) / max(len(grams), 1)


def repetition(texts: Iterable[str | Tokens], n: int = 4) -> np.ndarray:
    """Measures loops: the share of a text's n-grams that stood earlier in the same text; [B].

    A text too short to have an n-gram gets 0.

    Raises:
        ValueError: if n is below 1.

    >>> repetition(["so it goes and so it goes", "so it goes"], n=2).round(3).tolist()
    [0.333, 0.0]
    """
    grams = [list(_ngrams(text, n)) for text in texts]
    return np.array([1 - len({*own}) / len(own) if own else 0.0 for own in grams], np.float64)
