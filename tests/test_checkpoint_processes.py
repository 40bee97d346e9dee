"""Checkpoints of two processes: every kind of leaf, read again by both, and by one on another mesh."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def started(coordinator, count, process, folder, command, axes, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    arguments = [coordinator, str(count), str(process), str(folder), command, axes]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.checkpoint_processes", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_state_over_two_processes_comes_back_on_both_and_on_another_mesh(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    both = [started(coordinator, 2, i, tmp_path / "steps", "save", "fsdp=4", 2) for i in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for axes, devices in (("fsdp=2,model=2", 4), ("data=1", 1)):
        alone = started("", 1, 0, tmp_path / "steps", "restore", axes, devices)
        said, _ = alone.communicate(timeout=300)
        assert alone.returncode == 0, said
