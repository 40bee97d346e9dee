"""`make docs` writes a page for every public module, with every public name and no warning."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_every_public_name_has_its_place(tmp_path):
    command = [sys.executable, ".ci/docs.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "proxlm.penalties.l1" in (tmp_path / "search.js").read_text()
