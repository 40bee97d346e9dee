"""Results of other libraries for the same numbers; each file names its source and convention."""

import json
import pathlib
import types

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "vectors"


def load(name):
    """Reads tests/vectors/policy_<name>.json as nested dicts and lists."""
    return json.loads((FOLDER / f"policy_{name}.json").read_text(encoding="utf-8"))


def inputs():
    """The common inputs, [6, 7] float32 arrays of NumPy, the mask bool and the scores [6]."""
    given = load("inputs")
    arrays = {k: np.array(v, np.float32) for k, v in given.items() if isinstance(v, list)}
    return types.SimpleNamespace(**arrays | {"mask": arrays["mask"] > 0})
