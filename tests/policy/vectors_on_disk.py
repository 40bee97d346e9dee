"""Results of other libraries for the same numbers; each file names its source and convention."""

import json
import pathlib
import types

import jax.numpy as jnp

FOLDER = pathlib.Path(__file__).parent / "vectors"


def load(name):
    """Reads tests/vectors/policy_<name>.json as nested dicts and lists."""
    return json.loads((FOLDER / f"policy_{name}.json").read_text(encoding="utf-8"))


def inputs():
    """The common inputs, [6, 7] float32 arrays, the mask bool and the scores [6]."""
    given = load("inputs")
    arrays = {k: jnp.array(v, jnp.float32) for k, v in given.items() if isinstance(v, list)}
    return types.SimpleNamespace(**arrays | {"mask": arrays["mask"] > 0})
