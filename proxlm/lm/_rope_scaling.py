"""Rotary frequencies beyond the length that a model was trained on: how they are scaled."""

import dataclasses
import math
import typing

from proxlm import _validation

# Filled in at once, so that the field is a number to a type checker.
_DERIVED = typing.cast(float, None)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies for contexts longer than the one a model was trained on.

    With f the frequencies θ^(−2i/d), s the factor and L the original length:
      linear: f / s (Chen et al. 2023).
      dynamic: θ grows with the length n > L so far, to θ·(s·n/L − (s − 1))^(d/(d−2)). What was rotated
        earlier stays as it was, so that beyond L sampling and scoring differ, as in transformers.
      llama3: f / s where the wavelength exceeds L / low, f where it is below L / high, and a mean of
        both in between (Dubey et al. 2024).
      yarn: f / s for entries that turn less than `low` times within L, f for those that turn more than
        `high` times, a ramp in between, and queries and keys times `attention_factor` (Peng et al. 2023).

    >>> RopeScaling("linear", factor=4.0, original_length=2048).factor
    4.0
    """

    kind: str
    factor: float
    original_length: int
    low: float = 1.0
    high: float = _DERIVED  # None: 4 for llama3, 32 for yarn
    attention_factor: float = _DERIVED  # of yarn; None: 1 + 0.1·ln s
    truncate: bool = True  # of yarn: the ramp begins and ends at whole entries

    def __post_init__(self):
        """Checks the fields, and fills in those given as None."""
        _validation.one_of(("linear", "dynamic", "llama3", "yarn"), "RopeScaling", kind=self.kind)
        _validation.within(1.0, 1e6, "RopeScaling", factor=self.factor)
        _validation.integer(1, "RopeScaling", original_length=self.original_length)
        if self.high is None:
            object.__setattr__(self, "high", 32.0 if self.kind == "yarn" else 4.0)
        if self.attention_factor is None:
            factor = 1.0 + 0.1 * math.log(self.factor) if self.kind == "yarn" else 1.0
            object.__setattr__(self, "attention_factor", factor)
        _validation.positive(
            "RopeScaling", low=self.low, high=self.high, attention_factor=self.attention_factor
        )
