"""Matrix products of float32 keep its bits on accelerators, whose default rounds the factors."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from proxlm import lm, penalties, solvers, transforms
from tests import arrays

MODEL = lm.ModelConfig(16, num_layers=2, width=8, num_heads=2, max_length=8, value_head=True)


def precisions(fn, *args):
    """Of every matrix product in `fn`, where JAX's default is the lowest."""
    with jax.default_matmul_precision("bfloat16"):
        text = str(jax.make_jaxpr(fn)(*args))
    return re.findall(r"dot_general\[.*?precision=(None|\(.*?\)|\w+)", text, flags=re.DOTALL)


def scored(config):
    return lambda params, tokens: lm.score(params, tokens, config).log_probs.sum()


def descended(rule):
    target = jnp.arange(4.0)
    loss = lambda x: jnp.sum(jnp.square(x - target))
    return lambda x: solvers.proximal_gradient(loss, x, penalties.l1(0.1), rule=rule).params


def programs():
    params, tokens = arrays.rough(MODEL, 0.1), jnp.zeros((3, 8), int)
    sample = functools.partial(lm.sample, config=MODEL, num_tokens=4)
    yield "score", jax.grad(scored(MODEL)), (params, tokens)
    yield "sample", sample, (jax.random.key(0), params, tokens[:, :4])
    yield "inspect", functools.partial(lm.inspect, config=MODEL), (params, tokens)
    for method in ("svd", "qr", "gram"):
        nuclear = penalties.nuclear(1.0, method=method)
        yield f"nuclear {method}", nuclear.prox, (jnp.ones((5, 3)), 1.0)
    for rule in (solvers.barzilai_borwein, solvers.anderson):
        yield rule.__name__, descended(rule()), (jnp.zeros(4),)
    tx = transforms.proximal_adam(1e-2, penalties.l1(1.0), floor=1e-2)
    x = jnp.ones((5, 3))
    yield "metric", lambda x: tx.update(x, tx.init(x), x), (x,)


def test_the_library_says_how_it_multiplies():
    for name, fn, args in programs():
        found = precisions(fn, *args)
        assert found, name
        assert set(found) == {"(Precision.HIGHEST, Precision.HIGHEST)"}, name


def test_a_model_may_leave_it_to_jax_or_say_another():
    args = lm.init(jax.random.key(0), MODEL), jnp.zeros((3, 8), int)
    of = lambda name: dataclasses.replace(MODEL, matmul_precision=name)
    assert set(precisions(scored(of(None)), *args)) == {"(Precision.DEFAULT, Precision.DEFAULT)"}
    assert set(precisions(scored(of("high")), *args)) == {"(Precision.HIGH, Precision.HIGH)"}
    with pytest.raises(ValueError, match="matmul_precision must be one of None, 'default'"):
        of("exact")
