"""Cutting out dead units and heads changes nothing but the sizes."""

import jax
import numpy as np
import pytest

from proxlm import lm
from tests.arrays import normal

CONFIG = lm.ModelConfig(
    vocab_size=11,
    num_layers=3,
    width=12,
    num_heads=6,
    num_kv_heads=3,
    head_width=4,
    hidden_width=10,
    max_length=16,
    qkv_bias=True,
    qk_norm="head",
    value_head=True,
)
TOKENS = np.random.default_rng(5).integers(0, 11, (2, 9))


def drawn(config):
    """Parameters none of which is zero, biases and the value head included."""
    like = jax.eval_shape(lambda: lm.init(jax.random.key(0), config))
    leaves, structure = jax.tree.flatten(like)
    drawn = [0.5 + np.asarray(normal(i, leaf.shape)) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def zero(params, path, places):
    """Sets places of a leaf below blocks to zero."""
    *parents, name = path.split("/")
    node = params["blocks"]
    for parent in parents:
        node = node[parent]
    node[name] = node[name].copy()
    node[name][places] = 0.0


apply = jax.jit(lm.apply, static_argnames="config")


def same_function(params, config, smaller, small):
    before, after = apply(params, TOKENS, config=config), apply(smaller, TOKENS, config=small)
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_model_without_zeros_keeps_its_bits_and_its_config():
    params = drawn(CONFIG)
    smaller, small = lm.shrink(params, CONFIG)
    assert small == CONFIG
    jax.tree.map(np.testing.assert_array_equal, smaller, params)
    assert all(part.all() for part in lm.live_units(params, CONFIG))


@pytest.mark.parametrize(
    ("path", "places"),
    [
        ("mlp/down/kernel", np.s_[:, 4:]),
        ("mlp/gate_up/kernel", np.s_[:, :, 0, 4:]),
        ("mlp/gate_up/kernel", np.s_[:, :, 1, 4:]),
    ],
)
def test_a_unit_is_dead_when_its_gate_its_input_or_its_output_is_zero(path, places):
    params = drawn(CONFIG)
    zero(params, path, places)
    smaller, small = lm.shrink(params, CONFIG)
    assert small.hidden_width == 4
    assert smaller["blocks"]["mlp"]["gate_up"]["kernel"].shape == (3, 12, 2, 4)
    same_function(params, CONFIG, smaller, small)


def test_layers_of_different_need_keep_what_the_neediest_has():
    params = drawn(CONFIG)
    zero(params, "mlp/down/kernel", np.s_[0, 1:])
    zero(params, "mlp/down/kernel", np.s_[1, ::2])
    zero(params, "mlp/down/kernel", np.s_[2])
    assert lm.live_units(params, CONFIG).hidden.sum(axis=1).tolist() == [1, 5, 0]
    smaller, small = lm.shrink(params, CONFIG)
    assert small.hidden_width == 5
    np.testing.assert_array_equal(
        smaller["blocks"]["mlp"]["down"]["kernel"][1], params["blocks"]["mlp"]["down"]["kernel"][1, 1::2]
    )
    same_function(params, CONFIG, smaller, small)


def test_heads_of_a_group_go_alone_and_a_group_goes_when_all_its_heads_are_dead():
    params = drawn(CONFIG)
    # Layer 0: groups of heads (0, 1), (2, 3), (4, 5); the second is dead, and one of each other.
    zero(params, "attention/out/kernel", (0, np.array([1, 2, 3, 4])))
    # Layer 1: the values of the last two key-value heads are zero.
    zero(params, "attention/qkv/kernel", np.s_[1, :, -2:])
    zero(params, "attention/qkv/bias", np.s_[1, -2:])
    zero(params, "attention/out/kernel", (1, 0))
    zero(params, "attention/out/kernel", np.s_[2])
    assert lm.live_units(params, CONFIG).heads.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0, 0],
        [0] * 6,
    ]
    smaller, small = lm.shrink(params, CONFIG)
    assert (small.num_heads, small.num_kv_heads, small.head_width) == (2, 2, 4)
    same_function(params, CONFIG, smaller, small)


def test_values_that_are_only_a_bias_keep_a_head_alive():
    params = drawn(CONFIG)
    zero(params, "attention/qkv/kernel", np.s_[:, :, -3:])
    assert lm.live_units(params, CONFIG).heads.all()
    zero(params, "attention/qkv/bias", np.s_[:, -3:])
    assert not lm.live_units(params, CONFIG).heads.any()


def test_zero_queries_and_keys_do_not_make_a_head_dead():
    params = drawn(CONFIG)
    zero(params, "attention/qkv/kernel", np.s_[:, :, :9])
    zero(params, "attention/qkv/bias", np.s_[:, :9])
    assert lm.live_units(params, CONFIG).heads.all()


def test_one_unit_and_one_head_stay_where_nothing_is_used():
    params = drawn(CONFIG)
    zero(params, "mlp/down/kernel", np.s_[:])
    zero(params, "attention/out/kernel", np.s_[:])
    smaller, small = lm.shrink(params, CONFIG)
    assert (small.hidden_width, small.num_heads, small.num_kv_heads) == (1, 1, 1)
    same_function(params, CONFIG, smaller, small)


@pytest.mark.slow
def test_the_smaller_model_samples_the_same_text():
    params = drawn(CONFIG)
    zero(params, "mlp/down/kernel", np.s_[:, 3:])
    zero(params, "attention/out/kernel", np.s_[:, 2:])
    smaller, small = lm.shrink(params, CONFIG)
    assert lm.num_params(small) < lm.num_params(CONFIG)
    draw = jax.jit(lm.sample, static_argnames=("config", "num_tokens"))
    before = draw(jax.random.key(1), params, TOKENS[:, :3], config=CONFIG, num_tokens=6)
    after = draw(jax.random.key(1), smaller, TOKENS[:, :3], config=small, num_tokens=6)
    np.testing.assert_array_equal(before.tokens, after.tokens)


def test_what_cannot_be_shrunk_is_refused():
    params = drawn(CONFIG)
    with pytest.raises(ValueError, match=r"must be known arrays, got .*outside of jit"):
        jax.jit(lambda p: lm.shrink(p, CONFIG)[0])(params)
    unstacked = {**params, "blocks": lm.unstack(params["blocks"])}
    with pytest.raises(ValueError, match=r"Use lm\.stack"):
        lm.shrink(unstacked, CONFIG)
    other = lm.ModelConfig(vocab_size=11, num_layers=3, width=12, num_heads=6)
    with pytest.raises(ValueError, match=r"params: .* by the config, got .* were made with"):
        lm.live_units(params, other)
