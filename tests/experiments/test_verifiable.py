"""Verifiable rewards: the problems, their checkers, and the experiment that learns from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import verifiable
from experiments.support.run import runs
from experiments.support.verifiable import length_bias, tasks
from proxlm import lm
from proxlm.policy import recipes
from tests.experiments.starting import start
from tests.policy.table_actor import compiled

COPY, REVERSE, SORT, ADD, COUNTDOWN = range(tasks.FIRST_TASK, tasks.VOCAB_SIZE)
END, BLANK, PLUS, MINUS = tasks.END, tasks.BLANK, tasks.PLUS, tasks.MINUS
RIGHT = compiled(jax.vmap(tasks.right))


@pytest.fixture(scope="module")
def problems():
    return compiled(jax.vmap(tasks.draw))(jax.random.split(jax.random.key(0), 300))


def verdicts(*rows):
    return RIGHT(jnp.array(rows)).tolist()


def test_answers_are_right_and_with_a_slip_most_are_wrong(problems):
    assert set(np.asarray(tasks.task_of(problems.prompt))) == set(range(5))
    keys = jax.random.split(jax.random.key(1), 300)
    slipped = compiled(jax.vmap(tasks.slip))(keys, problems.answer)
    changed = np.any(slipped != problems.answer, axis=1)
    assert 0.8 < changed.mean() < 1.0
    assert all(np.sum(slipped != problems.answer, axis=1)[changed] == 1)
    ends = np.asarray(problems.answer == END)
    np.testing.assert_array_equal(slipped[ends], END)
    judge = lambda answer: np.asarray(RIGHT(jnp.concatenate([problems.prompt, answer], axis=1)))
    assert judge(problems.answer).all()
    assert judge(slipped)[~changed].all() and judge(slipped)[changed].mean() < 0.1


def test_every_task_has_its_answer():
    rows = [
        [COPY, 3, 1, 4, 1, 5, 3, 1, 4, 1, 5, END],
        [REVERSE, 3, 1, 4, 1, 5, 5, 1, 4, 1, 3, END],
        [SORT, 3, 1, 4, 1, 5, 1, 1, 3, 4, 5, END],
        [ADD, 4, 7, BLANK, BLANK, BLANK, 1, END, 9, 9, 9, 9],
        [COUNTDOWN, 3, 1, 4, 6, BLANK, 3, MINUS, 1, PLUS, 4, END],
        [COUNTDOWN, 3, 1, 4, 6, BLANK, 4, PLUS, 3, MINUS, 1, END],
    ]
    assert verdicts(*rows) == [True] * len(rows)
    assert tasks.spell(rows[3]) == "add 4 7 _ _ _ 1 END"


def test_wrong_answers_are_wrong():
    rows = [
        [COPY, 3, 1, 4, 1, 5, 3, 1, 4, 1, 5, BLANK],  # no END
        [SORT, 3, 1, 4, 1, 5, 3, 1, 4, 1, 5, END],
        [ADD, 4, 7, BLANK, BLANK, BLANK, 1, 1, END, 9, 9, 9],
        [COUNTDOWN, 3, 1, 4, 6, BLANK, 3, PLUS, 1, PLUS, 4, END],  # 8
        [COUNTDOWN, 3, 1, 4, 6, BLANK, 3, PLUS, 3, PLUS, 0, END],  # other numbers
        [COUNTDOWN, 3, 1, 4, 6, BLANK, 3, 9, 1, PLUS, 4, END],  # a digit for a sign
    ]
    assert verdicts(*rows) == [False] * len(rows)


def test_all_right_answers_are_found_once(problems):
    rows, valid = compiled(jax.vmap(tasks.all_right))(problems)
    task = np.asarray(tasks.task_of(problems.prompt))
    counts = np.asarray(valid).sum(axis=1)
    assert (counts[task != 4] == 1).all() and (counts[task == 4] >= 1).all()
    # 1, 1 and 2 come to 2 as 1 - 1 + 2, 1 + 2 - 1 and 2 + 1 - 1, 2 - 1 + 1
    prompt = jnp.array([COUNTDOWN, 1, 1, 2, 2, BLANK])
    problem = tasks.Problem(prompt, jnp.zeros(6, int))
    rows, valid = compiled(tasks.all_right)(problem)
    assert {tuple(row[[0, 1, 2, 4]].tolist()) for row in np.asarray(rows)[valid]} == {
        (1, MINUS, 1, 2),
        (1, PLUS, 2, 1),
        (2, PLUS, 1, 1),
        (2, MINUS, 1, 1),
    }
    assert valid.sum() == 4


def test_lengths_are_those_of_right_and_wrong_answers():
    mask = jnp.arange(3)[None] < jnp.array([[1], [3], [2]])
    samples = lm.Samples(None, None, None, mask, jnp.array([True, False, True]))
    seen = length_bias.watch(samples, jnp.array([1.0, 0.0, 1.0]))
    assert (seen["right"], seen["wrong"]) == (1.5, 3.0)
    np.testing.assert_allclose(seen["ended"], 2 / 3, rtol=1e-6)


def test_every_recipe_is_tried_with_its_own_numbers():
    assert set(verifiable.Config().recipes) == set(recipes.RECIPES) - {"gdpo"}
    own, tried = recipes.make("gspo"), verifiable.settings_of("gspo")
    assert dataclasses.replace(tried, num_epochs=own.num_epochs) == own


@pytest.mark.slow
def test_the_smoke_run_says_what_it_found_and_goes_on_to_the_same_bits(tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path))
    numbers = start(verifiable, options=options)
    # a policy that knows nothing is nearly never right, and hardly moves
    assert numbers["start"]["least_kl"] > 3.0
    for name in ("remax",):
        assert len(numbers[name]["exact"]) == 2 and abs(numbers[name]["kl"][0]) < 0.5
    folder = next(path for path in (tmp_path / "verifiable").iterdir() if path.name != "cache")
    assert (folder / "recipes.png").exists() and (folder / "curves.png").exists()
    newest = sorted((folder / "recipes").iterdir())[-1]
    for path in newest.iterdir() if newest.is_dir() else [newest]:
        path.unlink()
    if newest.is_dir():
        newest.rmdir()
    again = start(verifiable, options=dataclasses.replace(options, resume=True))
    for name in ("remax",):
        assert again[name]["exact"] == numbers[name]["exact"]
        assert again[name]["kl"] == numbers[name]["kl"]
