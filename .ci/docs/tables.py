"""Pages that are read off the code: how-tos, operators, recipes, experiments, devices, peers."""

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import notebooks

from proxlm import penalties
from proxlm.policy import recipes as recipes_lib

jax.config.update("jax_num_cpu_devices", 2)  # for `sent`, before JAX starts

# Arguments without which an operator cannot be made, and the shape of a leaf that it takes.
_ROWS = (4, 8)
_MATRICES = (4, 6, 8)
_GIVEN: dict[str, tuple[Any, ...]] = {
    "affine_set": (jnp.ones((1, 32)), jnp.ones(1)),
    "box": (-1.0, 1.0),
    "box_section": (1.0, 1.0, 0.0, 1.0),
    "capped_simplex": (1.0, 2.0),
    "group": (penalties.l1(1.0),),
    "halfspace": (1.0, 1.0),
    "hyperplane": (1.0, 1.0),
    "n_m": (2, 4),
    "polyhedron": (jnp.ones((1, 32)), jnp.ones(1)),
    "prox_quant": (1.0, jnp.array([-1.0, 0.0, 1.0])),
    "quantization_grid": (jnp.array([-1.0, 0.0, 1.0]),),
    "rank_ball": (2,),
    "schatten": (1.0, 0.5),
    "slope": (jnp.arange(8.0, 0.0, -1.0),),
    "sparse_simplex": (2,),
    "spectral": (penalties.l1(1.0),),
    "top_k": (2,),
    "transport": (jnp.ones(4), jnp.ones(8) / 2),
}
# XLA's names of what devices send each other ↦ words for a table.
_SENT = {
    "all-reduce": "sums",
    "all-gather": "gathered",
    "all-to-all": "exchanged",
    "collective-permute": "exchanged",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    escaped = [[cell.replace("|", "&#124;") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *escaped]]
    return "\n".join(lines)


def properties(function: Callable[..., Any]) -> dict[str, str]:
    """The properties that a penalty's docstring states: Convex, Separable, Metric, Cost."""
    paragraphs = (" ".join(text.split()) for text in (inspect.getdoc(function) or "").split("\n\n"))
    pattern = r"Convex: (.+)\. Separable: (.+)\. Metric: (.+?)\. Cost: (.+?)\.( .*)?"
    (found,) = filter(None, (re.fullmatch(pattern, text) for text in paragraphs))
    return dict(zip(("convex", "separable", "metric", "cost"), found.groups()[:4], strict=True))


def sent(name: str, function: Callable[..., Any]) -> str:
    """Words for what two devices send each other in the compiled prox of rows, each whole on one of them."""
    parameters = inspect.signature(function).parameters
    own = {"axis": -1} if "axis" in parameters else {}
    shape = _MATRICES if "rows" in parameters else (8, 8) if name == "birkhoff" else _ROWS
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.NamedSharding(mesh, jax.P("data"))
    penalty = function(*_GIVEN.get(name, ()), **own)
    program = jax.jit(lambda x: penalty.prox(x, 0.5), out_shardings=where)
    lowered = program.lower(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where))
    text = lowered.compile({"xla_backend_optimization_level": "0"}).as_text()
    found = {words for kind, words in _SENT.items() if f"{kind}(" in text}
    return ", ".join(sorted(found)) or "nothing"


def operators() -> str:
    """The page of operators: formula, convexity, groups, metric, cost and sharding of each penalty."""
    makers = {name: getattr(penalties, name) for name in penalties.__all__}
    is_maker = lambda f: inspect.isfunction(f) and inspect.signature(f).return_annotation is penalties.Penalty
    rows, made = [], []
    for name, function in filter(lambda pair: is_maker(pair[1]), makers.items()):
        first = (inspect.getdoc(function) or "").splitlines()[0]
        parameters, said = inspect.signature(function).parameters, properties(function)
        composed = {"penalty", "penalties"} & set(parameters) and name not in _GIVEN
        axes = "axes or `grouping`" if "weight" in parameters else "axes" if "axis" in parameters else ""
        separable = "coordinates" if said["separable"] == "yes" else said["separable"]
        groups = axes or ("matrices" if "rows" in parameters else separable)
        cells = [
            f"[{name}](proxlm/penalties.html#{name})",
            first.rstrip("."),
            said["convex"],
            groups,
            said["metric"],
            said["cost"],
        ]
        (made if composed else rows).append([*cells, *([] if composed else [sent(name, function)])])
    head = ["operator", "g", "convex", "groups", "metric", "cost"]
    return OPERATORS.format(table(["operator", "g", *head[2:], "sent"], rows), table(head, made))


