"""One command runs every experiment, and says which of them failed; what all of them keep to."""

import ast
import dataclasses
import functools
import importlib
import pathlib
import shlex
import sys
import textwrap

import pytest

from experiments import __main__ as every
from experiments.support import Refusal
from experiments.support.data import corpora
from experiments.support.run import cli, runs
from tests import test_layers


@pytest.fixture
def commands(monkeypatch):
    """Runs nothing, notes what would be run; an experiment called exact fails."""
    noted = []

    def watched(command, file, name):
        noted.append(command[2:])
        return int(command[2] == "experiments.exact")

    monkeypatch.setattr(every, "watched", watched)
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


def test_what_reads_more_texts_is_known():
    root = pathlib.Path(every.__file__).parents[1]
    paths = {test_layers.module_name(path, root): path for path in (root / "experiments").rglob("*.py")}
    readers = {name for name, path in paths.items() if "corpora.MORE" in path.read_text("utf-8")}

    @functools.cache
    def reached(name):
        # they open what `generate` and `sentiment --model` are given, SmolLM2 too
        if name.endswith(("model_store", "pretrained_policy")):
            return set()
        own = {target for target in test_layers.imports(name, paths[name], paths) if target in paths}
        return own.union(*map(reached, own))

    known = {name for name in every.EXPERIMENTS if reached(f"experiments.{name}") & readers}
    assert known == every.READ_MORE


def test_200_megabytes_are_fetched_after_a_question(monkeypatch):
    fetched, asked = [], []
    monkeypatch.setattr(corpora, "missing", lambda **given: ("evals",))
    monkeypatch.setattr(corpora, "fetch", lambda **given: fetched.append(given))
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    every.fetch(["exact"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(Refusal, match="200 MB: run `make more-data` before, or give --yes"):
        every.fetch(["translation"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answer = ""
    with pytest.raises(Refusal, match=r"nothing was fetched\. These do without: --only sentiment train_lm"):
        every.fetch(["translation"])
    assert not fetched and len(asked) == 1
    answer = "y"
    every.fetch(["translation"])
    every.fetch(["translation"], yes=True)
    assert len(fetched) == 2 and len(asked) == 2


def test_the_last_line_is_shown_while_one_runs(tmp_path, capsys):
    program = "import time; print('epoch 1/3'); print('epoch 2/3'); time.sleep(0.6); raise SystemExit(3)"
    with open(tmp_path / "said.txt", "w", encoding="utf-8") as file:
        assert every.watched([sys.executable, "-S", "-c", program], file, "exact", seconds=0.4) == 3
    assert "epoch 2/3" in capsys.readouterr().out


def copied(name):
    """Yields the arguments of the commands in the header of an experiment."""
    for line in importlib.import_module(f"experiments.{name}").__doc__.splitlines():
        if line.startswith(f"    python -m experiments.{name}"):
            yield shlex.split(line, comments=True)[3:]


def test_the_commands_of_every_header_can_be_copied(monkeypatch, capsys):
    seen, call = [], cli.call
    stub = lambda command: functools.wraps(command)(lambda *given, **named: seen.append(command))
    monkeypatch.setattr(cli, "call", lambda command, *rest: call(stub(command), *rest))

    def start(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        module = importlib.import_module(f"experiments.{name}")
        _, _, end = pathlib.Path(module.__file__).read_text("utf-8").partition('if __name__ == "__main__":')
        exec(textwrap.dedent(end), dict(vars(module)))

    for name in every.EXPERIMENTS:
        seen.clear()
        commands = [*copied(name)]
        for command in commands:
            start(name, *command)
        assert commands and len(seen) == len(commands), name
        with pytest.raises(SystemExit):
            start(name, "--help")
        assert f"usage: python -m experiments.{name}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        start("sigmoid_classifier", "--problem", "3")
    assert "--problems" in capsys.readouterr().err


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
