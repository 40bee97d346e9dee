"""Rotary frequencies beyond the length that a model was trained on: how they are scaled."""

import dataclasses
import math
import typing
from collections.abc import Sequence

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
      longrope: f divided entry by entry by `short`, and by `long` where the length so far exceeds L, and
        queries and keys times `attention_factor` (Ding et al. 2024); beyond L as with dynamic.

    >>> RopeScaling("linear", factor=4.0, original_length=2048).factor
    4.0
    """

    kind: str
    factor: float
    original_length: int
    low: float = 1.0
    high: float = _DERIVED  # None: 4 for llama3, 32 for yarn
    attention_factor: float = _DERIVED  # None: 1 + 0.1·ln s for yarn, √(1 + ln s / ln L) for longrope
    truncate: bool = True  # of yarn: the ramp begins and ends at whole entries
    short: Sequence[float] = ()  # of longrope, d/2 numbers each
    long: Sequence[float] = ()

    def __post_init__(self):
        """Checks the fields, and fills in those given as None."""
        kinds = ("linear", "dynamic", "llama3", "yarn", "longrope")
        _validation.one_of(kinds, "RopeScaling", kind=self.kind)
        _validation.within(1.0, 1e6, "RopeScaling", factor=self.factor)
        _validation.integer(1, "RopeScaling", original_length=self.original_length)
        if self.high is None:
            object.__setattr__(self, "high", 32.0 if self.kind == "yarn" else 4.0)
        if self.attention_factor is None:
            factor = 1.0 + 0.1 * math.log(self.factor) if self.kind == "yarn" else 1.0
            if self.kind == "longrope" and self.factor > 1:
                factor = math.sqrt(1.0 + math.log(self.factor) / math.log(max(self.original_length, 2)))
            object.__setattr__(self, "attention_factor", factor)
        _validation.positive(
            "RopeScaling", low=self.low, high=self.high, attention_factor=self.attention_factor
        )
        for name in ("short", "long"):
            self._check_factors(name, getattr(self, name))

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on the length so far."""
        return self.kind in ("dynamic", "longrope")

    def _check_factors(self, name, given):
        is_list = isinstance(given, list | tuple) and bool(given) == (self.kind == "longrope")
        if not is_list or not all(type(x) in (int, float) and 0 < x < math.inf for x in given):
            expected = "positive numbers, one for each pair of entries, with longrope and empty without"
            raise _validation.invalid(name, given, expected, "", "RopeScaling")
        if len(self.short) != len(self.long):
            raise _validation.invalid(
                "long", self.long, f"{len(self.short)} numbers, as short", "", "RopeScaling"
            )
        object.__setattr__(self, name, tuple(given))
