"""The package as it is presented: one version, one set of lower bounds, one table of experiments."""

import pathlib
import re
import tomllib

import proxlm
from experiments import __main__ as registry

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DOCUMENT["project"]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_oldest_environment_is_the_lower_bounds():
    bounds = dict(dependency.split(">=") for dependency in PROJECT["dependencies"])
    # pip takes 2.0 for 2.0.0 as a bound and as a pin.
    assert {name: pin.removesuffix(".0") for name, pin in pins(".github/oldest.txt").items()} == bounds


def test_the_lock_pins_what_experiments_need_by_hash_and_names_no_host():
    locked = (ROOT / ".github" / "locked.txt").read_text()
    assert "://" not in locked and "--index" not in locked
    pinned = re.findall(
        r"^([\w.-]+)==\S+(?: ;.*)? \\\n    --hash=sha256:[0-9a-f]{64}\b", locked, re.MULTILINE
    )
    assert len(pinned) == len(re.findall("==", re.sub("[!=]= '.*?'", "", locked)))
    wanted = [*PROJECT["dependencies"], *DOCUMENT["dependency-groups"]["experiments"]]
    names = {re.match(r"[\w.-]+", one).group().lower() for one in wanted}
    assert names <= set(pinned) and f"jax=={pins('.github/oldest.txt')['jax']}" in locked


def test_the_citation_has_the_version():
    citation = (ROOT / ".github" / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE).group(1) == proxlm.__version__


def test_the_readme_is_short_and_has_the_table_of_the_registry():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    assert registry.markdown() in readme
