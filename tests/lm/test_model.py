"""The forward pass against a reference written with loops, and the laws that it keeps."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm.lm import _config, _rope, _segments
from tests import arrays

CONFIG = lm.ModelConfig(vocab_size=19, num_layers=2, width=16, num_heads=4, num_kv_heads=2, max_length=12)
ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1)
SHAPES = {
    "grouped queries": {},
    "one key-value head": {"num_kv_heads": 1},
    "wide heads": {"num_kv_heads": 4, "head_width": 6, "rope_theta": 50.0},
    "normed queries and keys": {"qk_norm": "head", "qkv_bias": True, "norm_epsilon": 0.5},
    "untied head": {"tie_embeddings": False, "hidden_width": 24},
    "window": {
        "window": 3,
        "window_layers": (True, False),
        "window_rope_theta": 20.0,
        "rope_layers": (True, False),
    },
    "like GPT-2": {
        "positions": "learned",
        "norm": "layer",
        "gated": False,
        "activation": "gelu_tanh",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
    "like GPT-NeoX": {
        "norm": "layer",
        "gated": False,
        "activation": "gelu",
        "parallel": True,
        "rope_share": 0.5,
    },
    "like Gemma": {
        "norm": "rms_plus_one",
        "norm_place": "both",
        "activation": "gelu_tanh",
        "embedding_scale": 4.0,
        "query_scale": 0.3,
        "attention_cap": 2.0,
        "logit_cap": 3.0,
    },
    "like OLMo 2": {"norm_place": "after", "qk_norm": "whole", "rope_layers": (True, False)},
    "linear rope": {"rope_scaling": lm.RopeScaling("linear", factor=4.0, original_length=4)},
}
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])

apply = jax.jit(lm.apply, static_argnames="config")
rotation = jax.jit(_rope.rotation, static_argnums=(1, 2))

rough = functools.partial(arrays.rough, scale=0.35)


@pytest.fixture(scope="module")
def params():
    return rough(CONFIG)


def reference(params, tokens, config):
    """Logits [T, V] of one sequence in float64: loops over layers, heads and queries."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = params["embedding"]["kernel"][np.asarray(tokens)] * (config.embedding_scale or 1.0)
    if config.positions == "learned":
        x = x + params["positions"]["kernel"][: len(x)]
    for layer in range(config.num_layers):
        block = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
        normed = lambda x, name, block=block: reference_norm(x, block[name], config) if name in block else x
        attended = reference_attention(normed(x, "attention_norm"), block["attention"], config, layer)
        before = x
        x = x + normed(attended, "attention_post_norm")
        read = normed(before if config.parallel else x, "mlp_norm")
        x = x + normed(reference_mlp(read, block["mlp"], config), "mlp_post_norm")
    table = params["embedding" if config.tie_embeddings else "head"]["kernel"]
    return cap(reference_norm(x, params["norm"], config) @ table.T, config.logit_cap)


def cap(x, bound):
    return x if bound is None else bound * np.tanh(x / bound)


def reference_mlp(x, part, config):
    act = {
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
        "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    }[config.activation]
    if config.gated:
        gate, up = (x @ part["gate_up"]["kernel"][:, i] for i in (0, 1))
        hidden = act(gate) * up
    else:
        hidden = act(x @ part["up"]["kernel"] + part["up"].get("bias", 0.0))
    return hidden @ part["down"]["kernel"] + part["down"].get("bias", 0.0)


def reference_norm(x, part, config, axes=-1):
    scale = part["scale"] + (config.norm == "rms_plus_one")
    if config.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    rest = part.get("bias", 0.0)
    return x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + config.norm_epsilon) * scale + rest


