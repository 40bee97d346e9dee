"""Arguments that most functions of the model share: token ids, masks, parameters of another config."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from tests import arrays

CONFIG = lm.ModelConfig(vocab_size=11, num_layers=2, width=8, num_heads=2, max_length=12)
PARAMS = arrays.rough(CONFIG, scale=0.35)
TOKENS = np.array([[3, 1, 4, 1], [5, 9, 2, 6]])

apply = jax.jit(lm.apply, static_argnames="config")
score = jax.jit(lm.score, static_argnames="config")


@pytest.mark.parametrize("outside", [-1, -100, 11, 99])
def test_known_ids_outside_of_the_vocabulary_are_refused(outside):
    tokens = TOKENS.copy()
    tokens[1, 2] = outside
    message = f"tokens must be ids from 0 to 10, the vocabulary of the config, got {outside}"
    for fn in (lm.apply, lm.encode, lm.hidden_states, lm.score, lm.inspect):
        with pytest.raises(ValueError, match=message):
            fn(PARAMS, tokens, CONFIG)


@pytest.mark.parametrize("outside", [-1, -100, 11, 99])
def test_traced_ids_outside_of_the_vocabulary_give_nan_in_their_row(outside):
    tokens = TOKENS.copy()
    tokens[1, 2] = outside
    logits = apply(PARAMS, tokens, CONFIG)
    assert np.isnan(logits[1]).all()
    np.testing.assert_array_equal(logits[0], apply(PARAMS, TOKENS, CONFIG)[0])
    log_probs = score(PARAMS, tokens, CONFIG).log_probs
    assert np.isnan(log_probs[1]).all() and np.isfinite(log_probs[0]).all()


def test_what_is_masked_out_is_never_read():
    mask = np.array([[True] * 4, [True, True, False, False]])
    tokens = np.where(mask, TOKENS, -100)
    known = lambda tokens: jax.jit(lambda params: lm.apply(params, tokens, CONFIG, mask=mask))(PARAMS)
    traced = lambda tokens: apply(PARAMS, tokens, CONFIG, mask=mask)
    for logits_of in (known, traced):
        logits = np.asarray(logits_of(tokens))
        np.testing.assert_allclose(logits[mask], np.asarray(logits_of(TOKENS))[mask], atol=1e-6)
        assert np.isfinite(logits).all()
    log_probs = lambda params: lm.score(params, tokens, CONFIG, mask=mask).log_probs
    total = lambda params: jnp.sum(jnp.where(mask[:, 1:], log_probs(params), 0.0))
    value, gradient = jax.jit(jax.value_and_grad(total))(PARAMS)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_lists_are_taken_as_arrays():
    np.testing.assert_allclose(lm.apply(PARAMS, TOKENS.tolist(), CONFIG), apply(PARAMS, TOKENS, CONFIG), 1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[0], r"tokens\.shape must be \[B, T\] .* got \(4,\)\. One sequence is tokens\[None\]"),
        (TOKENS[:0], r"tokens\.shape must be \[B, T\] with B, T ≥ 1, got .* Leave empty batches out"),
        (TOKENS.astype(np.float32), r"tokens\.dtype must be an integer one, got dtype\('float32'\)"),
        ([[1, 2], [3]], r"tokens must be integers \[B, T\], got rows of several lengths"),
    ],
)
def test_what_is_no_batch_of_tokens_is_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        lm.apply(PARAMS, tokens, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 1}, r"params: blocks/.* must be \(1, .*\), by the config, got \(2, "),
        ({"num_layers": 3}, r"must be \(3, .*\), by the config, got \(2, .* were made with"),
        ({"vocab_size": 12}, r"params: embedding/kernel must be \(12, 8\)"),
        ({"tie_embeddings": False}, r"params: head/kernel must be \(11, 8\), by the config, got nothing"),
        ({"qkv_bias": True}, r"params: blocks/attention/qkv/bias must be .* got nothing"),
        ({"norm_place": "after"}, r"params: blocks/attention_(post_)?norm/scale must be"),
    ],
)
def test_parameters_of_another_config_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        lm.apply(PARAMS, TOKENS, dataclasses.replace(CONFIG, **change))


def test_parameters_that_a_config_does_not_have_are_refused():
    untied = arrays.rough(dataclasses.replace(CONFIG, tie_embeddings=False), scale=0.35)
    with pytest.raises(ValueError, match=r"head/kernel must be not there, by the config, got \(11, 8\)"):
        lm.apply(untied, TOKENS, CONFIG)
    with pytest.raises(ValueError, match=r"params must be the parameters of lm.init, .*params\['policy'\]"):
        lm.apply({"policy": PARAMS}, TOKENS, CONFIG)
    # a value head that is not asked for does not matter
    valued = arrays.rough(dataclasses.replace(CONFIG, value_head=True), scale=0.35)
    jax.eval_shape(lambda: lm.encode(valued, TOKENS, CONFIG))


def test_the_model_and_its_gradient_take_arrays_over_explicit_axes():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    place = lambda x: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P("data")))
    squares = jax.jit(jax.value_and_grad(lambda params, tokens: jnp.sum(apply(params, tokens, CONFIG) ** 2)))
    value, grads = squares(PARAMS, TOKENS)
    for params, tokens in ((PARAMS, place(TOKENS)), (jax.tree.map(place, PARAMS), TOKENS)):
        logits = jax.eval_shape(functools.partial(apply, config=CONFIG), params, tokens)
        assert logits.sharding.spec[0] == ("data" if tokens is not TOKENS else None)
        shardings = lambda tree: [x.sharding for x in jax.tree.leaves(tree)]
        _, found = jax.eval_shape(squares, params, tokens)
        assert shardings(found) == shardings(jax.eval_shape(lambda x: x, params))
    found, found_grads = squares(params, tokens)
    np.testing.assert_allclose(value, found, rtol=1e-6)
    chex.assert_trees_all_close(grads, found_grads, rtol=1e-5, atol=1e-5)


def test_parameters_of_numpy_are_closed_over_inside_jit():
    config = lm.ModelConfig(5, num_layers=1, width=4, num_heads=1)
    params = jax.tree.map(np.asarray, lm.init(jax.random.key(0), config))
    calls = (
        lambda tokens: lm.apply(params, tokens, config),
        lambda tokens: lm.score(params, tokens, config),
        lambda tokens: lm.sample(jax.random.key(0), params, tokens, config, 2),
    )
    for call in calls:
        assert jax.eval_shape(call, jnp.zeros((1, 3), int)) is not None
