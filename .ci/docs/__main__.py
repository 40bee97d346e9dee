"""Writes the documentation: a front page, guides, tables read off the code, notebooks and the API pages.

    python .ci/docs build/docs

Fails if a public name is missing from its page, if an internal link is dead or if pdoc warns.
"""

import importlib
import pathlib
import pkgutil
import shutil
import sys
import types
import warnings
from collections.abc import Callable

import chex
import jax
import links
import notebooks
import optax
import pdoc
import pdoc.doc
import pdoc.render

# Unions as long as a line, one of which names itself, are shown by their names.
for library, names in (
    (chex, "Array ArrayTree Numeric Scalar"),
    (optax, "OptState Params ScalarOrSchedule Updates"),
):
    for name in names.split():
        setattr(library, name, type(name, (), {"__module__": library.__name__}))
jax.Array.__qualname__ = "Array"

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # this clone, whatever is installed

import picture  # noqa: E402
import tables  # noqa: E402

import proxlm  # noqa: E402

# Page ↦ its title beside all pages, and its Markdown: a file, or a function that makes it.
GUIDES: dict[str, tuple[str, str | Callable[[], str]]] = {
    "index": ("proxlm", ".ci/docs/front.md"),
    "install": ("Installation", ".github/INSTALL.md"),
    "how_to": ("How to", tables.how_to),
    "operators": ("Operators", tables.operators),
    "recipes": ("Recipes", tables.recipes),
    "faq": ("Questions", ".github/FAQ.md"),
    "plan": ("Devices and memory", tables.plan),
    "experiments": ("Experiments", tables.experiments),
    "from_jaxopt": ("From jaxopt", ".github/FROM_JAXOPT.md"),
    "verl_and_trl": ("From verl and TRL", tables.peers),
    "readme": ("Read me", "README.md"),
    "contributing": ("Contributing", ".github/CONTRIBUTING.md"),
    "changelog": ("Changelog", ".github/CHANGELOG.md"),
}

FIGURES = sorted((ROOT / ".github").glob("*.svg"))


def public_modules() -> list[str]:
    """Returns the names of all modules of proxlm whose path has no private part."""
    found = [module.name for module in pkgutil.walk_packages(proxlm.__path__, "proxlm.")]
    return ["proxlm", *(name for name in found if not any(part[0] == "_" for part in name.split(".")))]


def guides() -> list[types.ModuleType]:
    """Returns each guide as a module whose docstring it is, the one form that pdoc renders."""
    found, files = [], {path: name for name, (_, path) in GUIDES.items() if isinstance(path, str)}
    for name, (_, text) in GUIDES.items():
        text = (ROOT / text).read_text("utf-8") if isinstance(text, str) else text()
        for path, page in files.items():  # guides link each other as files, for those who read them there
            text = text.replace(f"]({pathlib.Path(path).name})", f"]({page}.html)")
        for figure in FIGURES:
            text = text.replace(f"]({figure.relative_to(ROOT)})", f"]({figure.name})")
        module = types.ModuleType(name, text)
        module.__docformat__ = "markdown"
        found.append(module)
    return found


def missing_names(module: types.ModuleType, page: str) -> list[str]:
    """Returns the names of the module's `__all__` that have neither a place on its page nor a page."""
    members = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    pages = public_modules()
    return [
        name
        for name, member in members.items()
        if f'id="{name}"' not in page and getattr(member, "__name__", "") not in pages
    ]


def main(folder: pathlib.Path) -> None:
    """Renders every module and guide into the folder."""
    pdoc.render.env.globals["guides"] = {name: title for name, (title, _) in GUIDES.items()}
    pdoc.render.env.globals["subpackages"] = [name for name in public_modules() if name.count(".") == 1]
    pdoc.render.configure(
        docformat="google", footer_text=f"proxlm {proxlm.__version__}", template_directory=HERE / "templates"
    )
    folder.mkdir(parents=True, exist_ok=True)
    modules = [importlib.import_module(name) for name in public_modules()]
    for name in proxlm.__all__:  # imported when first asked for, which pdoc does not do
        getattr(proxlm, name)
    documented = {module.__name__: pdoc.doc.Module(module) for module in [*guides(), *modules]}
    drawn = picture.svg()
    for name, module in documented.items():
        page = pdoc.render.html_module(module, all_modules=documented).replace("<p>PICTURE</p>", drawn)
        missing = missing_names(module.obj, page) if name in public_modules() else []
        if missing:
            raise SystemExit(f"{name}: {', '.join(missing)} of __all__ are not on the page")
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, "utf-8")
    for figure in FIGURES:
        shutil.copy(figure, folder)
    (folder / "search.js").write_text(pdoc.render.search_index(documented), "utf-8")
    notebooks.write(folder / "notebooks")
    if dead := links.dead(folder):
        raise SystemExit("dead links:\n" + "\n".join(dead))
    print(f"{len(documented)} pages in {folder}")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(pathlib.Path(sys.argv[1]))
