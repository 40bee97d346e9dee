"""Bad values on the command line of every experiment: the option is named, and no work starts."""

import dataclasses
import importlib
import inspect
import re
import sys

import pytest

from experiments import __main__ as registry
from experiments.support.run import cli, model_store, runs

SHARE = 0.95
STRIDE = 3  # of all pairs of a field and a text every third is tried: parsing takes a tenth of a second
# Kind of default ↦ texts that no option of this kind can mean.
TEXTS = {
    int: ("-1", "2.5", "x", "nan", "", "1e3", "99999999999"),
    float: ("-1", "nan", "inf", "x", "", "0.1.2"),
    tuple: ("", "nonsense"),
}


def bad_values(config):
    """Yields (field, text) for every numeric or listed field of a configuration class."""
    for field in dataclasses.fields(config):
        kind = type(field.default)
        yield from ((field.name, text) for text in TEXTS.get(kind, ()))
        if kind is int and field.default > 0 and field.name != "seed":
            yield field.name, "0"


def outcome(name, field, text, monkeypatch, capsys):
    """Returns what is wrong with the refusal of one value, or None."""
    module = importlib.import_module(f"experiments.{name}")
    option = f"--{field.replace('_', '-')}"
    values = [text] if text else []
    monkeypatch.setattr(sys, "argv", [name, option, *values])
    try:
        with pytest.raises(BaseException) as raised:
            start(module)
    except pytest.fail.Exception:
        return "accepted"
    said = capsys.readouterr().err + str(raised.value)
    if not isinstance(raised.value, SystemExit):
        return f"{raised.type.__name__}: {said}"
    return None if re.search(rf"\b{field.replace('_', '[-_]')}\b", said) else f"does not name it: {said}"


def start(module):
    if len(inspect.signature(module.main).parameters) == 2:
        return cli.run(module.main)
    return cli.call(module.main, module.__name__.rpartition(".")[2], module.__doc__)


@pytest.mark.slow
def test_bad_command_lines_name_the_option_before_any_work(monkeypatch, capsys):
    def work(*arguments, **settings):
        raise RuntimeError("work started")

    monkeypatch.setattr(runs, "opened", work)
    monkeypatch.setattr(model_store, "load", work)
    entries = [
        (name, *value)
        for name in registry.EXPERIMENTS
        for value in bad_values(importlib.import_module(f"experiments.{name}").Config)
    ][::STRIDE]
    found = [(*entry, outcome(*entry, monkeypatch, capsys)) for entry in entries]
    faults = [f"{name} --{field} {text!r}: {it[:160]}" for name, field, text, it in found if it]
    assert len(entries) > 490
    assert len(faults) <= (1 - SHARE) * len(entries), f"{len(faults)} of {len(entries)}:\n" + "\n".join(
        faults
    )
