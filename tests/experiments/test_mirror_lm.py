"""The experiment made small, and what its methods are made of."""

import numpy as np
import pytest

from experiments import mirror_lm
from experiments.support.run import runs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollouts": 12}, "rollouts=12: expected a positive multiple of 8"),
        ({"pool": 3000}, "pool=3000: expected a multiple of 1024 where above it"),
        ({"kl_coef": 0.0}, r"kl_coef=0\.0: expected a number above 0"),
        ({"methods": ("grpo",)}, r"methods=\('grpo',\): expected some of clip, "),
        ({"seeds": 0}, "seeds=0: expected at least 1"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        mirror_lm.Config(**settings)


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
    numbers = mirror_lm.main(options=options)
    assert np.all(numbers["J*"] > 0.5) and numbers["J*"].shape == (2,)
    for method in ("clip", "regression"):
        found = numbers[method]
        np.testing.assert_allclose(found["J"], found["r"] - 0.4 * found["KL"], atol=1e-4)
        assert np.all(found["J"] < numbers["J*"])
    (path,) = (tmp_path / "mirror-lm").iterdir()
    assert {"report.txt", "curves.png"} <= {file.name for file in path.iterdir()}
