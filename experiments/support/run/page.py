"""The page of a run: one HTML file with its configuration, numbers, figures and texts inside."""

import base64
import html
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td { border-bottom: 1px solid #ddd; padding: .15rem 1rem .15rem 0 }
img { max-width: 100%; margin: .5rem 0 } pre { overflow-x: auto; background: #f6f6f6; padding: 1rem }
.smoke { background: #c8553d; color: white; padding: .5rem 1rem }
"""


def write(
    path: pathlib.Path, title: str, smoke: str, config: Mapping[str, Any], numbers: Mapping[str, Any]
) -> None:
    """Writes index.html beside the files of a run; `smoke` is a warning above all, or empty."""
    quote = lambda text: html.escape(str(text))
    parts = [f"<h1>{quote(title)}</h1>", f'<p class="smoke">{quote(smoke)}</p>' if smoke else ""]
    told = [
        f"<h2>{quote(text.name)}</h2><pre>{quote(text.read_text('utf-8'))}</pre>" for text in _texts(path)
    ]
    parts += told[:1]
    for figure in sorted(path.glob("*.svg")):
        source = f"data:image/svg+xml;base64,{base64.b64encode(figure.read_bytes()).decode()}"
        parts += [f"<h2>{quote(figure.stem)}</h2>", f'<img alt="{quote(figure.stem)}" src="{source}">']
    parts += told[1:]
    for heading, values in {"Numbers": dict(flat(numbers)), "Configuration": config}.items():
        rows = "".join(f"<tr><td>{quote(name)}</td><td>{quote(x)}</td></tr>" for name, x in values.items())
        parts += [f"<h2>{heading}</h2>", f"<table>{rows}</table>"]
    head = f'<meta charset="utf-8"><title>{quote(title)}</title><style>{STYLE}</style>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
    (path / "index.html").write_text(page, "utf-8")


def flat(numbers: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of a path, as "losses / dense", and a number or a short list; longer lists are left out."""
    if isinstance(numbers, Mapping):
        for key, value in numbers.items():
            yield from flat(value, f"{name} / {key}" if name else str(key))
    elif not isinstance(numbers, list) or (
        len(numbers) <= 8 and not any(isinstance(x, list) for x in numbers)
    ):
        shown = lambda x: f"{x:.6g}" if isinstance(x, float) else str(x)
        yield name, ", ".join(map(shown, numbers)) if isinstance(numbers, list) else shown(numbers)


def _texts(path):
    """The texts of a run, its report first."""
    return sorted(path.glob("*.txt"), key=lambda text: (text.name != "report.txt", text.name))