OPERATORS = """# Operators

A penalty is a pair of g and its proximal operator, prox_tg(x) = argmin_z g(z) + |z − x|²/2t; each page
states both. The columns, read off the docstrings and the compiled programs when this page was made:

- **groups**: what g treats by itself. "axes" is an argument, the axes inside a group, -1 for rows;
  `proxlm.penalties.grouping` makes heads, blocks, labels and groups across leaves
- **metric**: whether the step size may be an array shaped like x, as Adam's preconditioner is
- **cost**: of a prox, in passes over x where nothing else is said
- **sent**: what two devices tell each other in the prox of an array `[4, 8]` that is divided along its first
  axis, with rows as groups where there is a choice (of a matrix `[8, 8]`, or a stack `[4, 6, 8]`). Sums are
  of one number a group or less, also of flags that end a loop; gathered is the array

{}

## Made of others

{}

A test compares each with the laws of proximal operators: `proxlm.penalties.check` does it for one of yours.
"""


def recipes() -> str:
    """The page of recipes: the parts of each, and every setting that it has."""
    rows, lists, base = [], [], recipes_lib.RECIPES["ppo"].config.settings
    for name, recipe in recipes_lib.RECIPES.items():
        config, place = recipe.config, f"recipe-{name}"
        penalty = config.kl
        kl = f"{penalty.coef:g} {penalty.estimator} in the {penalty.placement}" if penalty else "none"
        kl = "measured" if penalty and penalty.coef == 0 else kl
        rows.append([f"[{name}](#{place})", _name(config.advantage), _name(config.loss), kl])
        rows[-1] += [str(config.aggregation), str(config.group_size)]
        settings = {key: value for key, value in config.settings.items() if not _is_part(value)}
        shown = (f"**{key}**" if key not in base or base[key] != x else key for key, x in settings.items())
        words = (f"{key} {_short(x)}" for key, x in zip(shown, settings.values(), strict=True))
        heading = f'<span id="{place}"></span>\n\n## {name}'
        lists.append(f"{heading}\n\n{recipe.source}.\n\n{' · '.join(words)}")
    head = ["recipe", "advantage", "loss", "KL", "aggregation", "group"]
    return RECIPES.format(table(head, rows), "\n\n".join(lists))


RECIPES = """# Recipes

`recipes.make("grpo", group_size=16, clip_high=0.28)` gives the configuration of a name with settings changed
by these names; a setting that a recipe does not have is refused. Below the table stands every setting of
each, in bold what differs from `ppo`.

{}

{}
"""


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _name(part: Any) -> str:
    """The name of a part's function, with that of a function which it is given."""
    given = (_name(value) for value in part.settings.values() if hasattr(value, "fn"))
    return f"{part.fn.__name__}({', '.join(given)})".replace("()", "")


def _is_part(value: Any) -> bool:
    return callable(value) or type(value).__name__ in ("KL", "Value", "Whitening")


def how_to() -> str:
    """The page of how-to scripts, each shown."""
    package = importlib.import_module("experiments.how_to")
    parts = [
        "# How to",
        package.__doc__ or "",
        "Each runs as `python -m experiments.how_to.NAME` in a clone.",
    ]
    for path in sorted(notebooks.SCRIPTS.glob("[a-z]*.py")):
        name, link = path.stem, f"[as a notebook](notebooks/{path.stem}.ipynb)"
        note = f"This one is also there {link}.\n\n" if name in notebooks.PLOTS else ""
        parts.append(f"## {name}\n\n{note}```python\n{path.read_text('utf-8').rstrip()}\n```")
    return "\n\n".join(parts)


def experiments() -> str:
    """The page of experiments: the table, and the header of each."""
    registry = importlib.import_module("experiments.__main__")
    parts = ["# Experiments", registry.markdown()]
    for name in registry.EXPERIMENTS:
        text = importlib.import_module(f"experiments.{name}").__doc__ or ""
        parts.append(f"## {name}\n\n{text}")
    return "\n\n".join(parts)


def plan() -> str:
    """The page of devices: what `experiments.plan` found."""
    return "# Devices and memory\n\n" + (importlib.import_module("experiments.plan").__doc__ or "")


def peers() -> str:
    """The page of arguments of verl and TRL."""
    lines = importlib.import_module("tests.policy.peer_arguments").table()
    return "\n".join(["# Arguments of verl and TRL", "", *lines])
