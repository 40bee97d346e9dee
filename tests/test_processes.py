"""Two processes: checkpoints, read by both and by one on another mesh, and PPO with the numbers of one."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def started(coordinator, count, process, folder, command, axes, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    arguments = [coordinator, str(count), str(process), str(folder), command, axes]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.processes", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two(folder, command, axes):
    """Runs two processes to their ends."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    finish([started(coordinator, 2, i, folder, command, axes, 2) for i in range(2)])


def finish(processes):
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said


@pytest.mark.slow
def test_a_state_over_two_processes_comes_back_on_both_and_on_another_mesh(tmp_path):
    two(tmp_path / "steps", "save", "fsdp=4")
    for axes, devices in (("fsdp=2,model=2", 4), ("data=1", 1)):
        finish([started("", 1, 0, tmp_path / "steps", "restore", axes, devices)])


@pytest.mark.slow
def test_two_processes_learn_what_one_does_each_rewarding_its_own_rows(tmp_path):
    two(tmp_path, "ppo", "data=4")
    finish([started("", 1, 0, tmp_path, "ppo", "data=1", 1)])
    one, both = np.load(tmp_path / "1.npz"), np.load(tmp_path / "2.npz")
    assert one.files == both.files
    for name in one.files:
        np.testing.assert_allclose(both[name], one[name], atol=1e-5, err_msg=name)
