"""Selection of units and refits of layers, by closed forms; the whole of prune_lm is a slow test."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import prune_lm
from experiments.support import Refusal
from experiments.support.models import pretrained
from experiments.support.prune_lm import activations, layers
from experiments.support.run import runs
from proxlm import lm
from tests.experiments.starting import start


@pytest.fixture(scope="module")
def layer():
    """Activations `[N, 6]` of very different sizes, and a kernel of three pairs of rows in one pool."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 6)) * [1, 1, 0.1, 0.1, 5, 5] + rng.normal(size=(40, 1))
    return values.astype(np.float32), rng.normal(size=(1, 3, 2, 4)).astype(np.float32)


def test_a_refit_is_the_least_squares_solution_on_what_is_kept(layer):
    values, kernel = layer
    keep = jnp.array([[True, False, True]])
    found = jax.jit(layers.refit)(jnp.asarray(values.T @ values), kernel, keep, 0.0).reshape(6, 4)
    columns, whole = [0, 1, 4, 5], values @ kernel.reshape(6, 4)
    expected = np.linalg.lstsq(values[:, columns], whole, rcond=None)[0]
    np.testing.assert_allclose(found[np.array(columns)], expected, rtol=2e-3, atol=1e-3)
    assert not np.any(found[2:4])
    share = np.sum((values @ np.asarray(found) - whole) ** 2) / np.sum(whole**2)
    assert layers.error(values.T @ values, kernel, found) == pytest.approx(share, rel=1e-2)


def test_scores_by_activation_are_the_sizes_of_what_a_unit_adds_if_rows_do_not_correlate(layer):
    values, kernel = layer
    squares = np.mean(values**2, axis=0).reshape(3, 2, 1) * kernel[0] ** 2
    scores = layers.by_activation(jnp.asarray(values.T @ values / 40), kernel)
    np.testing.assert_allclose(scores[0], np.sqrt(squares.sum(axis=(1, 2))), rtol=1e-5)
    assert layers.largest(scores, 1).sum() == 1


@pytest.mark.parametrize("name", prune_lm.PENALTIES)
def test_a_penalty_on_rows_that_do_not_correlate_keeps_the_largest_of_each_pool(name):
    sizes = np.array([3.0, 1.0, 2.0, 0.5, 0.1, 4.0], np.float32)
    gram, kernel = jnp.diag(sizes**2), jnp.ones((2, 3, 1, 2))
    scores = layers.by_penalty(gram, kernel, 1, 4, prune_lm.PENALTIES[name], 0.0)
    np.testing.assert_array_equal(layers.largest(scores, 1), sizes.reshape(2, 3) > 2.5)


def test_a_penalty_sees_that_one_unit_can_stand_for_two():
    # the second unit gives what the first does; the third is smaller than both, and no one else gives it
    values = np.array([[1, 1, 0], [0, 0, 1]], np.float32)
    gram, kernel = jnp.asarray(values.T @ values), jnp.array([2.0, 1.95, 1.9]).reshape(1, 3, 1, 1)
    assert layers.largest(layers.by_activation(gram, kernel), 2).tolist() == [[True, True, False]]
    scores = layers.by_penalty(gram, kernel, 2, 40, prune_lm.PENALTIES["group MCP"], 0.0)
    assert layers.largest(scores, 2).tolist() == [[True, False, True]]


@pytest.mark.slow
def test_the_smoke_run_saves_the_model_that_it_cut_out(wheels, tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path), data=str(wheels))
    numbers = start(prune_lm, options=options)
    (path,) = tmp_path.glob("prune_lm/*/model")
    small = lm.load(path).config
    assert lm.num_params(small) == numbers["small"]["parameters"]["after"]
    assert small.hidden_width == numbers["small"]["shape"]["hidden_width"] == 29
    resumed = start(prune_lm, options=dataclasses.replace(options, resume=True))
    assert str(resumed) == str(numbers)


@pytest.mark.slow
def test_layers_that_are_not_of_llama_are_refused(tmp_path):
    model = pretrained.load("untrained", tmp_path, ["a film"], 16)
    tokens = np.zeros((2, 5), np.int32)
    collect = functools.partial(activations.grams, model.params, tokens, batch=2)
    assert np.isfinite(collect(model.config).neurons).all()
    with pytest.raises(Refusal, match="parts beside those of Llama's"):
        collect(dataclasses.replace(model.config, activation="gelu"))
