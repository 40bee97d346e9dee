"""Links on two devices: the same path, and params and state stay where they were put."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.transforms.links import LINKS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_params_and_state_stay_spread_over_two_devices():
    names = [name for name, link in LINKS.items() if not link.variant]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-m", "tests.transforms.sharded_links", *names],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
