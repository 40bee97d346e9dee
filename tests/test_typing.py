"""The types that a user's type checker sees: one program without a report, one whose every line has one."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def reported_lines(name):
    """Returns the numbers of the lines of a program in tests/typing for which pyright reports an error."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run([*command, f"tests/typing/{name}"], cwd=ROOT, capture_output=True, text=True)
    reports = json.loads(done.stdout)["generalDiagnostics"]
    return sorted({report["range"]["start"]["line"] + 1 for report in reports})


@pytest.mark.slow
def test_a_right_program_passes():
    assert reported_lines("right.py") == []


@pytest.mark.slow
def test_every_wrong_line_is_reported():
    lines = (ROOT / "tests" / "typing" / "wrong.py").read_text().splitlines()
    expected = [number for number, line in enumerate(lines, start=1) if line.endswith("  # wrong")]
    assert reported_lines("wrong.py") == expected
