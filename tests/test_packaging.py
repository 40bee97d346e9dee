"""The wheel and the source distribution: what is in them, and that they install and import elsewhere."""

import email
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import proxlm

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = """
import proxlm, jax.numpy as jnp, pathlib, sys
assert pathlib.Path(proxlm.__file__).is_relative_to(sys.prefix), proxlm.__file__
from proxlm import lm, penalties, policy, sharding, solvers, training, transforms
print(proxlm.__version__, penalties.l1(0.5).prox(jnp.array([2.0, -0.1]), 1.0).tolist())
"""

pytestmark = pytest.mark.slow


def run(*command, cwd):
    # XLA stops at flags that it does not know, and those of conftest are for one version of it.
    given = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(python, folder):
    """The interpreter of a new environment."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the source distribution, and of the wheel that is built from it."""
    place = tmp_path_factory.mktemp("packaging")
    shutil.copytree(
        ROOT / "proxlm", place / "source" / "proxlm", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, place / "source")
    python = environment(sys.executable, place / "builder")
    run(python, "-m", "pip", "install", "--quiet", "build", cwd=place)
    run(python, "-m", "build", "--outdir", place / "dist", place / "source", cwd=place)
    return place / "dist"


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    sources = {f"proxlm/{path.relative_to(ROOT / 'proxlm')}" for path in (ROOT / "proxlm").rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == sources | {"proxlm/py.typed"}
    assert any(name.endswith("LICENSE") for name in names)
    fields = email.message_from_string(metadata)
    assert fields["Version"] == proxlm.__version__ and fields["Requires-Python"] == ">=3.11"
    assert {"cuda", "tpu", "models", "estimators"} <= set(fields.get_all("Provides-Extra"))


def test_the_source_distribution_holds_what_builds_it(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "proxlm/py.typed", "proxlm/__init__.py"} <= inside
    assert not any(name.startswith(("tests", "experiments")) for name in inside)


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_the_wheel_installs_and_imports_outside_of_the_repository(built, tmp_path, version):
    interpreter = shutil.which(f"python{version}")
    if interpreter is None or subprocess.run([interpreter, "--version"], capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    python = environment(interpreter, tmp_path / "user")
    (wheel,) = built.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    assert run(python, "-c", SCRIPT, cwd=tmp_path).split(maxsplit=1) == [proxlm.__version__, "[1.5, 0.0]\n"]