def reference_attention(x, part, config, layer):
    heads, groups, width = config.num_heads, config.num_kv_heads, config.head_width
    packed = np.einsum("td,dhe->the", x, part["qkv"]["kernel"]) + part["qkv"].get("bias", 0.0)
    queries, keys, values = np.split(packed, (heads, heads + groups), axis=1)
    if config.qk_norm:
        axes = -1 if config.qk_norm == "head" else (-2, -1)
        queries = reference_norm(queries, part["query_norm"], config, axes)
        keys = reference_norm(keys, part["key_norm"], config, axes)
    window = config.window if (config.window_layers or (True,) * 9)[layer] else None
    scale = config.query_scale or width**-0.5
    mixed = np.zeros((len(x), heads, width))
    for head in range(heads):
        group = head // (heads // groups)
        query, key = (reference_turn(rows, config, layer) for rows in (queries[:, head], keys[:, group]))
        for t in range(len(x)):
            seen = slice(max(0, t + 1 - (window or len(x))), t + 1)
            weights = np.exp(cap(key[seen] @ query[t] * scale, config.attention_cap))
            mixed[t, head] = weights @ values[seen, group] / weights.sum()
    return np.einsum("the,hed->td", mixed, part["out"]["kernel"]) + part["out"].get("bias", 0.0)


def reference_turn(rows, config, layer):
    """RoPE as a product of complex numbers."""
    if config.positions == "learned" or not (config.rope_layers or (True,) * 9)[layer]:
        return rows
    own = config.window_rope_theta and config.window_layers[layer]
    theta = config.window_rope_theta if own else config.rope_theta
    half = int(rows.shape[1] * config.rope_share) // 2
    pairs = rows[:, :half] + 1j * rows[:, half : 2 * half]
    angles = np.arange(len(rows))[:, None] * theta ** (-np.arange(half) / half)
    turned = pairs * np.exp(1j * angles / (config.rope_scaling.factor if config.rope_scaling else 1.0))
    return np.concatenate([turned.real, turned.imag, rows[:, 2 * half :]], axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_a_loop_in_float64(shape):
    config = dataclasses.replace(CONFIG, **SHAPES[shape])
    params = rough(config)
    logits = apply(params, TOKENS, config)
    assert logits.dtype == jnp.float32
    for row, tokens in zip(logits, TOKENS, strict=True):
        np.testing.assert_allclose(row, reference(params, tokens, config), rtol=1e-4, atol=1e-4)


# One cached path serves all shapes; windows, positions and layers without rope are its own business.
BY_CACHE = ["window", "like GPT-2"]
BY_CACHE += [pytest.param(x, marks=pytest.mark.slow) for x in ("like OLMo 2", "like GPT-NeoX", "like Gemma")]


@pytest.mark.parametrize("shape", BY_CACHE)
def test_decoding_by_a_cache_is_the_forward_pass_of_every_shape(shape):
    config = dataclasses.replace(CONFIG, **SHAPES[shape])
    params, mask = rough(config), jnp.array([[True] * 5, [False] * 2 + [True] * 3])
    draw = jax.jit(lm.sample, static_argnames=("config", "num_tokens"))
    samples = draw(jax.random.key(0), params, TOKENS[:, :5], config, num_tokens=6, prompt_mask=mask)
    scores = jax.jit(lm.score, static_argnames=("config", "start"))(
        params, samples.tokens, config, mask=samples.mask, start=5
    )
    np.testing.assert_allclose(samples.log_probs, scores.log_probs, atol=1e-5)
    if shape == "like OLMo 2":
        whole = jnp.ones_like(mask)
        streamed = lm.stream(jax.random.key(0), params, TOKENS[:, :5], config, 6)
        alone = draw(jax.random.key(0), params, TOKENS[:, :5], config, num_tokens=6, prompt_mask=whole)
        np.testing.assert_array_equal(np.stack(list(streamed), axis=1), alone.tokens[:, 5:])


def scaled_angles(scaling, length=7):
    """Angles per position, of a head of 8 entries with θ = 10,000, and the factor of the cosines."""
    config = lm.ModelConfig(vocab_size=2, width=8, num_heads=1, rope_scaling=scaling)
    cos, sin = rotation(np.arange(length), config, _config.LayerKind(None, "all"))
    return np.arctan2(sin, cos)[1], np.hypot(cos, sin)[1, 0]


def test_scaled_frequencies_by_hand():
    plain = 10_000.0 ** (-np.arange(4) / 4)  # 1, .1, .01, .001: wavelengths 6.28, 62.8, 628, 6283
    angles, _ = scaled_angles(lm.RopeScaling("llama3", factor=8.0, original_length=200, low=1.0, high=4.0))
    middle = (200 / (2 * np.pi / 0.1) - 1.0) / 3.0  # between 200 / 4 and 200 / 1
    shares = np.array([1.0, middle, 0.0, 0.0])
    np.testing.assert_allclose(angles, plain * (shares + (1 - shares) / 8), rtol=1e-5)
    angles, factor = scaled_angles(lm.RopeScaling("yarn", factor=4.0, original_length=400, low=1.0, high=8.0))
    entry = lambda turns: 8 * np.log(400 / (turns * 2 * np.pi)) / (2 * np.log(10_000.0))
    first, last = np.floor(entry(8.0)), np.ceil(entry(1.0))
    shares = 1 - np.clip((np.arange(4) - first) / (last - first), 0, 1)
    np.testing.assert_allclose(angles, plain * (shares + (1 - shares) / 4), rtol=1e-5)
    np.testing.assert_allclose(factor, 1 + 0.1 * np.log(4.0), rtol=1e-6)
    angles, _ = scaled_angles(lm.RopeScaling("dynamic", factor=2.0, original_length=4), length=8)
    theta = 10_000.0 * (2.0 * 8 / 4 - 1.0) ** (8 / 6)
    np.testing.assert_allclose(angles, theta ** (-np.arange(4) / 4), rtol=1e-5)
    angles, _ = scaled_angles(lm.RopeScaling("dynamic", factor=2.0, original_length=9), length=8)
    np.testing.assert_allclose(angles, plain, rtol=1e-6)
    for length, divisor in (
        (8, [1.0, 2.0, 3.0, 4.0]),
        (9, [2.0, 4.0, 6.0, 9.0]),
    ):  # up to 8 tokens, and beyond
        longrope = lm.RopeScaling("longrope", 4.0, 8, short=(1, 2, 3, 4), long=[2.0, 4.0, 6.0, 9.0])
        angles, factor = scaled_angles(longrope, length)
        np.testing.assert_allclose(angles, plain / divisor, rtol=1e-5)
        np.testing.assert_allclose(factor, np.sqrt(1 + np.log(4.0) / np.log(8.0)), rtol=1e-6)
    # A layer with a window has a base of its own, which is not scaled.
    linear = lm.RopeScaling("linear", factor=4.0, original_length=4)
    sizes = {"vocab_size": 2, "width": 8, "num_heads": 1, "window": 3}
    config = lm.ModelConfig(**sizes, window_rope_theta=16.0, rope_scaling=linear)
    cos, sin = rotation(np.arange(2), config, _config.LayerKind(3, "window"))
    np.testing.assert_allclose(np.arctan2(sin, cos)[1], [1.0, 0.5, 0.25, 0.125], rtol=1e-6)


def test_a_token_changes_nothing_before_it_and_everything_from_it_on(params):
    before = np.asarray(apply(params, TOKENS, CONFIG))
    for t in range(TOKENS.shape[1]):
        after = np.asarray(apply(params, TOKENS + (np.arange(7) == t), CONFIG))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after[:, t:] - before[:, t:]).max(axis=-1) > 1e-4).all()


