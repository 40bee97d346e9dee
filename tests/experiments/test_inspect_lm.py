"""Statements on heads, tried on attention made by hand; and the penalty that removes heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import inspect_lm
from experiments.support.inspect_lm import report
from experiments.support.run import runs
from proxlm import lm
from tests import arrays
from tests.experiments.starting import start

CONFIG = inspect_lm.Config(num_layers=2, num_heads=2, width=8, hidden_width=6, steps=10)
MODEL = lm.ModelConfig(vocab_size=5, num_layers=2, width=8, num_heads=2, hidden_width=6)


def test_habits_tell_where_attention_falls():
    """Four heads that each look at one place, in a text whose second half repeats the first."""
    tokens = np.array([[3, 1, 4, 2, 3, 1, 4, 2]])
    looks_at = {
        "itself": lambda t: t,
        "before": lambda t: max(t - 1, 0),
        "first": lambda t: 0,
        "copy": lambda t: max(t - 4, 0),
        "after": lambda t: max(t - 3, 0),
    }
    attention = np.zeros((1, 5, 8, 8))
    for head, place in enumerate(looks_at.values()):
        attention[0, head, range(8), [place(t) for t in range(8)]] = 1.0
    shares = report.habits(jnp.asarray(attention), tokens)
    expected = np.eye(5)
    expected[2, 3] = expected[3, 2] = 0.25  # at the query 4 the first token is its copy
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_without_a_head_the_others_stay():
    params = arrays.rough(MODEL, scale=0.5)
    found = lm.live_units(report.without_head(params, 1, 0), MODEL)
    assert found.heads.tolist() == [[True, True], [False, True]]
    assert found.hidden.all()


def test_the_penalty_removes_small_neurons_and_heads_alone():
    params = jax.tree.map(np.sign, arrays.rough(MODEL, scale=0.5))
    blocks = params["blocks"]
    for name, places in {"qkv": np.s_[1, :, 1::2], "out": np.s_[1, 1]}.items():
        blocks["attention"][name]["kernel"][places] *= 0.01
    for name, places in {"gate_up": np.s_[0, :, :, 3], "down": np.s_[0, 3]}.items():
        blocks["mlp"][name]["kernel"][places] *= 0.01
    sizes = report.head_sizes(params)
    np.testing.assert_allclose(sizes, [[1.0, 1.0], [1.0, 0.01]], rtol=1e-5)
    lane = inspect_lm.Lane(jnp.array(1.0), jnp.array(0.5), jnp.array(0.5))
    after = jax.jit(inspect_lm.group_penalty(lane, 25.0, CONFIG).prox)(params, 1.0)
    found = lm.live_units(after, MODEL)
    assert found.heads.astype(int).tolist() == [[1, 1], [1, 0]]
    assert found.hidden.astype(int).tolist() == [[1, 1, 1, 0, 1, 1], [1] * 6]


@pytest.mark.slow
def test_smoke_looks_into_both_models_and_plots_three_times(tmp_path, wheels):
    options = runs.Options(smoke=True, runs=str(tmp_path), data=str(wheels))
    numbers = start(inspect_lm, options=options)
    # untrained but for moments, so about as good as the frequencies of characters
    assert 3.0 < numbers["dense loss"][0] < np.log(90)
    (path,) = tmp_path.glob("inspect-lm/2*")
    for name in ("attention", "lens", "survivors"):
        assert (path / f"{name}.png").stat().st_size > 10_000
    last = numbers["models"]["penalised 0"]
    assert last["by_layer"][-1] == pytest.approx(numbers["penalised loss"][0], rel=1e-3)
