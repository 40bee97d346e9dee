"""The names that a user meets after `import proxlm`."""

import pathlib
import subprocess
import sys

import pytest

import proxlm

ROOT = pathlib.Path(__file__).parents[1]

IMPORT = """
import importlib, os, pkgutil, sys, time
start = time.perf_counter()
import proxlm
seconds = time.perf_counter() - start
assert "jax" not in sys.modules and seconds < 0.1, seconds
assert {"penalties", "policy", "apply_prox"} <= set(dir(proxlm))

def settings():
    return dict(jax.config.values), dict(os.environ)

import chex, jax, numpy, optax, sklearn  # which may change what they will
before = settings()
proxlm.penalties, proxlm.transforms, proxlm.solvers, proxlm.policy, proxlm.training, proxlm.losses
proxlm.checkpoint, proxlm.apply_prox
assert "flax" not in sys.modules
assert settings() == before, "an import changed jax.config or the environment"
import flax.linen
before = settings()
assert proxlm.lm.make_actor
for module in pkgutil.walk_packages(proxlm.__path__, "proxlm."):
    importlib.import_module(module.name)
assert settings() == before, "an import changed jax.config or the environment"
"""


def test_modules_are_imported_on_first_use_change_no_setting_and_flax_comes_only_with_the_model():
    command = [sys.executable, "-W", "error", "-c", IMPORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_dir_lists_every_public_module_and_all_of_it_resolves():
    files = [path.stem for path in (ROOT / "proxlm").iterdir() if path.suffix == ".py" or path.is_dir()]
    modules = {name for name in files if not name.startswith("_")}
    assert modules <= set(dir(proxlm)) == {*proxlm.__all__, "__version__"}
    assert all(getattr(proxlm, name) is not None for name in dir(proxlm))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'proxlm' has no attribute 'penalty'"):
        assert proxlm.penalty
