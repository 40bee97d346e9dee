"""The language model's loss and optimizer against numbers computed another way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.support.models import language_model
from proxlm import lm
from tests import arrays
from tests.arrays import normal

MODEL = lm.ModelConfig(vocab_size=11, num_layers=2, width=8, num_heads=2, max_length=16)
apply = jax.jit(lm.apply, static_argnames="config")
loss_of = jax.jit(language_model.loss, static_argnames="config")


def params_of(config, scale=20.0):
    """Far from uniform: the embeddings of `lm.init` are small."""
    params = arrays.rough(config, 0.02)
    return params | {"embedding": {"kernel": scale * params["embedding"]["kernel"]}}


def windows(count, length=6):
    return np.random.default_rng(0).integers(0, 11, (count, length + 1), dtype=np.int32)


def test_loss_is_the_mean_of_minus_log_p():
    params, rows = params_of(MODEL), windows(3)
    log_p = np.asarray(apply(params, rows[:, :-1], MODEL), float)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    picked = [log_p[b, t, rows[b, t + 1]] for b in range(3) for t in range(6)]
    loss = loss_of(params, rows, config=MODEL)
    assert loss == pytest.approx(-np.mean(picked), rel=1e-5)
    assert loss > np.log(11) + 0.1


@pytest.mark.parametrize("vocab_size", [2])
def test_a_uniform_model_scores_the_log_of_its_vocabulary(vocab_size):
    config = dataclasses.replace(MODEL, vocab_size=vocab_size)
    loss = loss_of(params_of(config, 0.0), windows(2) % vocab_size, config)
    assert loss == pytest.approx(np.log(vocab_size), rel=1e-6)


def test_evaluation_is_the_loss_over_the_whole_batches():
    params, rows = params_of(MODEL), windows(7)
    numbers = language_model.make_evaluate(rows, MODEL, batch=3)(params)
    expected = float(loss_of(params, rows[:6], MODEL))
    assert numbers["held_out_loss"] == pytest.approx(expected, rel=1e-5)
    assert numbers["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)
    assert loss_of(params, rows[1:], MODEL) != pytest.approx(expected, rel=1e-3)


def test_evaluation_on_less_than_a_batch_takes_all_there_is():
    params, rows = params_of(MODEL), windows(2)
    numbers = language_model.make_evaluate(rows, MODEL)(params)
    expected = float(loss_of(params, rows, MODEL))
    assert numbers["held_out_loss"] == pytest.approx(expected, rel=1e-5)


def updates_of(rate, config=MODEL):
    """The update that a transformation makes of one gradient of normal numbers."""
    params = params_of(config)
    leaves, structure = jax.tree.flatten(params)
    grads = [normal(i, leaf.shape) for i, leaf in enumerate(leaves)]
    return update(jax.tree.unflatten(structure, grads), params, rate), params


@jax.jit
def update(grads, params, rate):
    optimizer = language_model.muon(rate, 1e-3)
    return optimizer.update(grads, optimizer.init(params), params)[0]


# Each kernel of a layer as the matrix that Muon should see.
SHAPES = {
    ("attention", "qkv"): (8, 24),
    ("attention", "out"): (8, 8),
    ("mlp", "gate_up"): (8, 48),
    ("mlp", "down"): (24, 8),
}


@pytest.mark.parametrize("name", SHAPES)
def test_muon_makes_every_kernel_of_a_block_nearly_orthogonal(name):
    # Weight decay is taken out; Newton and Schulz leave singular values between 0.7 and 1.2.
    updates, params = updates_of(1.0)
    for layer in range(MODEL.num_layers):
        part = lambda tree, layer=layer: tree["blocks"][name[0]][name[1]]["kernel"][layer]
        matrix = np.asarray(part(updates) + 0.01 * part(params)).reshape(SHAPES[name])
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert singular.max() < 2 * singular.min()


# Adam's first step at rate 1e-3 has the size of the rate; Nesterov's momentum looks one ahead.
FIRST = 1e-3 * (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9))


def test_muon_leaves_embeddings_and_norms_to_adam():
    updates, _ = updates_of(1.0)
    other, _ = updates_of(2.0)
    rest = lambda tree: [
        tree["embedding"]["kernel"],
        tree["norm"]["scale"],
        tree["blocks"]["mlp_norm"]["scale"],
    ]
    for update, again in zip(rest(updates), rest(other), strict=True):
        np.testing.assert_allclose(np.abs(update), FIRST, rtol=1e-3)
        np.testing.assert_array_equal(update, again)


def test_muon_leaves_the_bias_of_a_kernel_to_adam():
    config = dataclasses.replace(MODEL, qkv_bias=True)
    (updates, _), (other, _) = (updates_of(rate, config) for rate in (1.0, 2.0))
    bias = lambda tree: tree["blocks"]["attention"]["qkv"]["bias"]
    np.testing.assert_array_equal(bias(updates), bias(other))
    np.testing.assert_allclose(np.abs(bias(updates)), FIRST, rtol=1e-3)


def test_the_ramp_rises_to_its_peak_and_falls_to_zero():
    rate = language_model.ramp(0.02, 200)
    assert rate(0) == 0.0
    assert rate(5) == pytest.approx(0.01, rel=1e-5)
    assert rate(10) == pytest.approx(0.02, rel=1e-5)
    # Half of the way down the cosine.
    assert rate(105) == pytest.approx(0.01, rel=1e-5)
    assert rate(200) == pytest.approx(0.0, abs=1e-8)


def test_the_shortest_ramp_warms_up_for_one_step():
    assert language_model.ramp(0.02, 2)(1) == pytest.approx(0.02)


def test_muon_learns_a_sequence_by_heart():
    optimizer = language_model.muon(0.02, 0.01)
    params = lm.init(jax.random.key(0), MODEL)
    rows = windows(4)

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(language_model.loss)(params, rows, MODEL)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    advance = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=80)[1])
    losses = advance(params)
    assert losses[0] == pytest.approx(np.log(11), rel=0.02)
    assert losses[-1] < 0.7
    assert jnp.isfinite(losses).all()
