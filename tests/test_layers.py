"""Directions of imports: each subpackage may import only those listed here, read from the sources."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Each of these subpackages may import those beside it, and itself; nothing else of proxlm.
MAY_KNOW = {
    "proxlm._decoding": (),
    "proxlm.penalties": (),
    "proxlm.losses": (),
    "proxlm.lm": (),
    "proxlm.policy": (),
    "proxlm.transforms": ("proxlm.penalties",),
    "proxlm.solvers": ("proxlm.penalties",),
}
# Every subpackage may import these, which import nothing else of proxlm themselves.
SHARED = ("proxlm._validation", "proxlm._tree_paths", "proxlm._decoding", "proxlm.sharding")
# These take functions as arguments, so they import neither the model nor the penalties.
TAKE_FUNCTIONS = {"proxlm.policy", "proxlm.training"}
NOT_IMPORTED = ("proxlm.lm", "proxlm.penalties")
# Dependencies of the experiments only.
EXPERIMENTAL = ("matplotlib", "tyro", "rich", "vaderSentiment", "experiments")
# Dependencies of the model only.
OF_MODELS = ("flax", "gguf", "tokenizers")


def within(name, package):
    return name == package or name.startswith(package + ".")


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root):
    """Maps the name of every module of proxlm to its file."""
    return {module_name(path, root): path for path in sorted((root / "proxlm").rglob("*.py"))}


def imports(name, path, known):
    """Yields the full name of all that a module imports, wherever in the file it does."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            # `from proxlm import losses` asks for a module, `from proxlm.losses import f` for
            # something inside one.
            members = (f"{origin}.{alias.name}" for alias in node.names)
            yield from (member if member in known else origin for member in members)


def may_import(name, target):
    """Returns whether a module of proxlm may import the target."""
    if any(within(target, package) for package in EXPERIMENTAL):
        return False
    if any(within(target, package) for package in OF_MODELS):
        return within(name, "proxlm.lm")
    if not within(target, "proxlm") or any(within(target, package) for package in SHARED):
        return True
    if any(within(name, package) for package in TAKE_FUNCTIONS) and any(
        within(target, package) for package in NOT_IMPORTED
    ):
        return False
    for package, allowed in MAY_KNOW.items():
        if within(name, package):
            return any(within(target, other) for other in (package, *allowed))
    return True


def breaches(root):
    """Lists `module -> target` for every import that goes the wrong way."""
    found = modules(root)
    return [
        f"{name} -> {target}"
        for name, path in found.items()
        for target in imports(name, path, found)
        if not may_import(name, target)
    ]


def test_no_subpackage_imports_more_than_it_may():
    assert breaches(ROOT) == []


def between_experiments(root):
    """Lists `importer -> experiment` wherever a file of experiments imports an experiment."""
    files = sorted((root / "experiments").rglob("*.py"))
    known = {module_name(path, root): path for path in files}
    runnable = {module_name(path, root) for path in (root / "experiments").glob("[a-z]*.py")}
    pairs = ((name, target) for name, path in known.items() for target in imports(name, path, known))
    return [f"{name} -> {target}" for name, target in pairs if any(within(target, each) for each in runnable)]


def test_no_experiment_imports_another():
    assert between_experiments(ROOT) == []


def test_an_import_of_an_experiment_is_seen(tmp_path):
    for name, text in {
        "exact.py": "",
        "other.py": "from experiments import exact",
        "support/cli.py": "from experiments.exact import main",
    }.items():
        path = tmp_path / "experiments" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    assert between_experiments(tmp_path) == [
        "experiments.other -> experiments.exact",
        "experiments.support.cli -> experiments.exact",
    ]


@pytest.mark.parametrize(
    ("file", "line", "target"),
    [
        ("penalties/norms.py", "from proxlm import losses", "proxlm.losses"),
        ("penalties/norms.py", "from ..losses import squared", "proxlm.losses"),
        ("penalties/__init__.py", "from .. import losses", "proxlm.losses"),
        ("penalties/norms.py", "import proxlm", "proxlm"),
        ("losses.py", "def late():\n    import proxlm.lm.model", "proxlm.lm.model"),
        ("lm/_model.py", "from proxlm.policy import kl", "proxlm.policy.kl"),
        ("policy/kl.py", "from proxlm import training", "proxlm.training"),
        ("policy/ppo.py", "from proxlm.lm import model", "proxlm.lm.model"),
        ("policy/ppo.py", "from proxlm import penalties", "proxlm.penalties"),
        ("training.py", "from proxlm.penalties import norms", "proxlm.penalties.norms"),
        ("transforms/prox.py", "from proxlm import lm", "proxlm.lm"),
        ("training.py", "import flax.linen as nn", "flax.linen"),
        ("checkpoint.py", "from flax import struct", "flax"),
        ("lm/_model.py", "from experiments import corpora", "experiments"),
        ("policy/ppo.py", "import tokenizers", "tokenizers"),
        ("lm/_model.py", "import matplotlib.pyplot as plt", "matplotlib.pyplot"),
    ],
)
def test_an_import_the_wrong_way_is_seen(tmp_path, file, line, target):
    make_package(tmp_path)
    (tmp_path / "proxlm" / file).write_text(line + "\n")
    name = module_name(tmp_path / "proxlm" / file, tmp_path)
    assert breaches(tmp_path) == [f"{name} -> {target}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("penalties/norms.py", "from proxlm.penalties import base"),
        ("penalties/norms.py", "from . import base"),
        ("transforms/prox.py", "from proxlm.penalties import norms"),
        ("solvers.py", "from proxlm import penalties"),
        ("lm/_model.py", "import flax.linen as nn"),
        ("policy/objectives.py", "from proxlm.policy import kl"),
        ("policy/kl.py", "from proxlm import _validation"),
        ("training.py", "import flaxen, jax, optax"),
        ("__init__.py", "from proxlm import lm, penalties"),
    ],
)
def test_an_import_the_right_way_is_allowed(tmp_path, file, line):
    make_package(tmp_path)
    (tmp_path / "proxlm" / file).write_text(line + "\n")
    assert breaches(tmp_path) == []


def make_package(root):
    """Writes a package like proxlm whose modules are empty."""
    modules = ("penalties/base", "penalties/norms", "transforms/prox", "lm/model", "policy/kl")
    packages = ("", "penalties/", "transforms/", "lm/", "policy/")
    files = [f"{package}__init__" for package in packages]
    for file in (*files, *modules, "_validation", "losses", "solvers", "training"):
        path = root / "proxlm" / f"{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
