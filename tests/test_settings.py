"""Settings as plain data: what JSON keeps, what differs, and what cannot be kept."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from proxlm import settings


@dataclasses.dataclass(frozen=True)
class Config:
    widths: tuple = (4, 8)
    rate: float = 0.1
    inner: dict = dataclasses.field(default_factory=lambda: {"seed": 0})


def test_plain_settings_survive_json():
    given = settings.plain(Config())
    assert given == {"widths": [4, 8], "rate": 0.1, "inner": {"seed": 0}}
    assert settings.differences(json.loads(json.dumps(given)), given) == []


def test_arrays_in_settings_become_numbers():
    assert settings.plain({"strength": jnp.array([0.5, 1.0])}) == {"strength": [0.5, 1.0]}


def test_differing_fields_are_named_with_both_values():
    saved = settings.plain(Config(rate=0.2, inner={"seed": 1}))
    assert settings.differences(saved, settings.plain(Config())) == [
        "rate: saved 0.2, given 0.1",
        "inner.seed: saved 1, given 0",
    ]


def test_a_field_on_one_side_only_differs():
    assert settings.differences({"a": 1}, {"b": None}) == [
        "a: saved 1, given nothing",
        "b: saved nothing, given null",
    ]


def test_nan_does_not_differ_from_itself():
    assert settings.differences({"a": float("nan")}, {"a": float("nan")}) == []


@pytest.mark.parametrize("config", [3, None, Config])
def test_settings_of_another_kind_are_refused(config):
    with pytest.raises(ValueError, match="config="):
        settings.plain(config)


def test_a_field_that_json_cannot_hold_is_named():
    with pytest.raises(ValueError, match="'loss' holds a function"):
        settings.plain({"loss": lambda x: x})
