"""The experiment without sampling: its numbers are identities, so they can be asserted."""

import numpy as np
import pytest

from experiments import exact
from experiments.support.run import runs
from tests.experiments.starting import start


@pytest.mark.slow
def test_the_smoke_run_shows_what_is_true_and_writes_it(tmp_path, capsys):
    numbers = start(exact, options=runs.Options(smoke=True, runs=str(tmp_path)))
    of = numbers["gradients"]
    assert of["rloo"]["bias"] < 1e-10
    np.testing.assert_allclose(of["dr_grpo"]["scale"], 1 / 2 / 2, atol=1e-10)
    np.testing.assert_allclose(of["dr_grpo"]["cosine"], 1.0, atol=1e-10)
    assert of["grpo"]["cosine"] < 0.9999
    kl = numbers["placements"]
    assert kl["k1 in the reward"]["bias"] < 1e-10 < kl["k2 in the loss"]["bias"]
    np.testing.assert_allclose(kl["k1 in the loss"]["scale"], 0.0, atol=1e-10)
    np.testing.assert_allclose(kl["k2 in the loss"]["bias"], kl["exact in the loss"]["bias"])
    assert kl["exact in the loss"]["noise"] < kl["k2 in the loss"]["noise"]
    gaps = numbers["gaps"]["trust regions"]["exact proximal step"]
    # twice the logarithm of the contraction, where the gap is small
    factor = (1 / 2.0) / (0.2 + 1 / 2.0)
    np.testing.assert_allclose(gaps[10] / gaps[9], factor**2, rtol=0.05)
    assert all(values[-1] < values[0] for family in numbers["gaps"].values() for values in family.values())
    written = {path.name for path in next((tmp_path / "exact").iterdir()).iterdir()}
    assert {"report.txt", "suboptimality.png", "gradients.png", "placements.png"} <= written
    assert "exact proximal step" in capsys.readouterr().out
