"""Starting an experiment: one line where it refuses, a traceback where it is at fault."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import pytest

from experiments.support.data import corpora
from experiments.support.run import cli, runs
from proxlm import lm


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10

    def __post_init__(self):
        if self.steps == 13:
            raise ValueError("steps=13: expected a luckier number")


def start(monkeypatch, *arguments, then=lambda config: None):
    """Runs what reads its config and options from this command line; then what is given."""

    def main(config: Config = Config(), options: runs.Options = runs.Options()):
        runs.check_run("quadratic", config, options.runs, options.resume)
        then(config)

    monkeypatch.setattr(sys, "argv", ["/somewhere/quadratic.py", *arguments])
    cli.run(main)


def test_options_reach_main(monkeypatch, tmp_path):
    seen = []
    start(monkeypatch, "--runs", str(tmp_path), "--steps", "3", then=seen.append)
    assert seen == [Config(steps=3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "-1"), "quadratic: steps=-1: expected at least 1"),
        (("--resume",), "quadratic: resume: there is no run in"),
    ],
)
def test_a_refusal_is_one_line_and_a_status(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        start(monkeypatch, *arguments, "--runs", str(tmp_path))
    assert stopped.value.code.startswith(message)
    assert "\n" not in stopped.value.code


def test_a_config_that_refuses_itself_has_a_status(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        start(monkeypatch, "--steps", "13")
    assert stopped.value.code not in (None, 0)
    assert "expected a luckier number" in capsys.readouterr().err


def test_what_a_room_of_the_library_refuses_is_a_refusal(monkeypatch, tmp_path):
    for make in (
        lambda config: lm.ModelConfig(8, num_layers=0),
        lambda config: corpora.shakespeare(folder=tmp_path),
    ):
        with pytest.raises(SystemExit):
            start(monkeypatch, "--runs", str(tmp_path), then=make)


def test_a_fault_keeps_its_traceback(monkeypatch, tmp_path):
    fault = lambda config: jnp.zeros((2, 3)).reshape(7)
    with pytest.raises(TypeError):
        start(monkeypatch, "--runs", str(tmp_path), then=fault)
    for fault in (lambda config: int("x"), lambda config: json.loads("")):
        with pytest.raises(ValueError):
            start(monkeypatch, "--runs", str(tmp_path), then=fault)
