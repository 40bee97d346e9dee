"""The benchmark of proximal operators: all of them right, and every table written."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import clock, operators, prox

QUICK = clock.Settings("wall", repeats=1, seconds=0.0)
TOY = operators.Job(96, group=8, row=12, matrices=((6, 4),), strengths=2, swept_entries=200)


@pytest.mark.parametrize("name", operators.operators(TOY))
def test_all_who_compute_an_operator_agree_with_its_reference(name):
    operator = operators.operators(TOY)[name]()
    scale = np.abs(operator.right).max()
    assert scale > 0
    assert np.any(np.abs(operator.right - operator.x) > 0.01 * scale)
    for call in operator.calls.values():
        np.testing.assert_allclose(call(), operator.right, atol=1e-5 * scale)


def test_a_donated_call_goes_on_from_its_last_result():
    call = operators.donated(lambda x: x + 1.0, np.zeros(3, np.float32))
    call()
    np.testing.assert_array_equal(call(), [2.0, 2.0, 2.0])


def test_peers_that_are_not_installed_are_left_out():
    found = operators.installed(
        nobody_has_this=lambda of: 1 / 0, math=lambda of: lambda: of("math").floor(2.5)
    )
    assert {name: call() for name, call in found.items()} == {"math": 2}


def test_a_peer_that_fails_is_named_below_the_table():
    x = np.ones(4, np.float32)
    fails = lambda: jnp.ones(2) + jnp.ones(3)
    operator = operators.Operator(x, {"ours": lambda: 1.5 * x, "copt": fails}, x)
    rows, problems = prox.measure("identity", operator, QUICK)
    assert [row[1] for row in rows] == ["copy", "ours"]
    assert rows[1][-1] == "5e-01"
    assert len(problems) == 1
    with pytest.raises(TypeError):
        prox.measure("identity", operator._replace(calls={"ours": fails}), QUICK)
    assert problems[0].startswith("identity: copt fails with TypeError")


@pytest.mark.slow
def test_every_operator_and_sweep_has_its_lines():
    text = "\n".join(prox.compare({"toy": TOY}, QUICK))
    assert text.count("  copy  ") == len(operators.operators(TOY))
    assert text.count("optax") == 3
    for name in (*operators.operators(TOY), *prox.SWEPT, "2 calls, ms"):
        assert name in text
