"""One command runs every experiment, and says which of them failed; what all of them keep to."""

import ast
import dataclasses
import importlib
import pathlib
import subprocess
import sys
import types

import pytest

from experiments import __main__ as every
from experiments.support.run import runs


@pytest.fixture
def commands(monkeypatch):
    """Runs nothing, notes what would be run; an experiment called exact fails."""
    noted, others = [], subprocess.run

    def run(command, **options):
        if command[0] != sys.executable:
            return others(command, **options)
        noted.append(command[2:])
        return types.SimpleNamespace(returncode=int(command[2] == "experiments.exact"))

    monkeypatch.setattr(subprocess, "run", run)
    return noted


def test_the_registry_lists_every_experiment_there_is():
    files = {path.stem for path in pathlib.Path(every.__file__).parent.glob("[a-z]*.py")}
    assert set(every.EXPERIMENTS) == files
    for name in every.EXPERIMENTS:
        assert callable(importlib.import_module(f"experiments.{name}").main)


def test_the_readme_has_the_registry_as_its_table():
    assert every.markdown() in pathlib.Path(every.__file__).parents[1].joinpath("README.md").read_text(
        "utf-8"
    )


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


def test_a_run_that_was_stopped_before_it_had_a_folder_is_started_anew(tmp_path, commands):
    config = every.Config(only=("train_lm", "exact"), into=str(tmp_path), resume=True)
    runs.open_run("train_lm", {}, tmp_path)
    (tmp_path / "exact").mkdir()
    every.main(config)
    assert ["--resume" in command for command in commands] == [True, False]


def test_what_is_unknown_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"only=.*poetry.*: there are sentiment"):
        every.Config(only=("poetry",))
    with pytest.raises(ValueError, match="resume: into="):
        every.Config(into=str(tmp_path / "none"), resume=True)


def test_a_mistyped_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"only=\['sparce_lm'\]: did you mean sparse_lm"):
        every.Config(only=("sparce_lm",))
    with pytest.raises(ValueError, match="there are sentiment, train_lm"):
        every.Config(only=("zzz",))


def test_every_option_has_a_help_text():
    bare = []
    for path in pathlib.Path(every.__file__).parent.rglob("*.py"):
        lines = (text := path.read_text("utf-8")).splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name == "Config" and "benchmarks" not in path.parts:
                bare += [
                    f"{path.name}:{field.lineno}"
                    for field in node.body
                    if isinstance(field, ast.AnnAssign)
                    if "  # " not in lines[field.end_lineno - 1] and "    # " not in lines[field.lineno - 2]
                ]
    assert not bare


@pytest.mark.parametrize("name", every.EXPERIMENTS)
def test_no_option_of_an_experiment_is_one_of_every_run(name):
    config = importlib.import_module(f"experiments.{name}").Config
    own = {field.name for field in dataclasses.fields(config)}
    assert not own & {"smoke", "resume", "runs", "wheels", "track"}
