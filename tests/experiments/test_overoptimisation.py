"""The gold reward and its comparisons, the forms that fit, and the experiment made small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import overoptimisation
from experiments.support.overoptimisation import gold_reward, report
from experiments.support.overoptimisation.report import Curve
from experiments.support.run import runs
from tests.experiments.starting import start

DISTANCE = np.linspace(0.1, 5.0, 40)[None]


def curve(gold):
    return Curve(DISTANCE, DISTANCE, gold(DISTANCE))


def test_the_forms_of_the_paper_give_back_their_coefficients():
    found = report.fit(curve(lambda d: d * (2.0 - 0.3 * d)), "best of n")
    np.testing.assert_allclose([found["α"], found["β"], found["R²"]], [[2.0], [0.3], [1.0]])
    found = report.fit(curve(lambda d: d * (1.5 - 0.7 * np.log(d))), "policy")
    np.testing.assert_allclose([found["α"], found["β"], found["R²"]], [[1.5], [0.7], [1.0]])


def test_what_hardly_moved_is_not_fitted():
    still = Curve(DISTANCE / 100, DISTANCE, DISTANCE)
    assert np.isnan(report.fit(still, "policy")["α"]).all()


def test_the_best_of_n_by_a_perfect_proxy_is_the_mean_of_the_maximum():
    proxy = np.random.default_rng(0).uniform(size=(2, 4096)).astype(np.float32)
    found = report.best(proxy, -proxy)
    counts = 2.0 ** np.arange(10)
    np.testing.assert_allclose(found.proxy[:, :10], np.tile(counts / (counts + 1), (2, 1)), atol=0.02)
    np.testing.assert_allclose(found.gold, -found.proxy, atol=1e-5)
    np.testing.assert_allclose(found.distance[0, 1] ** 2, np.log(2) - 0.5, rtol=1e-5)


def test_the_tilted_pool_goes_as_far_as_the_normal_law_says():
    proxy = np.random.default_rng(0).normal(size=(1, 50_000)).astype(np.float32)
    found = report.tilted(proxy, 0.5 * proxy)
    # Tilting N(0, 1) by exp(x/β) moves its mean to 1/β, at KL 1/(2β²).
    shift = 1 / np.array(report.COEFS[::-1])[:7]
    np.testing.assert_allclose(found.proxy[0, :7], shift, atol=0.02)
    np.testing.assert_allclose(found.distance[0, :7], shift / np.sqrt(2), atol=0.02)
    np.testing.assert_allclose(found.gold, 0.5 * found.proxy, atol=1e-5)


def test_seeds_meet_on_a_grid_that_all_have_reached():
    rng = np.random.default_rng(0)
    distance = np.stack([np.sort(rng.uniform(0, end, 400)) for end in (3.0, 5.0)])
    found = report.on_grid(Curve(distance, 2 * distance, -distance))
    assert 2.7 < found.distance.max() <= 3.0
    np.testing.assert_allclose(found.proxy[:, 2:-2], 2 * found.distance[:, 2:-2], atol=0.15)


def test_a_turn_is_told_with_the_seeds_that_fell():
    distance = np.tile(np.linspace(0, 6, 400), (2, 1))
    gold = np.stack([6 - distance[0], distance[1]])
    line, found = report.turn(Curve(distance, distance, gold))
    assert line.endswith("gold fell in 1 of 2") and line.startswith("proxy 2.60 ± 0.00 -> 5.20")
    np.testing.assert_allclose(found["gold"], [[3.4, 2.6], [0.8, 5.2]], atol=0.05)


def test_comparisons_follow_bradley_and_terry():
    count = 20_000
    pairs = jnp.tile(jnp.array([[[1, 1], [2, 2]]]), (count, 1, 1))
    gold = jnp.tile(jnp.array([[0.5, 0.0]]), (count, 1))
    chosen, rejected = jax.jit(gold_reward.compare)(jax.random.key(0), pairs, gold)
    share = np.mean(chosen[:, 0] == 1)
    np.testing.assert_allclose(share, 1 / (1 + np.exp(-gold_reward.SHARPNESS * 0.5)), atol=0.01)
    np.testing.assert_array_equal(chosen + rejected, 3)


@pytest.mark.slow
def test_the_smoke_run_pleases_its_proxies(wheels, tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path), data=str(wheels))
    numbers = start(overoptimisation, options=options)
    best = numbers["best of n, 64 pairs"]
    assert np.all(best["proxy"] > 0.8) and best["gold"].shape == (2,)
    assert np.all(numbers["PPO, 64 pairs, β = 0"]["proxy"] > 0)
    (path,) = (tmp_path / "overoptimisation").iterdir()
    written = {file.name for file in path.iterdir()}
    assert {"config.json", "metrics.jsonl", "report.txt", "curves.png"} <= written
    again = start(overoptimisation, options=runs.Options(True, True, str(tmp_path), str(wheels)))
    jax.tree.map(np.testing.assert_array_equal, again, numbers)
