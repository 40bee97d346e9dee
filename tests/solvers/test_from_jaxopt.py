"""The rows of the guide from jaxopt: both columns give the number beside them."""

import importlib.util
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties, solvers

GUIDE = pathlib.Path(__file__).parents[2] / ".github" / "FROM_JAXOPT.md"
ROWS = re.findall(r"^\| `(.+?)` \| `(.+?)` \| `(.+?)` \|$", GUIDE.read_text("utf-8"), re.MULTILINE)
X = jnp.array([3.0, -0.5, 1.0])
NAMES = {
    "jnp": jnp,
    "penalties": penalties,
    "solvers": solvers,
    "x": X,
    "m": jnp.array([[1.0, 2.0], [0.5, -1.0]]),
    "ones": jnp.ones(3),
    "half": jnp.array([0.5, 0.5]),
    "fun": lambda w: 0.5 * jnp.sum((w - X) ** 2),
    "data": lambda w, y: 0.5 * jnp.sum((w - y) ** 2),
}


def mark(ours):
    costs = "solvers." in ours or "transport" in ours or "polyhedron" in ours or "birkhoff" in ours
    return pytest.param(ours, marks=[pytest.mark.slow] if costs else [])


def test_the_guide_has_its_rows():
    assert len(ROWS) == 36


@pytest.mark.parametrize("ours", [mark(row[1]) for row in ROWS])
def test_a_row_gives_its_number(ours):
    (expected,) = {row[2] for row in ROWS if row[1] == ours}
    np.testing.assert_allclose(eval(ours, dict(NAMES)), eval(expected), atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jaxopt") is None, reason="jaxopt is not installed")
@pytest.mark.parametrize("theirs, expected", [(row[0], row[2]) for row in ROWS])
def test_jaxopt_gives_the_same(theirs, expected):
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        import jaxopt
        from jaxopt import projection, prox

        names = NAMES | {"jaxopt": jaxopt, "projection": projection, "prox": prox}
        np.testing.assert_allclose(eval(theirs, names), eval(expected), atol=1e-2)
