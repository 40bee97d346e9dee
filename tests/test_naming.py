"""The rules of names and docstrings that a program can check; .github/CONTRIBUTING.md states them."""

import ast
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re
import types

import pytest

import proxlm

ROOT = pathlib.Path(__file__).parents[1]
# What a first line may not begin with, since it then names a question and not a thing.
QUESTIONS = re.compile(r"(what|which|who|whose|where|how)\b", re.IGNORECASE)
# Private idiom that readers had to decode.
RIDDLES = re.compile(
    r"that are none\b|caller's word|\b(this|the|a|every|each|other|only|its) rooms?\b|\bshelf\b|"
    r"[Ff]inds out now|what would otherwise"
)
AMERICAN = re.compile(
    r"\b(colors?|colored|behaviors?|favors?|centers?|centered|neighbors?|analog|modeling|labeled|"
    r"(normal|regular|minim|maxim|optim|summar|quant|special|general|vector|standard|util|penal|"
    r"parametr|real|initial|synchron|factor|linear|symmetr|categor|recogn|serial|parallel|emphas)"
    r"iz(e|es|ed|ing|ation|ations))\b"
)
TWO_BLANKS = re.compile(r"(?<=[a-z)`])\.  +(?=[A-Z`])")

# Modules whose functions are called by the module's name, such as lm.lora.init beside lm.init.
NAMESPACES = ("proxlm.lm.delta", "proxlm.lm.lora", "proxlm.lm.trainable")


def source_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def is_private(name):
    return any(part.startswith("_") for part in name.split("."))


def public_modules():
    """Returns the modules of proxlm whose path has no private part."""
    found = [module.name for module in pkgutil.walk_packages(proxlm.__path__, "proxlm.")]
    return [importlib.import_module(name) for name in ["proxlm", *found] if not is_private(name)]


def public_functions():
    """Yields (subpackage, name, function) for all that an `__all__` lists."""
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            if inspect.isfunction(member) and member.__module__.startswith("proxlm"):
                yield module.__name__, name, member


@functools.cache
def parsed(path):
    """Returns (line, docstring) for a module and all that it defines, and (line, name) of long functions."""
    docstrings, long = [], []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if text := ast.get_docstring(node):
            docstrings.append((getattr(node, "lineno", 1), text))
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            own = first.end_lineno - first.lineno + 1 if text else 0
            if node.end_lineno - node.lineno + 1 - own > 45:
                long.append((node.lineno, node.name))
    return docstrings, long


def prose(path):
    """Yields (line, text) for every docstring and comment of a file, without what is in backticks."""
    for line, text in parsed(path)[0]:
        body = "\n".join(row for row in text.splitlines() if not row.lstrip().startswith((">>>", "...")))
        yield line, re.sub(r"`[^`]*`", "", body)
    for line, text in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if text.lstrip().startswith("#"):
            yield line, re.sub(r"`[^`]*`", "", text)


def places(path, rows):
    return [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in rows]


def docstrings_that_begin_with_a_question():
    found = []
    for path in source_files("proxlm", "experiments", "tests", ".ci"):
        rows = [(line, text.splitlines()[0]) for line, text in parsed(path)[0] if QUESTIONS.match(text)]
        found += places(path, rows)
    return found


def private_idiom_and_other_spellings():
    found = []
    for path in source_files("proxlm", "experiments"):
        for line, text in prose(path):
            hits = (hit for pattern in (RIDDLES, AMERICAN, TWO_BLANKS) for hit in pattern.finditer(text))
            found += places(path, [(line, hit.group()) for hit in hits])
    return found


def modules_over_250_lines_and_functions_over_45():
    """The docstring of a function is not counted."""
    found = []
    for path in source_files("proxlm", "experiments"):
        rows = [(1, "too long")] if path.read_text("utf-8").count("\n") > 250 else []
        found += places(path, rows + parsed(path)[1])
    return found


def modules_without_a_list_of_names():
    files = [path for path in source_files("proxlm") if not path.name.startswith("_")]
    hidden = [str(path) for path in files if "\n__all__ = " not in path.read_text("utf-8")]
    return hidden + [module.__name__ for module in public_modules() if not hasattr(module, "__all__")]


def listed_names_missing_in_the_index():
    return [
        f"{module.__name__}: {name}"
        for module in public_modules()
        if hasattr(module, "__path__")
        for name in getattr(module, "__all__", ())
        if f"`{name}`" not in module.__doc__
    ]


def public_functions_without_types_or_example():
    found = []
    for module, name, function in public_functions():
        signature = inspect.signature(function)
        untyped = [key for key, given in signature.parameters.items() if given.annotation is given.empty]
        if untyped or signature.return_annotation is signature.empty:
            found.append(f"{module}.{name}: no type for {', '.join(untyped) or 'the result'}")
        if ">>>" not in (function.__doc__ or ""):
            found.append(f"{module}.{name}: no example")
    return found


def penalties_without_their_properties():
    """Tables of the documentation are read off these lines."""
    line = re.compile(r"Convex: .+\. Separable: .+\. Metric: .+\. Cost: .+\.")
    makers = [f for module, _, f in public_functions() if module == "proxlm.penalties"]
    makers = [f for f in makers if inspect.signature(f).return_annotation is proxlm.penalties.Penalty]
    assert len(makers) > 60
    paragraphs = lambda f: (" ".join(text.split()) for text in f.__doc__.split("\n\n"))
    return [f.__name__ for f in makers if not any(map(line.fullmatch, paragraphs(f)))]


def modules_hidden_by_a_name_of_their_package():
    hidden = []
    for module in pkgutil.walk_packages(proxlm.__path__, "proxlm."):
        package, _, name = module.name.rpartition(".")
        importlib.import_module(module.name)
        if not isinstance(getattr(importlib.import_module(package), name), types.ModuleType):
            hidden.append(module.name)
    return hidden


def names_with_two_meanings_in_a_subpackage():
    meanings = {}
    for module, name, function in public_functions():
        subpackage = module if module in NAMESPACES else ".".join(module.split(".")[:2])
        meanings.setdefault(f"{subpackage}: {name}", set()).add(f"{function.__module__}.{name}")
    return [f"{name}: {', '.join(sorted(where))}" for name, where in meanings.items() if len(where) > 1]


@pytest.mark.parametrize(
    "rule",
    [
        docstrings_that_begin_with_a_question,
        private_idiom_and_other_spellings,
        modules_over_250_lines_and_functions_over_45,
        modules_without_a_list_of_names,
        listed_names_missing_in_the_index,
        public_functions_without_types_or_example,
        penalties_without_their_properties,
        modules_hidden_by_a_name_of_their_package,
        names_with_two_meanings_in_a_subpackage,
    ],
    ids=lambda rule: rule.__name__,
)
def test_there_are_no(rule):
    found = rule()
    assert not found, "\n" + "\n".join(found)
