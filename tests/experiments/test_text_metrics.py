"""Judges give the numbers one gets by hand."""

import doctest
import itertools

import numpy as np
import pytest

from experiments.support.data import corpora, text_metrics


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(text_metrics) == (0, 7)


def test_naive_bayes_equals_the_counts_by_hand():
    model = text_metrics.fit_naive_bayes(["good good film", "a film", "Bad, bad film!"], [1, 1, 0])
    # Four words; five tokens in the liked texts, three in the other, and one more for each word.
    good, film = np.log((3 / 9) / (1 / 7)), np.log((3 / 9) / (2 / 7))
    odds = text_metrics.log_odds(model, ["GOOD film, good new film", "", "unseen"])
    np.testing.assert_allclose(odds, np.log(2) + np.array([2 * good + 2 * film, 0, 0]), rtol=1e-12)


def test_naive_bayes_with_labels_exchanged_changes_the_sign():
    texts, labels = ["warm and kind", "cold and cruel", "cold"], np.array([1, 0, 0])
    one, other = (text_metrics.fit_naive_bayes(texts, each) for each in (labels, 1 - labels))
    probes = ["warm", "cold cruel", "and"]
    odds = text_metrics.log_odds(one, probes)
    np.testing.assert_allclose(odds, -text_metrics.log_odds(other, probes), rtol=1e-9)
    assert odds[0] > odds[2] > odds[1]


def test_naive_bayes_tells_real_reviews_apart(wheels):
    train, held_out = corpora.split(corpora.rotten_tomatoes(wheels), seed=0, held_out=0.2)
    model = text_metrics.fit_naive_bayes(*zip(*train, strict=True))
    texts, labels = zip(*held_out, strict=True)
    right = text_metrics.accuracy(text_metrics.log_odds(model, texts), labels)
    # 1706 sentences: chance is 0.5 with a deviation of 0.012.
    assert 0.74 < right < 0.80


def test_even_odds_are_on_the_side_of_the_first_class():
    assert text_metrics.accuracy(np.array([0.0, 0.0, 0.0, 1.0]), [0, 1, 1, 1]) == 0.5


def test_vader_negates_and_stays_in_range():
    good, not_good, shout, nothing = text_metrics.vader(["good", "not good", "GREAT " * 200, ""])
    assert -1 <= not_good < 0 < good < shout <= 1
    assert nothing == 0


def test_distinct_n_counts_the_pool_and_not_each_text():
    texts = ["a b a b", "a b c", "c"]
    assert text_metrics.distinct_n(texts, 1) == pytest.approx(3 / 8)
    assert text_metrics.distinct_n(texts, 2) == pytest.approx(3 / 5)  # ab ba ab, ab bc
    assert text_metrics.distinct_n(texts, 4) == 1
    assert text_metrics.distinct_n(texts, 5) == 0


def test_variety_of_tokens_equals_variety_of_their_words():
    tokens = np.array([[1, 2, 1, 2, 3], [4, 4, 4, 4, 4]])
    texts = [" ".join(map(str, row)) for row in tokens]
    for n in (1, 2, 3):
        assert text_metrics.distinct_n(tokens, n) == text_metrics.distinct_n(texts, n)
        np.testing.assert_array_equal(text_metrics.repetition(tokens, n), text_metrics.repetition(texts, n))


def test_repetition_equals_a_loop_over_positions():
    rng = np.random.default_rng(0)
    for tokens, n in itertools.product(rng.integers(0, 3, (5, 30)).tolist(), (1, 2, 4)):
        grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
        seen = [gram in grams[:place] for place, gram in enumerate(grams)]
        np.testing.assert_allclose(text_metrics.repetition([tokens], n), [np.mean(seen)], rtol=1e-12)


def test_repetition_of_a_loop_nears_one_and_of_a_short_text_is_zero():
    looped, short, varied = text_metrics.repetition(["so it goes " * 100, "so it goes", "a b c d e f"])
    assert looped == pytest.approx(1 - 3 / 297)
    assert short == varied == 0


def test_n_below_one_is_refused():
    for measure in (text_metrics.distinct_n, text_metrics.repetition):
        with pytest.raises(ValueError, match="n is 0"):
            measure(["a b"], 0)
