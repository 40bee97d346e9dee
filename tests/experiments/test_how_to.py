"""The scripts of a page each: short, and what they teach is learnt."""

import importlib
import pathlib

import numpy as np
import pytest

from experiments import how_to

SCRIPTS = {path.stem: path for path in pathlib.Path(how_to.__file__).parent.glob("[a-z]*.py")}
LENGTHS = {"cartpole": 100, "nemos_solver": 85}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_is_a_page_and_imports(name):
    assert len(SCRIPTS[name].read_text("utf-8").splitlines()) < LENGTHS.get(name, 40)
    if name == "nemos_solver":
        pytest.importorskip("nemos")
    assert callable(importlib.import_module(f"experiments.how_to.{name}").main)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx_model", "equinox_model", "haiku_model", "plain_jax"])
def test_the_prompt_is_said_again(name):
    rewards = importlib.import_module(f"experiments.how_to.{name}").main()
    assert rewards[:3].mean() < 0.3 and rewards[-5:].mean() > 0.8


@pytest.mark.slow
def test_the_pole_is_balanced():
    returns = importlib.import_module("experiments.how_to.cartpole").main()
    assert returns[0] < 50 and returns[-10:].mean() >= 195


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nemos_models_are_fitted_as_by_its_own_solver():
    pytest.importorskip("nemos")
    main = importlib.import_module("experiments.how_to.nemos_solver").main
    np.testing.assert_allclose(main(), main("optimistix"), atol=1e-4)
