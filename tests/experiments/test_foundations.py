"""The text's small systems: their parts by hand, and each experiment made small."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gradient_flow, initialisation, linear_mse, sigmoid_classifier
from experiments.support.linear_mse import least_squares
from experiments.support.models import deep_nets
from experiments.support.run import configs, runs
from tests.arrays import normal
from tests.experiments.starting import start

SIZE = {"context": 2, "size": 5, "width": 4, "depth": 3}


def net(scale):
    """A net of the shapes that a start has, its numbers drawn or, at scale 0, zeros."""
    draw = lambda key: deep_nets.init(key, deep_nets.SCHEMES["He"], **SIZE)
    rng = np.random.default_rng(0)
    fill = lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32)
    return jax.tree.map(fill, jax.eval_shape(draw, jax.random.key(0)))


def test_a_pass_sees_every_row_once_and_its_last_batch_is_short():
    config = linear_mse.Config(rows=10, batch=4, epochs=3)
    rows, counts = linear_mse.passes(config, jax.random.key(0))
    assert rows.shape == counts.shape == (3, 3, 4)
    assert counts[0].tolist() == [[1.0] * 4, [1.0] * 4, [1.0, 1.0, 0.0, 0.0]]
    for epoch, counted in zip(np.asarray(rows), np.asarray(counts), strict=True):
        assert sorted(epoch[counted == 1].tolist()) == [*range(10)]


def test_the_labels_of_the_unit_square_are_all_positive_and_those_of_the_centred_one_are_not():
    whole = least_squares.make_problem(jax.random.key(0), 100, low=0.0)
    centred = least_squares.make_problem(jax.random.key(0), 100, low=-0.5)
    assert np.all(whole.labels == 1.0)
    assert 0.3 < np.mean(centred.labels == 1.0) < 0.7
    np.testing.assert_array_equal(np.sign(np.sum(centred.inputs, axis=1)), centred.labels)


def test_the_closed_form_is_where_the_gradient_of_the_penalised_loss_vanishes():
    problem = least_squares.Problem(normal(0, (20, 2)), jnp.sign(normal(1, (20,))))
    for ridge in (0.0, 0.3):
        weights = jnp.asarray(least_squares.closed_form(problem, ridge), jnp.float32)
        slope = jax.grad(least_squares.loss)(weights, problem) + ridge * weights
        np.testing.assert_allclose(slope, 0.0, atol=1e-6)


def test_a_net_of_zeros_guesses_uniformly():
    windows = jnp.array([[0, 1, 2], [3, 4, 0]])
    assert deep_nets.loss(net(0), windows) == pytest.approx(np.log(5))


@pytest.mark.parametrize("kind", deep_nets.KINDS)
def test_layers_are_those_of_a_plain_loop(kind):
    params = net(1)
    contexts = np.array([[0, 1], [3, 4]])
    table, hidden, out = params["embedding"], params["hidden"], params["out"]
    x = table[0, contexts[:, 0]] + table[1, contexts[:, 1]]
    for kernel, bias in zip(hidden["kernel"], hidden["bias"], strict=True):
        size = np.sqrt(np.mean(x**2, axis=1, keepdims=True)) if kind == "normalised" else 1.0
        new = np.maximum(x / size @ kernel + bias, 0)
        x = x + new / 3 if kind == "residual" else new
    expected = x @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(deep_nets.logits(params, contexts, kind), expected, rtol=1e-4)


def test_an_unknown_kind_of_layer_is_refused():
    with pytest.raises(ValueError, match="'dense': expected one of plain, residual, normalised"):
        deep_nets.logits(net(0), jnp.zeros((1, 2), jnp.int32), "dense")


def test_fates_of_nets_are_told_by_two_losses():
    data = deep_nets.Data(None, None, frequency_loss=3.0, size=50)  # uniformly: log 50 = 3.91
    shares = initialisation.fates(np.array([2.0, 2.95, 3.9, np.inf]), data)
    assert shares == {"diverged": 0.25, "stuck": 0.5, "learnt": 0.25}


def test_a_ratio_of_gradients_says_when_there_is_none():
    assert gradient_flow.ratio(np.array([[1.0, 9.0, 2.0], [np.nan, 1.0, 1.0]])) == "5.0e-01"
    assert gradient_flow.ratio(np.array([[1.0, 0.0]])) == "dead"
    assert gradient_flow.ratio(np.array([[1.0, np.inf]])) == "not finite"


@pytest.mark.parametrize("experiment", [initialisation, gradient_flow])
def test_missing_plays_are_said_before_a_run_has_a_folder(tmp_path, experiment):
    options = runs.Options(smoke=True, runs=str(tmp_path / "runs"), data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make data"):
        start(experiment, options=options)
    assert not (tmp_path / "runs").exists()


def smoke(experiment, folder: pathlib.Path, **options):
    numbers = start(experiment, options=runs.Options(smoke=True, runs=str(folder), **options))
    (run,) = next(folder.iterdir()).iterdir()
    assert (run / "report.txt").read_text()
    assert next(run.glob("*.png")).stat().st_size > 10_000
    return numbers


@pytest.mark.slow
def test_every_method_of_least_squares_ends_at_the_closed_form(tmp_path):
    numbers = smoke(linear_mse, tmp_path)
    assert all(numbers["converged"].values())
    assert max(numbers["off_by"].values()) < 1e-4
    # A plane through 0 cannot be 1 on all of the square, with a bias it can: nearer already.
    assert numbers["median, with a bias"] < numbers["median, without"]


@pytest.mark.slow
def test_with_a_bias_the_program_ends_below_the_claim_and_without_one_above(tmp_path):
    config = linear_mse.Config(starts=10, problems=1)
    numbers = start(linear_mse, config, runs.Options(runs=str(tmp_path)))
    assert numbers["most, with a bias"] < linear_mse.CLAIMED < numbers["least, without"]


@pytest.mark.slow
def test_a_sigmoid_on_signed_labels_always_answers_plus_one(tmp_path):
    numbers = smoke(sigmoid_classifier, tmp_path)
    signed = numbers["sigmoid, labels {-1, 1}"]
    assert 0.4 < signed["sign of the output right"] < 0.6
    assert signed["side of the border right"] > 0.75
    assert signed["log loss"] > numbers[sigmoid_classifier.BEST]["log loss"]
    assert signed["|θ|"] > numbers[sigmoid_classifier.BEST]["|θ|"]
    assert numbers["weights on the path"][0] == 0 and numbers["weights on the path"][-1] == 2


@pytest.mark.slow
def test_deep_nets_of_large_weights_diverge_and_of_none_are_stuck(tmp_path, wheels):
    numbers = smoke(initialisation, tmp_path, data=str(wheels))
    assert numbers["16 normal, 1"]["diverged"] == 1.0
    for scheme in ("zeros", "normal, 0.01"):
        assert numbers[f"16 {scheme}"]["stuck"] == 1.0
    assert numbers["2 He"]["diverged"] == 0.0


@pytest.mark.slow
def test_small_kernels_let_gradients_vanish_and_a_residual_net_keeps_them(tmp_path, wheels):
    numbers = smoke(gradient_flow, tmp_path, data=str(wheels))
    ratio = lambda name: float(numbers[name]["ratio_at_start"])
    assert ratio("small, plain") < 1e-3 < 1e1 < ratio("large, plain")
    for kernels in ("small", "He", "large"):
        assert 0.5 < ratio(f"{kernels}, residual") < 2.0
    assert not np.isfinite(numbers["large, plain"]["loss"]).any()
    for name in ("large, clipped", "He, residual, fast, clipped"):
        assert np.isfinite(numbers[name]["loss"]).all()
    assert not np.isfinite(numbers["He, residual, fast"]["loss"]).any()


def test_smoke_settings_pass_their_own_checks():
    for experiment in (linear_mse, sigmoid_classifier, initialisation, gradient_flow):
        small = configs.smoke(experiment.Config())
        assert dataclasses.replace(small) == small
