"""Choices are judged by a kernel ridge regression on states of the questions."""

import jax.numpy as jnp
import numpy as np

from experiments.support.models import pretrained, smollm
from experiments.support.question_answering import science
from experiments.support.question_answering.tasks import Exercise, swapped
from proxlm import lm


def test_the_regression_is_ridge_on_products_of_states_and_choices():
    rng = np.random.default_rng(0)
    x, d, new_x, new_d = (rng.normal(size=(n, 3)) for n in (20, 20, 5, 5))
    answers = np.sign(x[:, 0] * d[:, 1])
    found = science.fit(x, d, answers, new_x, new_d)

    def products(x_part, d_part):
        one = np.full((len(x_part), 1), np.sqrt(science.BIAS))
        left = np.concatenate([science.unit(x_part - x.mean(axis=0)), one], axis=1)
        return np.einsum("ni,nj->nij", left, science.unit(d_part)).reshape(len(x_part), -1)

    a = products(x, d)
    weights = np.linalg.solve(a.T @ a + science.RIDGE * np.eye(a.shape[1]), a.T @ answers)
    np.testing.assert_allclose(found, products(new_x, new_d) @ weights, rtol=1e-6)
    np.testing.assert_allclose(science.fit(x, d, answers, new_x, -new_d), -found, rtol=1e-6)


def test_states_are_means_over_the_tokens_of_each_question_alone(tmp_path):
    model = pretrained.load(pretrained.UNTRAINED, tmp_path, ["Ice melts in the sun."], 128)
    rows = [[5, 6, 7], [9, 8], [4, 4, 4, 4, 4]]
    found = smollm.mean_states(model.params, rows, model.config, batch=2, first=0)
    tokens = jnp.array([[*row, *[0] * (8 - len(row))] for row in rows])
    states = np.asarray(lm.hidden_states(model.params, tokens, model.config)[-1]).reshape(3, 8, -1)
    states = states / np.sqrt(np.mean(states**2, axis=2, keepdims=True) + 1e-6)
    expected = [row[: len(own)].mean(axis=0) for row, own in zip(states, rows, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_question_in_the_other_order_has_the_other_sign(tmp_path):
    model = pretrained.load(pretrained.UNTRAINED, tmp_path, ["Ice melts in the sun."], 128)
    own = Exercise("The ice will A: melt B: grow", "A")
    words = np.asarray(model.params["embedding"]["kernel"])
    one, other = (science.difference(model, words, e) for e in (own, swapped(own)))
    np.testing.assert_array_equal(one, -other)
    assert science.signs([own, swapped(own)]).tolist() == [1, -1]