def test_a_row_changes_nothing_in_its_neighbour(params):
    before = apply(params, TOKENS, CONFIG)
    after = apply(params, TOKENS + np.array([[1], [0]]), CONFIG)
    np.testing.assert_array_equal(after[1], before[1])


def test_rotated_scores_depend_on_the_difference_of_positions_alone():
    query, key = arrays.numpy_normal(0, (1, 8)), arrays.numpy_normal(1, (1, 8))
    config = lm.ModelConfig(vocab_size=2, width=8, num_heads=1, rope_theta=100.0)
    kind = _config.LayerKind(None, "all")

    @jax.jit
    def score(query_position, key_position):
        turn = lambda x, at: _rope.rotate(x, *_rope.rotation(at[None], config, kind))
        return jnp.vdot(turn(query, query_position), turn(key, key_position))

    scores = np.array([[score(p + d, p) for p in (0, 1, 17)] for d in (0, 1, 5)])
    np.testing.assert_allclose(scores, scores[:, :1] * np.ones(3), atol=1e-5)
    np.testing.assert_allclose(scores[0, 0], np.vdot(query, key), atol=1e-6)
    assert np.ptp(scores[:, 0]) > 0.1


def test_shifted_positions_change_nothing_and_stretched_ones_do(params):
    positions = np.broadcast_to(np.arange(7), TOKENS.shape)
    logits = np.asarray(apply(params, TOKENS, CONFIG))
    shifted = apply(params, TOKENS, CONFIG, positions=positions + np.array([[0], [40]]))
    np.testing.assert_allclose(shifted, logits, atol=1e-4)
    stretched = np.asarray(apply(params, TOKENS, CONFIG, positions=2 * positions))
    assert np.abs(stretched - logits)[:, 2:].max(axis=-1).min() > 1e-3


