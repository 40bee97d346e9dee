"""One command runs every experiment, and says which of them failed."""

import subprocess
import types

import pytest

from experiments import __main__ as every
from experiments.support.run import runs


@pytest.fixture
def commands(monkeypatch):
    """Runs nothing, notes what would be run; an experiment called exact fails."""
    noted = []

    def run(command, stdout, stderr):
        noted.append(command[2:])
        return types.SimpleNamespace(returncode=int(command[2] == "experiments.exact"))

    monkeypatch.setattr(subprocess, "run", run)
    return noted


def test_every_script_with_a_main_is_an_experiment():
    found = every.names()
    assert {"sentiment", "train_lm", "exact"} <= set(found)
    assert not {"report", "runs", "corpora", "__main__"} & set(found)


def test_each_runs_by_itself_and_failures_are_counted(tmp_path, commands, capsys):
    config = every.Config(only=("exact", "train_lm"), into=str(tmp_path))
    assert every.main(config) == 1
    assert [command[0] for command in commands] == ["experiments.exact", "experiments.train_lm"]
    assert all(command[1:] == ["--runs", str(tmp_path), "--smoke"] for command in commands)
    assert "with 1; see" in capsys.readouterr().out


def test_a_resumed_run_leaves_out_what_is_finished(tmp_path, commands):
    config = every.Config(only=("exact", "train_lm"), into=str(tmp_path), full=True, resume=True)
    every.main(config)
    commands.clear()
    runs.open_run("exact", {}, tmp_path)
    every.main(config)
    assert commands == [["experiments.exact", "--runs", str(tmp_path), "--resume"]]


def test_a_run_that_was_stopped_is_resumed_whatever_its_folder_is_called(tmp_path, commands):
    options = {"into": str(tmp_path), "resume": True}
    config = every.Config(only=("linear_mse", "train_lm", "exact"), **options)
    runs.open_run("linear-mse", {}, tmp_path)
    runs.open_run("train_lm", {}, tmp_path)
    (tmp_path / "exact").mkdir()  # stopped before it had a run
    every.main(config)
    assert ["--resume" in command for command in commands] == [True, True, False]


def test_what_is_unknown_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"only=.*poetry.*: there are exact"):
        every.Config(only=("poetry",))
    with pytest.raises(ValueError, match="resume: into="):
        every.Config(into=str(tmp_path / "none"), resume=True)
