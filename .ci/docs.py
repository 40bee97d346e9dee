"""Writes the API pages from the docstrings, and the guides beside them, with pdoc.

    python .ci/docs.py build/docs

Fails if a public name is missing from its page or if pdoc warns.
"""

import importlib
import pathlib
import pkgutil
import sys
import types
import warnings

import chex
import jax
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

import proxlm  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
GUIDES = {
    "guide_readme": "README.md",
    "guide_contributing": ".github/CONTRIBUTING.md",
    "guide_from_jaxopt": ".github/FROM_JAXOPT.md",
    "guide_changelog": ".github/CHANGELOG.md",
}


def public_modules() -> list[str]:
    """Returns the names of all modules of proxlm whose path has no private part."""
    found = [module.name for module in pkgutil.walk_packages(proxlm.__path__, "proxlm.")]
    return ["proxlm", *(name for name in found if not any(part[0] == "_" for part in name.split(".")))]


def guides() -> list[types.ModuleType]:
    """Returns each guide as a module whose docstring it is, the one form that pdoc renders."""
    sys.path.append(str(ROOT))
    peers = importlib.import_module("tests.policy.peer_arguments")
    texts = {name: (ROOT / path).read_text("utf-8") for name, path in GUIDES.items()}
    texts["guide_verl_and_trl"] = "# Arguments of verl and TRL\n\n" + "\n".join(peers.table())
    return [types.ModuleType(name, text) for name, text in texts.items()]


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
    pdoc.render.configure(docformat="google", footer_text=f"proxlm {proxlm.__version__}")
    modules = [importlib.import_module(name) for name in public_modules()]
    documented = {module.__name__: pdoc.doc.Module(module) for module in [*modules, *guides()]}
    for name, module in documented.items():
        page = pdoc.render.html_module(module, all_modules=documented)
        missing = missing_names(module.obj, page) if name in public_modules() else []
        if missing:
            raise SystemExit(f"{name}: {', '.join(missing)} of __all__ are not on the page")
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, "utf-8")
    (folder / "index.html").write_text(pdoc.render.html_index(documented), "utf-8")
    (folder / "search.js").write_text(pdoc.render.search_index(documented), "utf-8")
    print(f"{len(documented)} pages in {folder}")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(pathlib.Path(sys.argv[1]))
