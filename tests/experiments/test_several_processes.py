"""An experiment in several processes: how they join, the numbers of one, and faults that end all."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.support import Refusal
from experiments.support.run import processes
from proxlm import sharding

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("by_hand", "variables", "expected"),
    [
        (("a:1", 2, 1), {}, {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}),
        (
            (),
            {"MASTER_ADDR": "b", "MASTER_PORT": "7", "WORLD_SIZE": "4", "RANK": "3"},
            {"coordinator_address": "b:8", "num_processes": 4, "process_id": 3},
        ),
        ((), {"LOCAL_RANK": "0"}, {}),
    ],
)
def test_processes_join_by_hand_by_torchrun_or_by_what_jax_detects(monkeypatch, by_hand, variables, expected):
    seen = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: seen.update(how))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    processes.join(*by_hand)
    times = {"initialization_timeout", "heartbeat_timeout_seconds"}
    assert {name: value for name, value in seen.items() if name not in times} == expected


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(Refusal, match="expected host:port, how many there are"):
        processes.join("a:1", 2, 2)
    fails = lambda **how: (_ for _ in ()).throw(ValueError("coordinator_address should be defined"))
    monkeypatch.setattr(jax.distributed, "initialize", fails)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(Refusal, match=r"do not meet .* give --coordinator"):
        processes.join()


def started(folder, process, count, port, *options, experiment="train_lm"):
    """One process of a smoke run; one of one without a coordinator."""
    several = ["--distributed", "--coordinator", f"localhost:{port}", "--num-processes", str(count)]
    joined = [*several, "--process-id", str(process)] if count > 1 else []
    command = [sys.executable, "-m", f"experiments.{experiment}", "--smoke", "--runs", str(folder)]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*command, *joined, *options],
        cwd=ROOT,
        env=os.environ | flags,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def losses(folder):
    """The losses and rewards that the one run of a folder logged."""
    (log,) = folder.glob("*/2*/metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row[key] for row in rows for key in ("loss", "reward", "entropy") if key in row]


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "count"), [("train_lm", 2), ("reinforce", 2), ("train_lm", 4)])
def test_several_processes_have_the_numbers_of_one(experiment, count, tmp_path):
    port = free_port()
    options = ("--batch", "8") if experiment == "train_lm" else ()
    start = functools.partial(started, experiment=experiment)
    several = [start(tmp_path / "several", i, count, port, *options) for i in range(count)]
    for process in (*several, start(tmp_path / "one", 0, 1, 0, *options)):
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said
    alone = losses(tmp_path / "one")
    assert alone
    np.testing.assert_allclose(losses(tmp_path / "several"), alone, rtol=1e-5)


JOIN = """
from experiments.support.run import processes
processes.join({by_hand})
import jax, sys
print(jax.process_index(), len(jax.devices()), processes.agreed(jax.process_index()), file=sys.stderr)
"""
SLURM = {
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "{i}",
    "SLURM_LOCALID": "{i}",
}
TORCHRUN = {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2", "RANK": "{i}", "LOCAL_RANK": "{i}"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["srun", "torchrun", "by hand"])
def test_two_processes_meet(how):
    port = free_port()

    def start(i):
        given = {
            "srun": SLURM | {"SLURM_JOB_ID": str(port)},  # from which JAX takes the port
            "torchrun": TORCHRUN | {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"},
            "by hand": {},
        }[how]
        by_hand = f"'localhost:{port}', 2, {i}" if how == "by hand" else ""
        given = {name: value.format(i=i) for name, value in given.items()}
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", JOIN.format(by_hand=by_hand)]
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | flags | given, stderr=subprocess.PIPE, text=True
        )

    for i, process in enumerate([start(0), start(1)]):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert said.splitlines()[-1] == f"{i} 2 0", said


def test_a_batch_that_the_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(sharding, "num_parts", lambda: 4)
    processes.check_divides(batch=8)
    with pytest.raises(Refusal, match="batch=6: expected a multiple of 4, the devices that divide it"):
        processes.check_divides(batch=6)


MESH = ("--mesh", "data=4", "--batch", "6")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "of_the_second", "message"),
    [
        ((), ("--seed", "7"), "process 1 has other settings than the first: seed"),
        (("--mesh", "data=3"), ("--mesh", "data=3"), "mesh must be sizes that multiply to the 4 devices"),
        (MESH, MESH, "batch=6: expected a multiple of 4"),
    ],
)
def test_what_cannot_be_is_refused_on_all_and_said_once(options, of_the_second, message, tmp_path):
    port = free_port()
    both = [started(tmp_path, 0, 2, port, *options), started(tmp_path, 1, 2, port, *of_the_second)]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    assert message in said[0]
    assert "train_lm:" not in said[1]
    assert not [*tmp_path.rglob("metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_end_of_one_process_ends_the_other_within_a_minute(killed, tmp_path):
    port = free_port()
    both = [started(tmp_path, i, 2, port) for i in range(2)]
    while not [*tmp_path.glob("*/2*/config.json")]:
        time.sleep(0.5)
        assert both[0].poll() is None, both[0].communicate()[1]
    both[killed].send_signal(signal.SIGKILL)
    both[killed].communicate()
    both[1 - killed].communicate(timeout=60)
    assert both[1 - killed].returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_kill_during_a_save_loses_nothing_and_half_the_devices_go_on(killed, tmp_path):
    steps = ("--steps", "1000")  # saved after 5 and after 10 chunks of them
    port = free_port()
    both = [started(tmp_path / "two", i, 2, port, *steps) for i in range(2)]
    saves = lambda: {path.name for path in (tmp_path / "two").glob("*/2*/fit/*/*")}
    while not any(name.startswith("10.") for name in saves()):
        time.sleep(0.002)
        assert both[0].poll() is None, both[0].communicate()[1]
    both[killed].send_signal(signal.SIGKILL)
    for process in both:
        process.communicate(timeout=90)
    assert any("tmp" in name for name in saves()), f"the save of the second step was over: {saves()}"
    for folder, options in (("two", ["--resume"]), ("one", [])):
        process = started(tmp_path / folder, 0, 1, 0, *steps, *options)
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
