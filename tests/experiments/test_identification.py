"""The identification benchmark: problems are solved, counts are right, and ours wins small."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import identification
from experiments.support.run import configs, runs
from tests.experiments.starting import start

SMALL = dataclasses.replace(
    configs.smoke(identification.Config()), steps=4, window=2, rows=8, weights=3, live=1
)


def test_the_solution_is_one():
    problem = identification.make_problem(configs.smoke(identification.Config()), 1)
    slope = problem.features.T @ (problem.features @ problem.solution - problem.targets) / 60
    live = problem.solution != 0
    assert 0 < live.sum() < 20
    np.testing.assert_allclose(slope[live], -problem.strength * np.sign(problem.solution[live]), rtol=1e-6)
    assert np.abs(slope[~live]).max() < problem.strength


def test_outcomes_are_counted_as_they_are_named():
    """A link that sets the weights to what is known after each step."""
    states = jnp.array([[1.0, 0, 0], [1.0, 0, 0], [1.0, 5, 0], [0.0, 5, 7]])
    jump = optax.GradientTransformation(
        lambda params: jnp.zeros([], jnp.int32),
        lambda updates, count, params: (states[count] - params, count + 1),
    )
    problem = identification.make_problem(SMALL, 0)._replace(solution=np.array([1.0, 0, 0]))
    problem = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), problem)
    method = identification.Method(lambda rate, strength: jump, (0.1,))
    outcome = identification.train(SMALL, method, 0.1, problem, jax.random.key(0))
    np.testing.assert_array_equal(outcome.weights, [0, 5, 7])
    np.testing.assert_array_equal(outcome.false, [0, 2])
    np.testing.assert_array_equal(outcome.missed, [0, 1])
    np.testing.assert_array_equal(outcome.flicker, [0, 2])


@pytest.mark.slow
def test_the_smoke_run_has_better_zeros_and_writes_its_report(tmp_path, capsys):
    options = runs.Options(smoke=True, runs=str(tmp_path))
    numbers = start(identification, options=options)["all problems"]
    ours, peer = numbers[identification.OURS], numbers["metric prox-Adam"]
    assert ours["false"] < peer["false"]
    assert ours["flicker"] < peer["flicker"]
    assert ours["gap"] < 1.05 * peer["gap"]
    assert peer["gap"] < 0.01
    written = {path.name for path in next((tmp_path / "identification").iterdir()).iterdir()}
    assert {"config.json", "metrics.jsonl", "report.txt", "identification.png"} <= written
    assert "all problems" in capsys.readouterr().out
