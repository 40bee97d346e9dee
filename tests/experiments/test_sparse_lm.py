"""Neurons removed by penalties and by magnitude: the parts, and the whole made small."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from experiments import sparse_lm
from experiments.support.models import small_lm
from experiments.support.run import runs
from experiments.support.sparse_lm import report
from proxlm import lm
from tests.arrays import normal
from tests.experiments.starting import start

CONFIG = sparse_lm.Config(
    num_layers=2,
    num_heads=2,
    width=8,
    hidden_width=6,
    steps=10,
    strengths=(1.0,),
    reaches=(1.0,),
    shares=(0.5,),
)
MODEL = lm.ModelConfig(vocab_size=5, num_layers=2, width=8, num_heads=2, hidden_width=6)


@pytest.fixture(scope="module")
def params():
    """Weights of size near 1, but for a neuron and a head that are small."""
    like = jax.eval_shape(lambda key: lm.init(key, MODEL), jax.random.key(0))
    leaves, structure = jax.tree.flatten(like)
    params = jax.tree.unflatten(structure, [np.sign(normal(i, leaf.shape)) for i, leaf in enumerate(leaves)])
    mlp, attention = (params["blocks"][part] for part in ("mlp", "attention"))
    mlp["gate_up"]["kernel"][0, :, :, 3] *= 0.01
    mlp["down"]["kernel"][0, 3] *= 0.01
    attention["qkv"]["kernel"][1, :, [1, 3, 5]] *= 0.01
    attention["out"]["kernel"][1, 1] *= 0.01
    return params


def test_the_penalty_removes_small_neurons_and_heads_and_leaves_all_else_alone(params):
    after = jax.tree.map(np.asarray, jax.jit(sparse_lm.group_penalty(0.1, 0.5, CONFIG).prox)(params, 1.0))
    used = lm.live_units(after, MODEL)
    assert used.hidden.astype(int).tolist() == [[1, 1, 1, 0, 1, 1], [1] * 6]
    assert used.heads.astype(int).tolist() == [[1, 1], [1, 0]]
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[new != 0], old[new != 0]), after, params)
    np.testing.assert_array_equal(after["embedding"]["kernel"], params["embedding"]["kernel"])


def test_a_subgradient_is_added_to_the_gradient_and_is_none_at_zero(params):
    link = sparse_lm.subgradient(sparse_lm.group_penalty(0.1, 0.5, CONFIG))
    dead, gradient = (jax.tree.map(like, params) for like in (np.zeros_like, np.ones_like))
    update = jax.jit(lambda gradient, params: link.update(gradient, link.init(params), params)[0])
    jax.tree.map(np.testing.assert_array_equal, update(gradient, dead), gradient)
    updates = jax.tree.map(np.asarray, update(dead, params))
    assert np.any(updates["blocks"]["mlp"]["down"]["kernel"][0, 3] != 0)
    assert not np.any(updates["norm"]["scale"])


def test_the_median_size_is_that_of_the_weights_of_a_neuron(params):
    assert float(small_lm.median_size(params)) == pytest.approx(1.0)


def test_losses_at_a_share_are_read_off_the_line_between_neighbours():
    points = {"share": np.array([[0.2, 0.8, 0.6]]), "loss": np.array([[1.0, 3.0, 2.0]])}
    np.testing.assert_allclose(report.at_share(points, 0.7), [2.5])
    np.testing.assert_allclose(report.at_share(points, 0.805), [3.0])
    assert np.isnan(report.at_share(points, 0.9)).all()


@pytest.fixture(scope="module")
def finished(wheels, tmp_path_factory):
    """The one run that is trained, its numbers and its folder of runs."""
    root = tmp_path_factory.mktemp("sparse_lm")
    options = runs.Options(smoke=True, runs=str(root), data=str(wheels))
    return start(sparse_lm, options=options), options


@pytest.mark.slow
def test_every_method_removes_what_it_was_told_to(finished):
    numbers, _ = finished
    assert numbers["points"].keys() == sparse_lm.chains(CONFIG).keys()
    for method, points in numbers["points"].items():
        ((weak, strong),) = points["share"]
        assert (weak, strong) == (0.0, 0.5) if "pruned" in method else weak < 0.5 < strong


@pytest.mark.slow
def test_the_shrunk_model_gives_the_same_logits(finished):
    numbers, _ = finished
    assert numbers["largest difference of logits"] < 1e-4


@pytest.mark.slow
def test_a_run_leaves_its_files_and_resumes_to_the_same_numbers(finished):
    numbers, options = finished
    folder = next((pathlib.Path(options.runs) / "sparse_lm").iterdir())
    expected = {"config.json", "metrics.jsonl", "report.txt", "pareto.png"}
    assert expected <= {path.name for path in folder.iterdir()}
    log = (folder / "metrics.jsonl").read_text()
    again = start(sparse_lm, options=dataclasses.replace(options, resume=True))
    np.testing.assert_equal(again["losses"], numbers["losses"])
    assert (folder / "metrics.jsonl").read_text() == log


def test_a_missing_text_is_said_before_anything_is_computed(tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path / "runs"), data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make data"):
        start(sparse_lm, options=options)
    assert not (tmp_path / "runs").exists()
