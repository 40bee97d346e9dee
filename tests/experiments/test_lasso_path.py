"""The path of l1 logistic regressions: its parts by hand, and the whole of it made small."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import lasso_path
from experiments.support.data import corpora
from experiments.support.run import runs
from tests.experiments.starting import start

REVIEWS = [
    corpora.Review(text, label)
    for text, label in [("good good film", 1), ("a bad film", 0), ("good", 1), ("bad and sad", 0)]
]


def test_frequent_words_are_counted_by_review_and_not_in_most_of_them():
    assert lasso_path.frequent_words(REVIEWS, 3) == ["bad", "film", "good"]
    assert "good" not in lasso_path.frequent_words([*REVIEWS[:1], REVIEWS[2], REVIEWS[1]], 9)


def test_bags_have_norm_one_and_empty_ones_are_zero():
    bags = lasso_path.bags(REVIEWS, ["film", "good"])
    root = 0.5**0.5
    np.testing.assert_allclose(bags, [[root, root], [1, 0], [0, 1], [0, 0]], rtol=1e-6)


def test_the_duality_gap_is_zero_at_a_solution_alone():
    features, labels = jnp.array([[1.0], [1.0], [-1.0], [1.0]]), jnp.array([1.0, 1.0, 0.0, 0.0])
    # Σ over the four: 3 log(1 + e⁻ʷ) + log(1 + eʷ), a quarter of it, plus strength |w|
    strength = 0.1
    weight = np.log((1 - 4 * strength / 3 + 1 / 3 - 1 / 3) / (1 / 3 + 4 * strength / 3))
    assert lasso_path.duality_gap(features, labels, np.array([weight]), strength) < 1e-12
    assert lasso_path.duality_gap(features, labels, np.array([weight + 0.1]), strength) > 1e-4


@pytest.mark.slow
def test_the_smoke_run_converges_and_writes_its_report(wheels, tmp_path, capsys):
    options = runs.Options(smoke=True, runs=str(tmp_path), data=str(wheels))
    numbers = start(lasso_path, options=options)
    assert numbers["converged"]
    assert 0 <= numbers["largest_gap"] < 1e-2
    assert numbers.get("distance_to_scikit_learn", 0.0) < 1e-2
    written = {path.name for path in next((tmp_path / "lasso_path").iterdir()).iterdir()}
    assert {"config.json", "metrics.jsonl", "report.txt", "path.png"} <= written
    assert "warm-started path" in capsys.readouterr().out


def test_a_missing_text_is_said_before_anything_is_computed(tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path / "runs"), data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make data"):
        start(lasso_path, options=options)
    assert not (tmp_path / "runs").exists()
