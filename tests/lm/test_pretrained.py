"""Weights of a Llama against its forward pass as GGUF has it, and there and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from proxlm import lm
from proxlm.lm import _layers
from tests import arrays

CONFIG = lm.ModelConfig(
    vocab_size=11,
    num_layers=2,
    width=8,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    hidden_width=12,
    max_length=8,
    rope_theta=50.0,
)
UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False)
TOKENS = np.array([3, 1, 4, 1, 5, 9])


@pytest.fixture(scope="module")
def params():
    return arrays.rough(CONFIG, scale=0.35)


def llama(tensors, tokens, config):
    """Logits [T, V] by the tensors of a GGUF file: W·x, RoPE on neighbours as complex numbers."""
    x = tensors["token_embd.weight"][tokens]
    norm = lambda x, scale: x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * scale
    powers = config.rope_theta ** (-np.arange(0, config.head_width, 2) / config.head_width)
    turn = np.exp(1j * np.arange(len(tokens))[:, None] * powers)[:, None]
    for i in range(config.num_layers):
        part = lambda name, i=i: tensors[f"blk.{i}.{name}.weight"].astype(np.float64)
        normed = norm(x, part("attn_norm"))
        heads = lambda name, n, x=normed, part=part: (x @ part(name).T).reshape(len(x), n, -1)
        rotate = lambda x: ((x[..., ::2] + 1j * x[..., 1::2]) * turn).view(np.float64)
        query = rotate(heads("attn_q", config.num_heads))
        repeat = config.num_heads // config.num_kv_heads
        key = rotate(heads("attn_k", config.num_kv_heads)).repeat(repeat, axis=1)
        value = heads("attn_v", config.num_kv_heads).repeat(repeat, axis=1)
        scores = np.einsum("the,she->hts", query, key) / np.sqrt(config.head_width)
        weights = np.exp(scores) * np.tri(len(x))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hts,she->the", weights, value).reshape(len(x), -1)
        x = x + mixed @ part("attn_output").T
        normed = norm(x, part("ffn_norm"))
        gate = normed @ part("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ part("ffn_up").T)) @ part("ffn_down").T
    return norm(x, tensors["output_norm.weight"]) @ tensors["token_embd.weight"].T


def test_tensors_of_gguf_mean_what_a_llama_makes_of_them(params):
    tensors = lm.pretrained.to_tensors(params, CONFIG, "gguf:llama")
    read = lm.pretrained.from_tensors(tensors, CONFIG, "gguf:llama")
    logits = jax.jit(lm.apply, static_argnames="config")(read, TOKENS[None], config=CONFIG)
    assert np.allclose(logits[0], llama(tensors, TOKENS, CONFIG), atol=2e-5)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("names", ["gguf:llama", "llama"])
def test_there_and_back_is_every_bit(config, names):
    params = arrays.rough(config, scale=0.35)
    tensors = lm.pretrained.to_tensors(params, config, names)
    again = lm.pretrained.from_tensors(tensors, config, names)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(params)))


def test_only_queries_and_keys_are_in_another_order_in_gguf(params):
    own, other = (lm.pretrained.to_tensors(params, CONFIG, names) for names in ("gguf:llama", "llama"))
    differ = {name for name, x in own.items() if not any(np.array_equal(x, y) for y in other.values())}
    assert differ == {f"blk.{i}.{name}.weight" for i in (0, 1) for name in ("attn_q", "attn_k")}


def test_a_tensor_of_half_precision_becomes_float32(params):
    tensors = lm.pretrained.to_tensors(params, CONFIG, "gguf:llama")
    tensors["output_norm.weight"] = jnp.ones(8, jnp.bfloat16)
    read = lm.pretrained.from_tensors(tensors, CONFIG, "gguf:llama")
    assert read["norm"]["scale"].dtype == jnp.float32


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "blk.1.attn_v.weight"), "blk.1.attn_v.weight is missing"),
        (lambda t: t | {"rope_freqs.weight": np.ones(2)}, "rope_freqs.weight is not known"),
        (lambda t: t | {"output_norm.weight": np.ones(9)}, r"shape \(9,\), expected \(8,\)"),
        (lambda t: without(t, "token_embd.weight"), "token_embd.weight is missing"),
        (lambda t: {}, "token_embd.weight is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(params, change, message):
    tensors = lm.pretrained.to_tensors(params, CONFIG, "gguf:llama")
    with pytest.raises(ValueError, match=message):
        lm.pretrained.from_tensors(change(tensors), CONFIG, "gguf:llama")


def test_many_faults_are_counted(params):
    tensors = lm.pretrained.to_tensors(params, CONFIG, "gguf:llama")
    shallow = dataclasses.replace(CONFIG, num_layers=1)
    with pytest.raises(ValueError, match="and 5 more"):
        lm.pretrained.from_tensors(tensors, shallow, "gguf:llama")


@pytest.mark.parametrize("change", [{"norm": "layer"}, {"value_head": True}, {"out_bias": True}])
def test_what_no_architecture_has_is_refused_both_ways(params, change):
    config, (field,) = dataclasses.replace(CONFIG, **change), change
    for attempt in (
        lambda: lm.pretrained.to_tensors(arrays.rough(config, scale=0.3), config),
        lambda: lm.pretrained.from_tensors({}, config),
    ):
        with pytest.raises(ValueError, match=rf"config\.{field} must be"):
            attempt()


def test_tensors_survive_a_file(tmp_path):
    tensors = lm.pretrained.to_tensors(arrays.rough(UNTIED, scale=0.35), UNTIED, "llama")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    back = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert back.keys() == tensors.keys() and all(np.array_equal(back[name], x) for name, x in tensors.items())


def test_an_unknown_family_of_names_is_refused(params):
    with pytest.raises(ValueError, match="'gguf:llama'"):
        lm.pretrained.to_tensors(params, CONFIG, "onnx")


def test_states_are_what_each_depth_would_end_with(params):
    states = jax.jit(lm.hidden_states, static_argnames="config")(params, TOKENS[None], config=CONFIG)
    for depth in (1, 2):
        config = dataclasses.replace(CONFIG, num_layers=depth)
        part = {**params, "blocks": jax.tree.map(lambda x, d=depth: x[:d], params["blocks"])}
        hidden = lm.encode(part, TOKENS[None], config)
        normed = _layers.rms_norm(states[depth - 1], part["norm"]["scale"], config.norm_epsilon)
        assert np.allclose(normed, hidden, atol=1e-6)


@pytest.mark.parametrize(("names", "head"), [("gguf:llama", "output.weight"), ("llama", "lm_head.weight")])
def test_the_head_of_a_tied_model_may_be_given_twice_when_equal(params, names, head):
    tensors = lm.pretrained.to_tensors(params, CONFIG, names)
    embedding = next(x for name, x in tensors.items() if x.shape == (11, 8))
    again = lm.pretrained.from_tensors(tensors | {head: embedding.copy()}, CONFIG, names)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    with pytest.raises(ValueError, match=f"{head} is not known"):
        lm.pretrained.from_tensors(tensors | {head: embedding + 1}, CONFIG, names)
