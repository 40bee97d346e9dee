"""Metrics of written text that do not use the model which wrote it.

Sentiment, by a classifier that is fitted to reviews and by a lexicon; and variety, by counting
n-grams. Where one of them is a reward, another one should judge.
"""

import functools
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn import feature_extraction, naive_bayes, pipeline
from vaderSentiment import vaderSentiment

_WORD = re.compile(r"\w+(?:'\w+)*")

Tokens = Sequence[Hashable]


def words(text: str) -> list[str]:
    """Splits into lower-cased words, apostrophes inside them kept.

    >>> words("Don't panic: it's 42!")
    ["don't", 'panic', "it's", '42']
    """
    return _WORD.findall(text.lower())


def fit_naive_bayes(
    texts: Sequence[str], labels: Any, analyzer: Callable[[str], list[str]] = words
) -> pipeline.Pipeline:
    """Fits multinomial naive Bayes, p(w | c) = (n_wc + 1) / (Σ_v n_vc + V), to texts and labels `[B]`.

    V counts the words, or what else `analyzer` makes of a text, of all classes.

    >>> model = fit_naive_bayes(["good film", "bad film"], [1, 0])
    >>> log_odds(model, ["good", "film", "bad", "unseen"]).round(3).tolist()
    [0.693, 0.0, -0.693, 0.0]
    """
    counts = feature_extraction.text.CountVectorizer(analyzer=analyzer)  # pyright: ignore[reportArgumentType]
    return pipeline.make_pipeline(counts, naive_bayes.MultinomialNB()).fit(texts, labels)


def log_odds(model: pipeline.Pipeline, texts: Sequence[str]) -> np.ndarray:
    """ln p(second class | text) - ln p(first class | text), in nats; `[B]`."""
    first, second = model.predict_log_proba(texts).T
    return second - first


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
