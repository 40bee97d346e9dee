"""The command line of an experiment: one line where it refuses, a traceback where it is at fault."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.support import Refusal
from experiments.support.data import corpora
from experiments.support.run import cli, configs, runs, stages, stopping
from proxlm import lm


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    steps: int = configs.field(10, smoke=1)

    def validate(self):
        if self.steps == 13:
            raise ValueError("steps must be a luckier number, got 13.")


def start(monkeypatch, *arguments, then=lambda config, run: None):
    """Runs an experiment that reads its config and options from this command line."""

    def main(config: Config, run: runs.Run):
        return then(config, run)

    monkeypatch.setattr(sys, "argv", ["/somewhere/quadratic.py", *arguments])
    cli.run(main)


def test_options_reach_main_with_a_run_that_holds_the_config(monkeypatch, tmp_path):
    seen = []
    start(monkeypatch, "--runs", str(tmp_path), "--steps", "3", then=lambda *given: seen.append(given))
    ((config, run),) = seen
    assert config == Config(steps=3)
    assert json.loads((run.path / "config.json").read_text()) == {"steps": 3}
    assert run.path.parent == tmp_path / "test_cli"


def test_smoke_makes_the_config_small(monkeypatch, tmp_path):
    seen = []
    start(monkeypatch, "--runs", str(tmp_path), "--smoke", then=lambda config, run: seen.append(config))
    assert seen == [Config(steps=1)]


def refuse(config, run):
    raise Refusal("this text is not one")


def fill_the_disk(config, run):
    raise OSError(errno.ENOSPC, "No space left on device", "x.npz")


@pytest.mark.parametrize(
    ("arguments", "then", "message"),
    [
        (("--resume",), None, "test_cli: resume: there is no run in"),
        ((), refuse, "test_cli: this text is not one"),
        ((), lambda config, run: corpora.text_file("nowhere"), "test_cli: path is nowhere, where"),
        ((), fill_the_disk, r"test_cli: .*No space left on device: 'x.npz'. What was saved is whole"),
    ],
)
def test_a_refusal_is_one_line_and_a_status(monkeypatch, tmp_path, arguments, then, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        start(monkeypatch, *arguments, "--runs", str(tmp_path / "runs"), then=then)
    assert "\n" not in stopped.value.code


def test_a_refusal_before_any_work_leaves_no_folder(monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        start(monkeypatch, "--runs", str(tmp_path / "runs"), then=refuse)
    assert not [*tmp_path.iterdir()]

    def work_and_refuse(config, run):
        runs.log(run, "work", step=1)
        refuse(config, run)

    with pytest.raises(SystemExit):
        start(monkeypatch, "--runs", str(tmp_path / "runs"), then=work_and_refuse)
    assert len([*tmp_path.glob("runs/test_cli/*/metrics.jsonl")]) == 1


@pytest.mark.parametrize(
    ("steps", "message"), [("13", "luckier"), ("0", "steps must be a number ≥ 1"), ("x", "INT")]
)
def test_a_bad_value_has_a_status_and_leaves_no_folder(monkeypatch, tmp_path, capsys, steps, message):
    with pytest.raises(SystemExit) as stopped:
        start(monkeypatch, "--steps", steps, "--runs", str(tmp_path / "runs"))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_help_shows_the_header_and_a_command_to_copy(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        start(monkeypatch, "--help")
    shown = capsys.readouterr().out
    assert "usage: python -m experiments.test_cli" in shown
    assert __doc__.split("\n")[0] in shown


@pytest.mark.parametrize(
    "fault",
    [
        lambda config, run: jnp.zeros((2, 3)).reshape(7),
        lambda config, run: int("x"),
        lambda config, run: json.loads(""),
        lambda config, run: lm.ModelConfig(8, num_layers=0),
    ],
)
def test_a_fault_keeps_its_traceback(monkeypatch, tmp_path, fault):
    with pytest.raises((TypeError, ValueError)) as raised:
        start(monkeypatch, "--runs", str(tmp_path), then=fault)
    assert not isinstance(raised.value, Refusal)


# A run of many chunks that sends itself a signal in the second of them.
STOPPED = """
import dataclasses, os, signal, sys
import jax, jax.numpy as jnp
from experiments.support.run import cli, configs, runs, stages

@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    steps: int = 10

def main(config: Config, run: runs.Run):
    def chunk(state, key):
        if state == 1:
            os.kill(os.getpid(), SIGNAL)
        return state + 1, {}
    stages.run_chunks(
        chunk, jnp.array(0), 5, key=jax.random.key(0), every=4, config=config,
        checkpoint_folder=run.path / "fit", on_chunk=lambda i, _: print(f"chunk {i}", flush=True),
    )

cli.run(main)
"""


def test_a_second_signal_ends_what_deferred_the_first():
    with stopping.signals(), pytest.raises(stopping.Stopped), stopping.deferred() as asked_by:
        signal.raise_signal(signal.SIGTERM)
        assert asked_by() == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)


def test_a_signal_saves_and_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def run(program, *arguments):
        module = types.ModuleType("many")
        monkeypatch.setitem(sys.modules, "many", module)
        monkeypatch.setattr(sys, "argv", ["many", "--runs", str(tmp_path), *arguments])
        exec(compile(program, "many.py", "exec"), vars(module))

    with pytest.raises(SystemExit) as stopped:
        run(STOPPED.replace("SIGNAL", str(int(signal.SIGINT))))
    assert stopped.value.code == 128 + signal.SIGINT
    assert "many: stopped; go on with --resume" in capsys.readouterr().err
    run(STOPPED.replace("os.kill(os.getpid(), SIGNAL)", "pass"), "--resume")
    shown = capsys.readouterr().out
    assert "chunk 2" in shown and "chunk 1" not in shown


@pytest.mark.parametrize(("late", "ended"), [(1, 3), (4, 5)])
def test_a_signal_while_a_state_is_saved_is_heard_after_the_next_chunk(tmp_path, late, ended):
    def on_chunk(index, _):
        if index == late:  # which is reported while chunk 2, or the last of them, is saved
            signal.raise_signal(signal.SIGTERM)

    settings = {"key": jax.random.key(0), "every": 2, "config": {}, "checkpoint_folder": tmp_path}
    advance = lambda state, key: (state + 1, {})
    with stopping.signals(), pytest.raises(stopping.Stopped):
        stages.run_chunks(advance, jnp.array(0), 5, **settings, on_chunk=on_chunk)
    assert stages.first_chunk(tmp_path) == ended


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_process_leaves_no_traceback(tmp_path, number):
    program = tmp_path / "many.py"
    program.write_text(STOPPED.replace("SIGNAL", str(int(number))))
    environment = os.environ | {"PYTHONPATH": os.getcwd()}

    def run(*arguments):
        command = [sys.executable, str(program), "--runs", str(tmp_path / "runs"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    stopped = run()
    assert stopped.returncode == 128 + number
    assert "many: stopped; go on with --resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    program.write_text(STOPPED.replace("os.kill(os.getpid(), SIGNAL)", "pass"))
    resumed = run("--resume")
    assert resumed.returncode == 0
    assert "chunk 2" in resumed.stdout
    assert "chunk 1" not in resumed.stdout
