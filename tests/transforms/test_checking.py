"""A verdict on optimizers: those that keep exact zeros, and those known to lose them."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from proxlm import penalties, transforms
from proxlm.penalties.groups import grouping

RATE = 1e-3
PARAMS = {"w": jnp.ones((6, 4)), "b": jnp.ones(4)}
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
ADAM, SGD = optax.adam(RATE), optax.sgd(RATE)
PROX = transforms.apply_prox(penalties.l1(0.01), RATE)
ROUND = optax.stateless(lambda u, _: jax.tree.map(lambda x: x.astype(jnp.bfloat16), u))
WARM = optax.linear_schedule(0.0, RATE, 1000)
MOVING_MEAN = optax.GradientTransformation(
    lambda params: (params, params),
    lambda u, means, params: (
        u,
        (jax.tree.map(lambda m, p, u: 0.9 * m + 0.1 * (p + u), means[0], params, u), means[1]),
    ),
)

KEEP = {
    "sgd": optax.chain(SGD, PROX),
    "momentum": optax.chain(optax.sgd(RATE, 0.9), PROX),
    "adam": optax.chain(ADAM, PROX),
    "a warm-up": optax.chain(optax.adam(WARM), transforms.apply_prox(penalties.group_lasso(1e-3), WARM)),
    "every fourth": optax.chain(SGD, transforms.apply_prox(penalties.l1(0.01), RATE, every=4)),
    "a ramp": optax.chain(ADAM, transforms.prune_to(transforms.cubic_sparsity(0.5, 0, 6))),
    "groups": optax.chain(ADAM, transforms.prune_to(0.5, grouping.axes(0), every=3)),
    "debiased": optax.chain(ADAM, transforms.debias(PROX, 8)),
    "frozen": optax.chain(ADAM, PROX, transforms.freeze_zeros(8)),
    "guarded": transforms.skip_on_kl(optax.chain(ADAM, PROX), 0.1),
}
LOSE = {
    "a learning rate": (optax.chain(optax.scale_by_adam(), PROX, optax.scale(-RATE)), "link 2 of"),
    "decay": (optax.chain(ADAM, PROX, optax.add_decayed_weights(-1e-4)), "link 2 of 3"),
    "noise": (optax.chain(ADAM, PROX, optax.add_noise(1e-9, 0.5, 0)), "link 2 of 3"),
    "momentum": (optax.chain(SGD, PROX, optax.trace(0.9)), "zeros come .* and go"),
    "nested": (optax.chain(optax.chain(SGD, PROX), optax.scale(0.5)), "link 1 of 2"),
    "rounding": (optax.chain(ADAM, PROX, ROUND), "bfloat16, which rounds away the zeros"),
    "mechanize": (optax.contrib.mechanize(optax.chain(SGD, PROX)), "mechanize scales"),
    "schedule-free": (optax.contrib.schedule_free(optax.chain(SGD, PROX), RATE), "schedule_free"),
    "no prox": (ADAM, "no zeros"),
}


# Alike to others: tried among the slow proofs.
ALIKE = ("sgd", "momentum", "every fourth", "a ramp", "frozen")
marks = lambda name: [pytest.mark.slow] if name in ALIKE else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in KEEP])
def test_zeros_survive(name):
    verdict = transforms.check(KEEP[name], PARAMS)
    assert verdict.passed and verdict.kept > 0.4, verdict
    assert str(verdict).startswith("zeros survive: ")
    assert verdict.remarks == verdict.harms == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSE)
def test_zeros_are_lost_and_the_verdict_says_by_what(name):
    tx, words = LOSE[name]
    verdict = transforms.check(tx, PARAMS)
    assert not verdict.passed
    assert re.search(words, str(verdict)), verdict


@pytest.mark.parametrize("name", ["adam", pytest.param("groups", marks=pytest.mark.slow)])
def test_zeros_survive_in_bfloat16(name):
    assert transforms.check(KEEP[name], HALF).kept > 0.4


def test_zeros_by_chance_are_none():
    assert not transforms.check(ADAM, HALF).passed


def test_a_mean_of_params_is_seen_through_a_view():
    tx = optax.chain(SGD, PROX, MOVING_MEAN)
    assert transforms.check(tx, PARAMS).passed
    assert not transforms.check(tx, PARAMS, view=lambda state, params: state[2][0]).passed


def test_a_learning_rate_that_finds_itself_is_remarked_on():
    tx = optax.chain(SGD, PROX, optax.contrib.reduce_on_plateau())
    verdict = transforms.check(tx, PARAMS, value=0.0)
    assert verdict.passed
    assert "ReduceLROnPlateauState: what sets the learning rate" in str(verdict)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"optimizer must be an optax.GradientTransformation"):
        transforms.check(penalties.l1(1.0), PARAMS)
    with pytest.raises(ValueError, match=r"steps must be an integer ≥ 4, got 2"):
        transforms.check(KEEP["sgd"], PARAMS, steps=2)
    with pytest.raises(ValueError, match=r"params have no weights"):
        transforms.check(KEEP["sgd"], {})
    with pytest.raises(ValueError, match=r"x at step must be .*int32"):
        transforms.check(KEEP["sgd"], {"step": jnp.array(3)})
