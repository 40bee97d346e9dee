"""Notebooks of how-to scripts: the body of `main` as cells, so that what it computes can be looked at."""

import ast
import pathlib
import re
import textwrap

import jupytext

SCRIPTS = pathlib.Path(__file__).parents[2] / "experiments" / "how_to"
# Script ↦ a plot of what its `main` returns.
PLOTS = {
    "sweep": """
zeros, errors = result
plt.errorbar(STRENGTHS, zeros.mean(axis=1), zeros.std(axis=1, ddof=1), marker="o", label="zeros of 20")
plt.errorbar(STRENGTHS, errors.mean(axis=1), errors.std(axis=1, ddof=1), marker="o", label="squared error")
plt.xlabel("strength; bars: ± a standard deviation over seeds")
plt.legend()""",
    "nnx_heads": """
plt.bar(range(len(result)), result)
plt.xlabel("head")
plt.ylabel("norm of its values' kernel")""",
    "nnx_model": """
plt.plot(result)
plt.xlabel("iteration")
plt.ylabel("share of tokens that repeat the prompt")""",
}


def light(source: str, plot: str) -> str:
    """A script in jupytext's light format: the header as text, the body of `main`, and a plot."""
    tree = ast.parse(source)
    header, *rest = tree.body
    (main,) = (node for node in rest if isinstance(node, ast.FunctionDef) and node.name == "main")
    segment = lambda first, last: "\n".join(source.splitlines()[first.lineno - 1 : last.end_lineno])
    before = segment(rest[0], rest[rest.index(main) - 1])
    arguments = zip(main.args.args, main.args.defaults, strict=True)
    settings = "\n".join(f"{name.arg} = {ast.unparse(value)}" for name, value in arguments)
    documented = ast.get_docstring(main) is not None
    body = textwrap.dedent(segment(main.body[int(documented)], main.body[-1]))
    body = re.sub(r"^return ", "result = ", body, flags=re.MULTILINE)
    title, *more = ast.get_docstring(ast.Module([header], [])).split(" `python -m")[0].splitlines()
    text = "\n".join(f"# {line}".rstrip() for line in [f"# {title}", *more])
    said = f"# {ast.get_docstring(main)}\n\n" if documented else ""
    shown = f"import matplotlib.pyplot as plt\n{plot}"
    return f"{text}\n\n{before}\n\n{settings}\n\n{said}{body}\nresult\n\n{shown}\n"


def write(folder: pathlib.Path) -> None:
    """Writes the notebooks, not executed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        source = (SCRIPTS / f"{name}.py").read_text("utf-8")
        notebook = jupytext.reads(light(source, plot), "py:light")
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        jupytext.write(notebook, folder / f"{name}.ipynb")
