"""The experiment made small, and what its methods are made of."""

import jax
import numpy as np
import pytest

from experiments import mirror_lm
from experiments.support.run import runs
from tests.experiments.starting import start


def test_the_step_size_is_the_weight_of_the_kl_to_the_old_policy():
    config = mirror_lm.Config(step_size=4.0)
    for method in ("KL(π_old‖π)", "KL(π‖π_old)"):
        part = mirror_lm.settings(method, config)
        assert part.kl.coef == config.kl_coef
        # ρ = e, A = 0: the forward price is e - 2, the reverse one 1.
        price = {"KL(π_old‖π)": np.e - 2, "KL(π‖π_old)": 1.0}[method]
        found = part.loss(np.ones(1), np.zeros(1), np.zeros(1), np.ones(1, bool))
        np.testing.assert_allclose(found, [price / 4.0], rtol=1e-5)


def test_scales_move_by_their_own_rate_and_all_rates_end_at_zero():
    config = mirror_lm.Config(iterations=4)
    optimizer = mirror_lm.make_optimizer(1e-4, config)
    params = {"norm": {"scale": np.ones(2, np.float32)}, "head": {"kernel": np.ones(2, np.float32)}}
    update = jax.jit(lambda state: optimizer.update(params, state, params))
    state, steps = optimizer.init(params), []
    for _ in range(4 * mirror_lm.UPDATES + 1):
        new, state = update(state)
        steps.append([-new["norm"]["scale"][0], -new["head"]["kernel"][0]])
    np.testing.assert_allclose(steps[0], [mirror_lm.SCALES_RATE, 1e-4], rtol=1e-3)
    np.testing.assert_allclose(steps[16], [mirror_lm.SCALES_RATE / 2, 5e-5], rtol=1e-3)
    np.testing.assert_allclose(steps[-1], 0.0, atol=1e-12)


@pytest.mark.slow
def test_the_smoke_run_knows_its_optimum(wheels, tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path), data=str(wheels))
    numbers = start(mirror_lm, options=options)
    assert np.all(numbers["J*"] > 0.5) and numbers["J*"].shape == (2,)
    for method in ("clip", "regression"):
        found = numbers[method]
        np.testing.assert_allclose(found["J"], found["r"] - 0.4 * found["KL"], atol=1e-4)
        assert np.all(found["J"] < numbers["J*"])
    (path,) = (tmp_path / "mirror_lm").iterdir()
    assert {"report.txt", "curves.png"} <= {file.name for file in path.iterdir()}
