"""What every config has to be, and that every experiment asks for it."""

import dataclasses
import math

import pytest

from experiments.support.run import configs, runs


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10
    seed: int = 0
    rate: float = 0.1
    strengths: tuple[float, ...] = (0.0, 1.0)
    only: tuple[str, ...] = ()
    text: str = ""
    most: int | None = None
    quick: bool = False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"steps": -5}, "steps=-5: expected at least 1"),
        ({"seed": -1}, "seed=-1: expected at least 0"),
        ({"seed": 10**12}, "seed=1000000000000: expected at most 2147483647"),
        ({"rate": math.nan}, "rate=nan: expected a finite number of at least 0"),
        ({"rate": -math.inf}, "rate=-inf: expected a finite number"),
        ({"rate": -0.1}, r"rate=-0\.1: expected at least 0"),
        ({"strengths": (0.0, math.inf)}, "strengths=inf: expected a finite number"),
        ({"strengths": ()}, "strengths is empty: expected at least one entry"),
    ],
)
def test_numbers_without_a_meaning_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        configs.check(Config(**settings))
    for open_or_check in (runs.open_run, runs.check_run):
        with pytest.raises(ValueError, match=message):
            open_or_check("quadratic", Config(**settings), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_all_else_is_the_experiments_own_affair():
    configs.check(Config())
    configs.check(Config(rate=0.0, seed=configs.MOST, strengths=(0.0,), most=0, quick=True))
    configs.check({"rate": -1.0})
