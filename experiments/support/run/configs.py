"""The base class of every experiment's configuration, which validates each field by itself."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from proxlm import _validation

MOST = 2**31 - 1  # of an integer on the way to JAX

T = TypeVar("T")


def field(default: T, *, smoke: T) -> T:
    """A field of a configuration with its default, and its value in a smoke run."""
    return dataclasses.field(default=default, metadata={"smoke": smoke})


def smoke(config: Any) -> Any:
    """A tiny configuration for smoke tests, whose numbers mean nothing; what is no default stays."""
    tiny = {
        field.name: field.metadata["smoke"]
        for field in dataclasses.fields(config)
        if "smoke" in field.metadata and getattr(config, field.name) == field.default
    }
    return dataclasses.replace(config, **tiny)


def filled(config: Any, defaults: Mapping[str, Any]) -> Any:
    """The configuration with these defaults in place of None; itself where nothing is missing."""
    missing = {name: x for name, x in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing) if missing else config


@dataclasses.dataclass(frozen=True)
class Base:
    """A configuration whose fields are validated when it is made.

    A subclass overrides `validate` for what a default does not say: bounds of its own, and what
    relates one field to another.
    """

    def __post_init__(self):
        check(self)
        self.validate()

    def validate(self) -> None:
        """Raises ValueError for fields that do not go together; called after `check`."""


def check(config: Any) -> None:
    """Validates every number of a dataclass: finite, not negative and of a size that JAX holds.

    Where a default is a positive integer, 0 is refused: it counts something there must be one of.
    Where it is a nonempty tuple, an empty one is. A config that is no dataclass is not looked at.

    Raises:
      ValueError: naming the field, its value and what is expected.
    """
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if value == () and isinstance(default, tuple) and default:
            raise _validation.invalid(field.name, value, "a list of at least one entry")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(field.name, number, default)


def check_multiples(config: Any, **units: int) -> None:
    """Raises ValueError for a field that is not a positive multiple of its unit."""
    for name, unit in units.items():
        if (number := getattr(config, name)) < 1 or number % unit:
            raise _validation.invalid(name, number, f"a positive multiple of {unit}")


def check_shares(config: Any, *names: str) -> None:
    """Raises ValueError for a field outside the open interval (0, 1)."""
    for name in names:
        if not 0 < (number := getattr(config, name)) < 1:
            raise _validation.invalid(name, number, "a share between 0 and 1, neither of them")


def check_positive(config: Any, *names: str) -> None:
    """Raises ValueError for a field that is not above 0."""
    _validation.positive(**{name: getattr(config, name) for name in names})


def check_choices(config: Any, **choices: Any) -> None:
    """Raises ValueError for a field, or an entry of a tuple, that is not among its choices."""
    for name, known in choices.items():
        value = getattr(config, name)
        for entry in value if isinstance(value, tuple) else (value,):
            _validation.one_of(tuple(known), **{name: entry})


def _check_number(name, number, default):
    least = 1 if type(default) is int and default > 0 else 0
    if isinstance(number, float) and not math.isfinite(number):
        raise _validation.invalid(name, number, f"a finite number ≥ {least}")
    _validation.at_least(least, **{name: number})  # pyright: ignore[reportArgumentType]
    if isinstance(number, int) and number > MOST:
        raise _validation.invalid(name, number, f"an integer ≤ {MOST}")