PADDINGS = np.array(
    [
        [0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 0, 1, 1, 1, 1, 0],
    ],
    bool,
)


def padded(filler):
    """The first row of TOKENS spread over the valid slots of every padding: [4, 10]."""
    places = np.maximum(np.cumsum(PADDINGS, axis=1) - 1, 0)
    return np.where(PADDINGS, TOKENS[0][places], filler)


def test_padding_on_any_side_changes_no_valid_logit(params):
    logits = np.asarray(apply(params, padded(0), CONFIG, mask=PADDINGS))
    alone = np.asarray(apply(params, TOKENS[:1], CONFIG))[0]
    for row, mask in zip(logits, PADDINGS, strict=True):
        np.testing.assert_allclose(row[mask], alone, atol=1e-5)


def test_what_stands_in_the_padding_changes_no_bit(params):
    logits, others = (np.asarray(apply(params, padded(x), CONFIG, mask=PADDINGS)) for x in (0, 11))
    np.testing.assert_array_equal(logits[PADDINGS], others[PADDINGS])
    assert np.isfinite(others).all()


def test_gradients_do_not_feel_padding():
    def loss(params, tokens, mask):
        log_probs = jax.nn.log_softmax(lm.apply(params, tokens, ONE_LAYER, mask=mask))
        return jnp.sum(jnp.where(mask[..., None], log_probs, 0.0) ** 2) / len(tokens)

    gradient, params = jax.jit(jax.grad(loss)), rough(ONE_LAYER)
    expected = gradient(params, TOKENS[:1], jnp.ones((1, 7), bool))
    near = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())
    jax.tree.map(near, gradient(params, padded(5), PADDINGS), expected)


def test_a_row_of_nothing_but_padding_is_finite():
    mask = jnp.array([[True] * 7, [False] * 7])
    total = lambda params: jnp.sum(lm.apply(params, TOKENS, ONE_LAYER, mask=mask))
    found = jax.jit(jax.value_and_grad(total))(rough(ONE_LAYER))
    finite = jax.tree.map(lambda x: np.isfinite(x).all(), found)
    assert all(jax.tree.leaves(finite))


def test_eager_and_compiled_agree(params, variant):
    logits = variant(lm.apply, static_argnames="config")(params, TOKENS, CONFIG)
    np.testing.assert_allclose(logits, apply(params, TOKENS, CONFIG), atol=1e-5)


ONE_OF_BOTH = [
    pytest.param(change, marks=pytest.mark.slow)
    for change in ({"unroll": 1}, {"remat": True}, {"remat": "dots_with_no_batch_dims_saveable"})
]


@pytest.mark.parametrize("change", [{"unroll": 1, "remat": True}, *ONE_OF_BOTH])
def test_how_the_layers_are_looped_changes_neither_logits_nor_gradients(params, change):
    def loss(params, config):
        logits = lm.apply(params, TOKENS, config)
        return jnp.mean(jnp.square(logits)), logits

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    expected = run(params, dataclasses.replace(CONFIG, unroll=CONFIG.num_layers))
    actual = run(params, dataclasses.replace(CONFIG, **change))
    near = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * np.abs(y).max())
    jax.tree.map(near, actual, expected)


