"""The scripts of a page each: short, and what they teach is learnt."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import how_to
from experiments.support.models import pretrained
from proxlm import lm

SCRIPTS = {path.stem: path for path in pathlib.Path(how_to.__file__).parent.glob("[a-z]*.py")}
LENGTHS = {"cartpole": 100, "nemos_solver": 85, "calculator": 67}
SUMS = [(f"{i} + {j} =", f" {i + j}") for i in range(3) for j in range(3)]


def script(name):
    return importlib.import_module(f"experiments.how_to.{name}").main


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_is_a_page_and_imports(name):
    assert len(SCRIPTS[name].read_text("utf-8").splitlines()) < LENGTHS.get(name, 40)
    if name in (peer := {"nemos_solver": "nemos", "haiku_model": "haiku"}):
        pytest.importorskip(peer[name])
    assert callable(script(name)) and how_to.__doc__ and f"`{name}`" in how_to.__doc__


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of sums, and lines that any of the scripts reads."""
    place = tmp_path_factory.mktemp("folder")
    row = lambda ask, answer: {"question": ask, "prompt": ask, "answer": answer.strip(), "response": answer}
    lines = [json.dumps(row(*pair)) for pair in SUMS]
    (place / "data.jsonl").write_text("\n".join(lines), "utf-8")
    lm.save(place / "model", pretrained.load("untrained", place, ["".join(pair) for pair in SUMS], 64))
    return place


@pytest.mark.slow
def test_a_folder_is_fine_tuned(folder):
    losses = script("finetune_folder")(folder / "model", folder / "data.jsonl", folder / "tuned", steps=20)
    assert losses[-1] < losses[0]
    assert lm.load(folder / "tuned").config == lm.load(folder / "model").config


@pytest.mark.slow
def test_a_folder_is_reinforced(folder):
    rewards = list(script("grpo_folder")(folder / "model", folder / "data.jsonl", folder / "reinforced", 2))
    assert len(rewards) == 2 and 0 <= min(rewards) <= max(rewards) <= 1
    assert lm.load(folder / "reinforced").config == lm.load(folder / "model").config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx_heads", "equinox_heads"])
def test_superfluous_heads_are_removed_whole(name):
    norms = script(name)()
    assert 2 <= np.sum(norms > 0) <= 4 and np.sum(norms == 0) >= 4


@pytest.mark.slow
def test_strengths_and_seeds_are_swept_at_once():
    zeros, errors = script("sweep")()
    assert zeros.shape == errors.shape == (5, 8)
    assert np.all(zeros[0] == 0) and np.all(np.diff(zeros.mean(axis=1)) > 0)
    assert errors.mean(axis=1).argmin() in (2, 3)


@pytest.mark.slow
def test_a_loop_of_ones_own_runs_on_a_mesh():
    losses, spec = script("several_devices")("fsdp=1", steps=10)
    assert losses[-1] < 0.7 * losses[0] and spec is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*_FBS_VERSION:DeprecationWarning")
def test_a_smaller_model_is_exported_with_any_batch(tmp_path):
    pytest.importorskip("flatbuffers")
    before, after = script("prune_and_export")(tmp_path)
    model = lm.load(tmp_path / "model")
    assert after < before and model.config.hidden_width == after
    program = jax.export.deserialize(bytearray((tmp_path / "program.bin").read_bytes()))
    for shape in ((3, 5), (2, 9)):
        tokens = jnp.full(shape, 3, jnp.int32)
        expected = lm.apply(model.params, tokens, model.config)
        np.testing.assert_allclose(program.call(tokens), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx_model", "equinox_model", "haiku_model", "plain_jax"])
def test_the_prompt_is_said_again(name):
    rewards = script(name)()
    assert rewards[:3].mean() < 0.3 and rewards[-5:].mean() > 0.8


@pytest.mark.slow
def test_a_calculator_is_called_and_its_answer_copied():
    asks, guesses = script("calculator")(seeds=1), script("calculator")(has_tool=False, seeds=1)
    assert asks[0, 1] > max(0.9, asks[0, 0]) and guesses.max() < 0.1  # after, before; and without


@pytest.mark.slow
def test_the_pole_is_balanced():
    returns = script("cartpole")()
    assert returns[0] < 50 and returns[-10:].mean() >= 195


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nemos_models_are_fitted_as_by_its_own_solver():
    pytest.importorskip("nemos")
    main = script("nemos_solver")
    np.testing.assert_allclose(main(), main("optimistix"), atol=1e-4)
