"""Factors beside kernels: the function, its gradient, and what they cost."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm.lm import lora, trainable
from tests.arrays import rough
from tests.lm import peft_peer

CONFIG = lm.ModelConfig(
    11,
    num_layers=2,
    width=8,
    num_heads=4,
    num_kv_heads=2,
    hidden_width=6,
    qkv_bias=True,
    mlp_bias=True,
    unroll=1,
)
PARAMS = rough(CONFIG, 0.3)
TOKENS = np.random.default_rng(1).integers(0, 11, (2, 9))


@functools.cache
def adapted(dora):
    return peft_peer.adapted(dora, CONFIG)


@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_factors_and_the_kernels_they_are_merged_into_are_one_function_with_one_gradient(dora):
    trained, frozen = lora.split(adapted(dora))

    @jax.jit
    def both(trained, frozen):
        apart = lambda t: lm.apply(trainable.join(t, frozen), TOKENS, CONFIG)
        merged = lambda t: lm.apply(lora.merge(trainable.join(t, frozen)), TOKENS, CONFIG)
        slope = lambda fn: jax.grad(lambda t: jnp.sum(jnp.sin(fn(t))))(trained)
        results = [(fn(trained), slope(fn)) for fn in (apart, merged)]
        return *results, lm.apply(PARAMS, TOKENS, CONFIG)

    (one, slope), (other, expected), plain = both(trained, frozen)
    np.testing.assert_allclose(one, other, atol=2e-5)
    assert jnp.max(jnp.abs(one - plain)) > 0.1
    without = lambda tree: [
        x for path, x in jax.tree_util.tree_leaves_with_path(tree) if "magn" in str(path) or not dora
    ]
    # DoRA's gradient takes the norm for a constant, that of the merged kernel does not: the magnitude's agree
    for found, right in zip(without(slope), without(expected), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_fresh_adapter_changes_nothing_and_is_sampled_from_as_the_base_is():
    params = lora.init(jax.random.key(0), PARAMS, 2, pattern="attention/key|mlp/up")
    assert params["blocks"]["attention"]["qkv"]["lora"]["key"]["scale"].tolist() == [2.0, 2.0]
    draw = jax.jit(functools.partial(lm.sample, config=CONFIG, num_tokens=4))
    np.testing.assert_array_equal(*(draw(jax.random.key(3), p, TOKENS).tokens for p in (PARAMS, params)))
    scored = jax.jit(functools.partial(lm.score, config=CONFIG))
    samples = draw(jax.random.key(3), adapted(True), TOKENS)
    log_probs = scored(adapted(True), samples.tokens).log_probs[:, -4:]
    np.testing.assert_allclose(samples.log_probs, log_probs, atol=1e-4)


def test_dora_starts_from_the_norms_of_the_outputs():
    params = lora.init(jax.random.key(0), PARAMS, 2, pattern="down", dora=True)
    magnitude = params["blocks"]["mlp"]["down"]["lora"]["down"]["magnitude"]
    kernel = np.asarray(PARAMS["blocks"]["mlp"]["down"]["kernel"])
    np.testing.assert_allclose(magnitude, np.linalg.norm(kernel, axis=1), rtol=1e-6)


def test_a_gradient_of_factors_needs_none_of_the_kernels():
    config = lm.ModelConfig(16, num_layers=2, width=64, num_heads=1, hidden_width=256)
    shapes = jax.eval_shape(functools.partial(lm.init, config=config), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    trained, frozen = lora.split(lora.init(jax.random.key(0), params, 1, pattern="mlp/"))
    run = lambda t, f, tokens: jnp.sum(lm.encode(trainable.join(t, f), tokens, config))
    of = lambda *args: (
        jax.jit(jax.grad(run)).lower(*args, np.zeros((1, 64), np.int32)).compile().cost_analysis()
    )
    everything = of(*trainable.split(params, "."))["flops"]
    assert of(trained, frozen)["flops"] < 0.75 * everything


@pytest.mark.parametrize("dora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_adapter_comes_back_and_has_the_logits_of_peft(dora, tmp_path):
    params, config = peft_peer.adapted(dora), peft_peer.CONFIG
    lora.save(tmp_path / "adapter", params, config, "base")
    again = lora.load(tmp_path / "adapter", rough(config, 0.3), config)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["use_dora"] is dora and fields["rank_pattern"] == dict.fromkeys(
        ("o_proj", "gate_proj", "up_proj", "down_proj"), 2
    )
    expected = json.loads(peft_peer.VECTORS.read_text())["dora" if dora else "lora"]
    found = jax.jit(lm.apply, static_argnames="config")(again, peft_peer.TOKENS, config=config)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's use of transformers
@pytest.mark.parametrize("dora", [False, True])
def test_peft_opens_an_adapter(dora, tmp_path):
    pytest.importorskip("peft")
    expected = json.loads(peft_peer.VECTORS.read_text())["dora" if dora else "lora"]
    np.testing.assert_allclose(peft_peer.peer_logits(*peft_peer.saved(tmp_path, dora)), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"bias": "all"}, r"bias must be one of \('none',\), got 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be one of .*, got 'pissa'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication must be absent or empty"),
        ({"lora_alpha": -1}, "lora_alpha must be a number > 0, got -1"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object of numbers by name"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern must be names of modules"),
        ({"use_dora": True}, "lora_magnitude_vector must be there, as in other layers"),
    ],
)
def test_an_adapter_that_asks_for_what_is_not_there_is_refused(fields, message, tmp_path):
    config = peft_peer.CONFIG
    lora.save(tmp_path / "adapter", peft_peer.adapted(False), config)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=f"lora.load: .*{message}"):
        lora.load(tmp_path / "adapter", rough(config, 0.3), config)


def test_an_adapter_of_another_base_and_one_that_is_cut_are_refused(tmp_path):
    config = peft_peer.CONFIG
    lora.save(tmp_path / "adapter", peft_peer.adapted(False), config)
    for changes, message in (
        ({"hidden_width": 7}, r"F32 \(2, 6\)"),
        ({"num_layers": 3}, "None"),
        ({"num_layers": 1}, "a linear map"),
    ):
        other = dataclasses.replace(config, **changes)
        with pytest.raises(ValueError, match=message):
            lora.load(tmp_path / "adapter", rough(other, 0.3), other)
    with pytest.raises(ValueError, match="path must be an empty folder"):
        lora.save(tmp_path / "adapter", peft_peer.adapted(False), config)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or damaged"):
        lora.load(tmp_path / "adapter", rough(config, 0.3), config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lora.init(jax.random.key(0), PARAMS, pattern="q_proj"),
            r"found in one of attention/query, .*mlp/down",
        ),
        (lambda: lora.init(jax.random.key(0), PARAMS, 0), r"lora.init: rank must be an integer ≥ 1, got 0"),
        (lambda: lora.init(jax.random.key(0), PARAMS, alpha=-1), r"alpha must be a number > 0, got -1"),
        (lambda: lora.init(0, PARAMS), r"key must be a typed key"),
        (
            lambda: lora.init(jax.random.key(0), adapted(False)),
            r"without factors, got factors .* Merge them first",
        ),
        (lambda: lm.shrink(adapted(False), CONFIG), r"got factors of lm.lora. Merge them by lm.lora.merge"),
    ],
)
def test_what_cannot_be_adapted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
