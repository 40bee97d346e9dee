"""Every experiment goes on with a run that was killed, and ends at the same numbers."""

import dataclasses
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from experiments import __main__ as every
from experiments.support.run import cli, runs

ROOT = pathlib.Path(__file__).parents[2]
# It samples texts and has no run.
OTHERS = {"generate"}


@pytest.mark.parametrize("name", sorted(set(every.EXPERIMENTS) - OTHERS))
def test_there_has_to_be_a_run_to_resume_and_it_is_looked_for_first(name, tmp_path):
    experiment = importlib.import_module(f"experiments.{name}")
    options = runs.Options(smoke=True, resume=True, runs=str(tmp_path), data=str(tmp_path))
    with pytest.raises(ValueError, match="resume: there is no run in"):
        cli.start(experiment.main, options=options)
    assert not [*tmp_path.iterdir()]


# Runs an experiment in a process of its own that kills itself when a stage logs a step; where it
# comes to its end, it leaves the numbers that it returns.
DRIVER = """
import importlib, json, os, pathlib, signal, sys
import jax, numpy as np
from experiments.support.run import cli, runs

name, options, last, numbers_file = json.loads(sys.argv[1])
experiment, log = importlib.import_module(f"experiments.{name}"), runs.log

def log_and_die(run, stage, **numbers):
    log(run, stage, **numbers)
    if [stage, numbers.get("step")] == last:
        os.kill(os.getpid(), signal.SIGKILL)

runs.log = log_and_die
numbers = cli.start(experiment.main, options=runs.Options(**options))
listed = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), numbers)
pathlib.Path(numbers_file).write_text(json.dumps(listed, default=str))
"""

# Where each smoke run is killed: after a stage has logged a step, with more to come.
KILLS = {
    "exact": ("placements", 3),
    "gradient_flow": ("variants", 2),
    "identification": ("methods", 1),
    "initialisation": ("depths", 1),
    "lasso_path": ("ways", 1),
    "linear_mse": ("programs", 1),
    "low_rank_anchor": ("nuclear 0", 10),
    "mirror_lm": ("clip", 3),
    "overoptimisation": ("ppo", 5),
    "randomwalks": ("policies", 1),
    "sigmoid_classifier": ("losses", 2),
    "sparse_lm": ("metric prox 0", 10),
    "verifiable": ("recipes", 1),
}


def start(name, root, resume=False, last=None):
    """The exit status of a smoke run that dies after logging `last`, (stage, step)."""
    options = dataclasses.asdict(runs.Options(smoke=True, resume=resume, runs=str(root)))
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    given = json.dumps([name, options, last, str(root / "numbers.json")])
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-c", DRIVER, given]
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode


def log_of(root):
    """The lines of a run's log, without what a clock has measured."""
    (path,) = root.glob("*/[0-9]*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [without_clocks(row) for row in rows]


def without_clocks(tree):
    if not isinstance(tree, dict):
        return tree
    clocks = "seconds", "milliseconds", "is faster by"
    return {name: without_clocks(x) for name, x in tree.items() if not name.endswith(clocks)}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_a_run_that_was_killed_ends_at_the_numbers_of_one_that_was_not(name, tmp_path, wheels):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(name, whole) == 0
    assert start(name, killed, last=KILLS[name]) == -signal.SIGKILL
    assert start(name, killed, resume=True) == 0
    one, other = (json.loads((root / "numbers.json").read_text()) for root in (whole, killed))
    assert without_clocks(one) == without_clocks(other)
    assert log_of(whole) == log_of(killed)
    # Resumed again, with all of it done, it tells the same; nothing is logged twice.
    assert start(name, killed, resume=True) == 0
    again = json.loads((killed / "numbers.json").read_text())
    assert without_clocks(again) == without_clocks(other)
    assert log_of(whole) == log_of(killed)
