"""Checks that every configuration makes, and that every experiment makes them."""

import dataclasses
import math

import pytest

from experiments.support.run import configs, runs


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10
    every: int = 1
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
        ({"steps": 0}, "steps must be a number ≥ 1, got 0"),
        ({"steps": -5}, "steps must be a number ≥ 1, got -5"),
        ({"every": 0}, "every must be a number ≥ 1, got 0"),
        ({"seed": -1}, "seed must be a number ≥ 0, got -1"),
        ({"seed": 2**31}, "seed must be an integer ≤ 2147483647, got 2147483648"),
        ({"rate": math.nan}, "rate must be a finite number ≥ 0, got nan"),
        ({"rate": -math.inf}, "rate must be a finite number ≥ 0, got -inf"),
        ({"rate": -0.1}, r"rate must be a number ≥ 0, got -0\.1"),
        ({"strengths": (0.0, math.inf)}, "strengths must be a finite number ≥ 0, got inf"),
        ({"strengths": ()}, r"strengths must be a list of at least one entry, got \(\)"),
    ],
)
def test_numbers_without_a_meaning_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        configs.check(Config(**settings))
    with pytest.raises(ValueError, match=message):
        runs.open_run("quadratic", Config(**settings), tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_multiple_is_positive():
    configs.check_multiples(Config(steps=10), steps=5)
    for steps in (0, 7):
        with pytest.raises(ValueError, match=f"steps must be a positive multiple of 5, got {steps}"):
            configs.check_multiples(Config(steps=steps), steps=5)


def test_all_else_is_the_experiments_own_affair():
    configs.check(Config())
    configs.check(Config(rate=0.0, seed=configs.MOST, strengths=(0.0,), most=0, quick=True))
    configs.check({"rate": -1.0})