def test_layers_that_are_unrolled_share_a_kernel():
    part = {"w": jnp.arange(24.0).reshape(3, 8)}
    run = jax.jit(lambda part: [jnp.sin(layer["w"]) for layer in _segments.layers_of(part)])
    text = run.lower(part).compile().as_text()
    kernels = re.findall(r"^%fused_computation.*?^}", text, re.M | re.S)
    plain = {re.sub(r"%[\w.]+|, metadata=\{.*?\}|param_[\d.]+", "", kernel) for kernel in kernels}
    assert len(kernels) == 3
    assert len(plain) == 1
    tangents = jax.jvp(_segments.layers_of, (part,), (part,))[1]
    np.testing.assert_array_equal([layer["w"] for layer in tangents], part["w"])


def test_bfloat16_computes_near_float32_and_leaves_logits_and_parameters_wide(params):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    logits, expected = (np.asarray(apply(params, TOKENS, x)) for x in (config, CONFIG))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=5e-2)
    assert np.abs(logits - expected).max() > 1e-4  # it did compute in bfloat16
    assert logits.dtype == jnp.float32
    total = lambda params: jnp.sum(lm.apply(params, TOKENS, config))
    gradients = jax.eval_shape(jax.grad(total), params)
    drawn = jax.eval_shape(lambda key: lm.init(key, config), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((drawn, gradients))} == {jnp.dtype("float32")}


def test_vmap_over_parameters_equals_a_loop(params):
    trees = [params, rough(CONFIG, seed=1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    together = jax.jit(jax.vmap(lambda tree: lm.apply(tree, TOKENS, CONFIG)))(stacked)
    for logits, tree in zip(together, trees, strict=True):
        np.testing.assert_allclose(logits, apply(tree, TOKENS, CONFIG), atol=1e-5)


def test_smollm2_135m_has_its_number_of_parameters():
    config = lm.ModelConfig(49152, num_layers=30, width=576, num_heads=9, num_kv_heads=3, hidden_width=1536)
    assert lm.num_params(config) == 134_515_008


@pytest.fixture(scope="module")
def drawn():
    """Parameters of a model with everything that one can have, as they start, by path."""
    everything = {"qk_norm": "head", "qkv_bias": True, "value_head": True, "tie_embeddings": False}
    config = lm.ModelConfig(512, num_layers=8, width=64, init_scale=0.1, **everything)
    leaves = jax.tree_util.tree_leaves_with_path(lm.init(jax.random.key(0), config))
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


def test_kernels_have_the_stated_scale_and_writers_less_by_the_depth(drawn):
    for part in ("embedding", "head", "blocks/attention/qkv", "blocks/mlp/gate_up"):
        np.testing.assert_allclose(drawn[f"{part}/kernel"].std(), 0.1, rtol=0.02)
        np.testing.assert_allclose(drawn[f"{part}/kernel"].mean(), 0.0, atol=0.003)
    for part in ("blocks/attention/out", "blocks/mlp/down"):
        np.testing.assert_allclose(drawn[f"{part}/kernel"].std(), 0.1 / 4, rtol=0.02)


def test_scales_start_at_one_and_biases_and_the_value_head_at_zero(drawn):
    ones = [leaf for path, leaf in drawn.items() if path.endswith("scale")]
    zeros = [leaf for path, leaf in drawn.items() if "value" in path or path.endswith("bias")]
    assert len(ones) == 5 and len(zeros) == 3
    assert all((leaf == 1).all() for leaf in ones)
    assert all((leaf == 0).all() for leaf in zeros)


def test_no_two_kernels_share_their_numbers(drawn):
    starts = [leaf.ravel()[:8] / leaf.std() for leaf in drawn.values() if np.ptp(leaf) > 0]
    assert len(starts) == 6
    assert min(np.abs(x - y).max() for x, y in itertools.combinations(starts, 2)) > 0.1


def test_stack_undoes_unstack(params):
    blocks = lm.unstack(params["blocks"])
    assert len(blocks) == CONFIG.num_layers
    jax.tree.map(np.testing.assert_array_equal, lm.stack(blocks), params["blocks"])


def test_the_linen_module_is_the_pure_functions():
    module, key = lm.Transformer(ONE_LAYER), jax.random.key(3)
    variables = jax.jit(module.init)(key, TOKENS)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], lm.init(key, ONE_LAYER))
    logits = jax.jit(module.apply)(variables, padded(0), mask=PADDINGS)
    expected = apply(variables["params"], padded(0), ONE_LAYER, mask=PADDINGS)
    np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 18}, "width must be a multiple of num_heads=4, got 18. Or give head_width"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads=3, got 4"),
        ({"head_width": 5}, "head_width must be even and positive, got 5. RoPE rotates pairs"),
        ({"lm_head": False}, "lm_head must be True where value_head is False"),
        ({"num_layers": 0}, "num_layers must be an integer ≥ 1, got 0"),
        ({"vocab_size": 0}, "vocab_size must be an integer ≥ 1, got 0"),
        ({"vocab_size": None}, "vocab_size must be an integer ≥ 1, got None"),
        ({"max_length": -1}, "max_length must be an integer ≥ 1, got -1"),
        ({"num_heads": 2.0}, r"num_heads must be an integer ≥ 1, got 2\.0"),
        ({"num_kv_heads": 0}, "num_kv_heads must be an integer ≥ 1, got 0"),
        ({"head_width": 0}, "head_width must be an integer ≥ 1, got 0"),
        ({"rope_theta": 0}, "rope_theta must be a number > 0, got 0"),
        ({"norm_epsilon": -1.0}, r"norm_epsilon must be a number in \[0, 1\]"),
        ({"norm_epsilon": float("nan")}, r"norm_epsilon must be a number in \[0, 1\], got nan"),
        ({"init_scale": -0.1}, "init_scale must be a number ≥ 0"),
        ({"compute_dtype": "int8"}, "compute_dtype must be one of 'float32', 'bfloat16'"),
        ({"activation": "relu"}, "activation must be one of 'silu', 'gelu', 'gelu_tanh', got 'relu'"),
        ({"qk_norm": True}, "qk_norm must be one of None, 'head', 'whole', got True"),
        ({"qkv_bias": "no"}, "qkv_bias must be one of False, True, got 'no'"),
        ({"window_layers": (True,) * 4}, "window_layers must be None without a window"),
        ({"window": 3, "window_layers": (True,)}, "window_layers must be 4 booleans, one a layer"),
        ({"positions": "learned", "rope_share": 0.5}, r"rope_share must be 1\.0 with learned positions"),
        ({"positions": "learned", "rope_theta": 5e5}, r"rope_theta must be 10000\.0 with learned positions"),
        ({"parallel": True, "norm_place": "both"}, "norm_place must be 'before' in a parallel model"),
    ],
)
def test_a_shape_that_does_not_fit_together_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lm.ModelConfig(**{"vocab_size": 19, "width": 16} | settings)


