"""Flat names for the settings of a nested configuration: `clip_low` is the loss's, `kl_coef` the KL's."""

import dataclasses
import difflib
import inspect
from typing import Any

from proxlm import _validation
from proxlm.policy._configuration.partials import Partial, parameters_of, takes_float

__all__ = ["NAMED", "NUM_DATA", "SYNONYMS", "Path", "complete", "override", "paths", "settings"]

# How many arguments a part is called with, by position; the parameters after them are its settings.
NUM_DATA = {
    "advantage": 4,
    "loss": 4,
    "group_filter": 4,
    "length_penalty": 2,
    "correction": 3,
    "baseline": 2,
    "reward_normalisation": 2,
}
# Data that a part is given by name where the samples have it.
OPTIONAL_DATA = ("discounts",)
# What other libraries call a setting, and what it is called here.
SYNONYMS = {
    "beta": "kl_coef",
    "init_kl_coef": "kl_coef",
    "gamma": "discount",
    "lam": "gae_lambda",
    "vf_coef": "value_coef",
    "cliprange": "clip_low and clip_high",
    "clip_range": "clip_low and clip_high",
    "cliprange_value": "value_clip",
    "epsilon": "clip_low and clip_high",
    "epsilon_low": "clip_low",
    "epsilon_high": "clip_high",
    "delta": "dual_clip",
    "num_generations": "group_size",
    "num_ppo_epochs": "num_epochs",
}

Path = tuple[str, ...]


def complete(part: Partial, slot: str) -> Partial:
    """Binds every float that a part leaves at its default, so that all its numbers are leaves.

    >>> from proxlm.policy._configuration.partials import partial
    >>> complete(partial(lambda rewards, valid, share=0.5: rewards), "baseline").settings
    {'share': 0.5}
    """
    if slot not in NUM_DATA:
        return part
    inner = {name: complete(x, name) for name, x in part.settings.items() if isinstance(x, Partial)}
    defaults = {
        x.name: x.default for x in _parameters(part, slot) if takes_float(x) and isinstance(x.default, float)
    }
    bound = defaults | part.settings | inner
    same = len(bound) == len(part.settings) and all(part.settings[name] is x for name, x in inner.items())
    return part if same else part.replace(**bound)


def paths(config: Any) -> dict[str, list[Path]]:
    """Every flat name for a setting of a configuration, and the paths of the settings it may mean.

    A setting of a part goes by its own name and by `<part>_<name>`; those of KL, value loss and
    whitening by the latter alone.

    >>> from proxlm.policy._configuration.config import PPOConfig
    >>> found = paths(PPOConfig())
    >>> found["clip_low"], found["kl_coef"]
    ([('loss', 'clip_low')], [('kl', 'coef')])
    """
    found: dict[str, list[Path]] = {}
    for field in dataclasses.fields(config):
        found.setdefault(field.name, []).append((field.name,))
        part = getattr(config, field.name)
        if isinstance(part, Partial):
            for path in _within(part, (field.name,)):
                for name in {path[-1], *(f"{owner}_{path[-1]}" for owner in path[:-1])}:
                    found.setdefault(name, []).append(path)
        elif dataclasses.is_dataclass(part):
            for inner in dataclasses.fields(part):
                found[f"{field.name}_{inner.name}"] = [(field.name, inner.name)]
    return found


def override(config: Any, changes: dict[str, Any], whose: str) -> Any:
    """A configuration with settings replaced, each by the flat name of `paths`.

    Args:
      changes: flat name -> value; a part that is given as a whole comes before its own settings.
      whose: the configuration's name, for messages.

    >>> from proxlm.policy._configuration.config import PPOConfig
    >>> override(PPOConfig(), {"clip_low": 0.1, "kl_coef": 0.2}, "ppo").kl.coef
    0.2
    """
    fields = {field.name for field in dataclasses.fields(config)}
    whole = {name: x for name, x in changes.items() if name in fields}
    config = dataclasses.replace(config, **whole) if whole else config
    known, nested = paths(config), {}
    for name, value in changes.items():
        if name not in fields:
            found = known.get(name, ())
            if len(found) != 1 or name in SYNONYMS:
                raise _unknown(config, known, name, value, whose)
            nested[found[0]] = value
    return _replaced(config, nested) if nested else config


def settings(config: Any) -> dict[str, Any]:
    """The value of every setting by the shortest flat name that is its own.

    >>> from proxlm.policy._configuration.config import PPOConfig
    >>> settings(PPOConfig())["gae_lambda"]
    0.95
    """
    known = paths(config)
    names = _names(known)
    return {name: _at(config, known[name][0]) for name in names}


def _names(known):
    """The names by which settings are listed: bare where they are unambiguous."""
    bare = {x for x, found in known.items() if found[0][-1] == x or found[0][0] in NAMED}
    shared = {x for x in bare if len(known[x]) > 1 or x in SYNONYMS}
    return sorted((bare - shared) | {f"{path[-2]}_{x}" for x in shared for path in known[x]})


def _at(node, path):
    """The setting at a path; the default of its function where it is not bound."""
    for name in path:
        if isinstance(node, Partial):
            node = node.settings[name] if name in node.settings else parameters_of(node.fn)[name].default
        else:
            node = getattr(node, name)
    return node


def _replaced(node, changes):
    """A part or configuration with the settings at these paths replaced."""
    here = {path[0]: x for path, x in changes.items() if len(path) == 1}
    for name in {path[0] for path in changes if len(path) > 1}:
        inner = {path[1:]: x for path, x in changes.items() if len(path) > 1 and path[0] == name}
        here[name] = _replaced(
            node.settings[name] if isinstance(node, Partial) else getattr(node, name), inner
        )
    return node.replace(**here) if isinstance(node, Partial) else dataclasses.replace(node, **here)


def _within(part, owner):
    """The paths of the settings of a part, and of the parts within it."""
    for name in dict.fromkeys((*part.settings, *(x.name for x in _parameters(part, owner[-1])))):
        yield (*owner, name)
        inner = part.settings.get(name)
        if isinstance(inner, Partial):
            yield from _within(inner, (*owner, name))


def _parameters(part, slot):
    """The parameters of a part that are settings and not data."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = list(parameters_of(part.fn).values())[NUM_DATA.get(slot, 0) :]
    return [x for x in parameters if x.kind in kinds and x.name not in OPTIONAL_DATA]


def _unknown(config, known, name, value, whose):
    """The error for a name that no part has, that two share, or that means another setting elsewhere."""
    if name in known:
        own = sorted(f"{path[-2]}_{name}" for path in known[name])
        ways = " or ".join([*own, *([f"{SYNONYMS[name]} of the ratio"] if name in SYNONYMS else [])])
        return _validation.invalid(name, value, "the name of one setting", f"Say {ways}.", "recipes.make")
    names = _names(known)
    part = name.partition("_")[0]
    close = difflib.get_close_matches(name, names, n=1)
    remedy = f"Did you mean {close[0]}? " if close else ""
    if part in NAMED and getattr(config, part) is None:
        remedy = f"It has {part}=None: give it a {NAMED[part]} first. "
    elif name in SYNONYMS:
        remedy = f"Say {SYNONYMS[name]}. "
    remedy += f"Its settings are {', '.join(names)}."
    return _validation.invalid(name, value, f"a setting of {whose}", remedy, "recipes.make")


# The parts that are dataclasses: their settings go by qualified names alone.
NAMED = {"kl": "KL", "value": "Value", "whitening": "Whitening"}
