"""`make docs`: every public name has its place, no link is dead, what is shown runs, a browser shows it."""

import doctest
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from proxlm import penalties
from proxlm.policy import recipes

ROOT = pathlib.Path(__file__).parents[1]


def test_a_dead_link_is_found(tmp_path):
    spec = importlib.util.spec_from_file_location("links", ROOT / ".ci/docs/links.py")
    spec.loader.exec_module(links := importlib.util.module_from_spec(spec))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "page.html").write_text(
        '<p id="here"><a href="#here">x</a><a href="../b.html#far">y</a>'
    )
    (tmp_path / "b.html").write_text(
        '<a href="a/page.html#here">x</a><a href="https://x.org">y</a><img src="c.png">'
    )
    assert sorted(links.dead(tmp_path)) == ["a/page.html: ../b.html#far", "b.html: c.png"]


def test_guides_link_files_that_are_there():
    dead = [
        f"{path.name}: {link}"
        for path in [ROOT / "README.md", *(ROOT / ".github").glob("*.md")]
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8"))
        if "://" not in link and not (path.parent / link).is_file()
    ]
    assert not dead


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built pages; building fails where a name has no place or a link is dead."""
    folder = tmp_path_factory.mktemp("docs")
    given = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, ".ci/docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return folder


@pytest.mark.slow
def test_every_name_recipe_and_script_has_its_place(site):
    text = lambda name: (site / f"{name}.html").read_text("utf-8")
    assert "proxlm.penalties.l1" in (site / "search.js").read_text()
    for script in (ROOT / "experiments" / "how_to").glob("[a-z]*.py"):
        assert f'id="{script.stem}"' in text("how_to")
    for name in recipes.RECIPES:
        assert f'id="recipe-{name}"' in text("recipes")
    makers = [name for name in penalties.__all__ if f"proxlm/penalties.html#{name}" in text("operators")]
    assert len(makers) > 60 and {"l1", "nuclear", "masked", "transport"} <= set(makers)


@pytest.mark.slow
@pytest.mark.parametrize("page", [".github/FAQ.md", ".ci/docs/front.md"])
def test_what_a_page_says_runs(page):
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False)
    assert tried > 10 and not failed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sweep", "nnx_heads", "nnx_model"])
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_runs(site, name, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = nbformat.read(site / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300).execute()
    assert notebook.cells[0].cell_type == "markdown" and len(notebook.cells) >= 5
    kinds = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for kind in output.get("data", ())
    ]
    assert "image/png" in kinds and not any("Error" in str(cell.get("outputs")) for cell in notebook.cells)


@pytest.mark.slow
def test_a_browser_shows_the_picture_and_finds_a_name(site):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")

    def shown(page):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
        command += ["--virtual-time-budget=20000", "--dump-dom", page]
        return subprocess.run(command, capture_output=True, text=True, timeout=180).stdout

    page = site / "index.html"
    probe = """<script>onload = () => {
        const size = document.getElementById("halves").getBoundingClientRect();
        document.title = [size.width, size.height];
    }</script>"""
    (site / "probed.html").write_text(page.read_text("utf-8").replace("</body>", f"{probe}</body>"), "utf-8")
    title = shown((site / "probed.html").as_uri()).split("<title>")[1].split("<")[0]
    width, height = map(float, title.split(","))
    assert width > 500 and height > 150
    found = shown(f"{page.as_uri()}?search=group_lasso")
    assert 'class="search-result"' in found and 'href="proxlm/penalties.html#group_lasso"' in found
