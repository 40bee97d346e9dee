"""The experiment made small, and what its methods are made of."""

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