def test_tokens_beyond_the_context_are_refused(params):
    jax.eval_shape(lambda: lm.apply(params, jnp.zeros((1, 12), int), CONFIG))
    with pytest.raises(ValueError, match=r"13 tokens .* max_length=12: cut the prompt"):
        lm.apply(params, jnp.zeros((1, 13), int), CONFIG)


def test_a_head_that_is_not_there_is_refused():
    critic = dataclasses.replace(CONFIG, lm_head=False, value_head=True)
    params = rough(critic)
    with pytest.raises(ValueError, match=r"lm_head must be True, got False\. .* lm_head=True"):
        jax.eval_shape(lambda: lm.apply(params, TOKENS, critic))
    with pytest.raises(ValueError, match=r"value_head must be True, got False\. .* value_head=True"):
        lm.values(params, np.ones((1, 16), np.float32), CONFIG)


def test_parameters_have_types_that_a_training_step_does_not_change():
    params = jax.eval_shape(functools.partial(lm.init, config=lm.ModelConfig(8, width=8)), jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))


def test_attention_is_cudnn_on_gpus_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    shape = {"vocab_size": 8, "num_layers": 1, "width": 16, "num_heads": 2, "compute_dtype": "bfloat16"}
    config = lm.ModelConfig(**shape, attention="cudnn")
    params = jax.eval_shape(lambda: lm.init(jax.random.key(0), config))
    loss = lambda params: lm.apply(params, jnp.zeros((2, 6), int), config).sum()
    text = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
    with pytest.raises(ValueError, match="attention must be 'einsum' but for 16-bit floats"):
        lm.ModelConfig(**shape | {"compute_dtype": "float32"}, attention="cudnn")
