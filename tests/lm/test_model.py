"""The forward pass against a reference written with loops, and the laws that it keeps."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm.lm import _config, _rope
from tests import arrays

CONFIG = lm.ModelConfig(vocab_size=19, num_layers=2, width=16, num_heads=4, num_kv_heads=2, max_length=12)
SHAPES = {
    "grouped queries": {},
    "one key-value head": {"num_kv_heads": 1},
    "wide heads": {"num_kv_heads": 4, "head_width": 6, "rope_theta": 50.0},
    "normed queries and keys": {"qk_norm": "head"},
    "attention bias": {"qkv_bias": True},
    "untied head": {"tie_embeddings": False, "hidden_width": 24},
    "large epsilon": {"norm_epsilon": 0.5, "qk_norm": "head"},
}
TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])

apply = jax.jit(lm.apply, static_argnames="config")
init = jax.jit(lm.init, static_argnames="config")

rough = functools.partial(arrays.rough, scale=0.35)


@pytest.fixture(scope="module")
def params():
    return rough(CONFIG)


def reference(params, tokens, config):
    """Logits [T, V] of one sequence in float64: loops over layers, heads and queries."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = params["embedding"]["kernel"][np.asarray(tokens)]
    for layer in range(config.num_layers):
        block = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
        normed = reference_norm(x, block["attention_norm"], config)
        x = x + reference_attention(normed, block["attention"], config)
        normed = reference_norm(x, block["mlp_norm"], config)
        gate, up = (normed @ block["mlp"]["gate_up"]["kernel"][:, i] for i in (0, 1))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ block["mlp"]["down"]["kernel"]
    table = params["embedding" if config.tie_embeddings else "head"]["kernel"]
    return reference_norm(x, params["norm"], config) @ table.T


def reference_norm(x, part, config):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * part["scale"]


def reference_attention(x, part, config):
    heads, groups, width = config.num_heads, config.num_kv_heads, config.head_width
    packed = np.einsum("td,dhe->the", x, part["qkv"]["kernel"]) + part["qkv"].get("bias", 0.0)
    mixed = np.zeros((len(x), heads, width))
    for head in range(heads):
        group = head // (heads // groups)
        query, key = packed[:, head], packed[:, heads + group]
        value = packed[:, heads + groups + group]
        if config.qk_norm:
            query = reference_norm(query, part["query_norm"], config)
            key = reference_norm(key, part["key_norm"], config)
        query, key = (reference_turn(rows, config.rope_theta) for rows in (query, key))
        for t in range(len(x)):
            weights = np.exp(key[: t + 1] @ query[t] / np.sqrt(width))
            mixed[t, head] = weights @ value[: t + 1] / weights.sum()
    return np.einsum("the,hed->td", mixed, part["out"]["kernel"])


def reference_turn(rows, theta):
    """RoPE as a product of complex numbers."""
    half = rows.shape[1] // 2
    pairs = rows[:, :half] + 1j * rows[:, half:]
    angles = np.arange(len(rows))[:, None] * theta ** (-np.arange(half) / half)
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_a_loop_in_float64(shape):
    config = dataclasses.replace(CONFIG, **SHAPES[shape])
    params = rough(config)
    logits = apply(params, TOKENS, config)
    assert logits.dtype == jnp.float32
    for row, tokens in zip(logits, TOKENS, strict=True):
        np.testing.assert_allclose(row, reference(params, tokens, config), rtol=1e-4, atol=1e-4)


def test_a_token_changes_nothing_before_it_and_everything_from_it_on(params):
    before = np.asarray(apply(params, TOKENS, CONFIG))
    for t in range(TOKENS.shape[1]):
        after = np.asarray(apply(params, TOKENS.at[:, t].add(1), CONFIG))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after[:, t:] - before[:, t:]).max(axis=-1) > 1e-4).all()


def test_a_row_changes_nothing_in_its_neighbour(params):
    before = apply(params, TOKENS, CONFIG)
    after = apply(params, TOKENS.at[0].add(1), CONFIG)
    np.testing.assert_array_equal(after[1], before[1])


def test_rotated_scores_depend_on_the_difference_of_positions_alone():
    query, key = arrays.normal(0, (1, 8)), arrays.normal(1, (1, 8))
    config = lm.ModelConfig(vocab_size=2, width=8, num_heads=1, rope_theta=100.0)
    kind = _config.LayerKind(None, "all")

    def score(query_position, key_position):
        turn = lambda x, at: _rope.rotate(x, *_rope.rotation(jnp.array([at]), config, kind))
        return jnp.vdot(turn(query, query_position), turn(key, key_position))

    scores = np.array([[score(p + d, p) for p in (0, 1, 17)] for d in (0, 1, 5)])
    np.testing.assert_allclose(scores, scores[:, :1] * np.ones(3), atol=1e-5)
    np.testing.assert_allclose(scores[0, 0], jnp.vdot(query, key), atol=1e-6)
    assert np.ptp(scores[:, 0]) > 0.1


def test_shifted_positions_change_nothing_and_stretched_ones_do(params):
    positions = jnp.broadcast_to(jnp.arange(7), TOKENS.shape)
    logits = apply(params, TOKENS, CONFIG)
    shifted = apply(params, TOKENS, CONFIG, positions=positions + jnp.array([[0], [40]]))
    np.testing.assert_allclose(shifted, logits, atol=1e-4)
    stretched = apply(params, TOKENS, CONFIG, positions=2 * positions)
    assert jnp.abs(stretched - logits)[:, 2:].max(axis=-1).min() > 1e-3


PADDINGS = jnp.array(
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
    places = jnp.maximum(jnp.cumsum(PADDINGS, axis=1) - 1, 0)
    return jnp.where(PADDINGS, TOKENS[0][places], filler)


def test_padding_on_any_side_changes_no_valid_logit(params):
    logits = apply(params, padded(0), CONFIG, mask=PADDINGS)
    alone = apply(params, TOKENS[:1], CONFIG)[0]
    for row, mask in zip(logits, PADDINGS, strict=True):
        np.testing.assert_allclose(row[mask], alone, atol=1e-5)


def test_what_stands_in_the_padding_changes_no_bit(params):
    logits, others = (apply(params, padded(x), CONFIG, mask=PADDINGS) for x in (0, 11))
    np.testing.assert_array_equal(logits[PADDINGS], others[PADDINGS])
    assert jnp.isfinite(others).all()


def test_gradients_do_not_feel_padding(params):
    def loss(params, tokens, mask):
        log_probs = jax.nn.log_softmax(lm.apply(params, tokens, CONFIG, mask=mask))
        return jnp.sum(jnp.where(mask[..., None], log_probs, 0.0) ** 2) / len(tokens)

    gradient = jax.jit(jax.grad(loss))
    expected = gradient(params, TOKENS[:1], jnp.ones((1, 7), bool))
    near = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())
    jax.tree.map(near, gradient(params, padded(5), PADDINGS), expected)


def test_a_row_of_nothing_but_padding_is_finite(params):
    mask = jnp.array([[True] * 7, [False] * 7])
    total = lambda params: jnp.sum(lm.apply(params, TOKENS, CONFIG, mask=mask))
    finite = jax.tree.map(lambda x: np.isfinite(x).all(), jax.jit(jax.value_and_grad(total))(params))
    assert all(jax.tree.leaves(finite))


def test_eager_and_compiled_agree(params, variant):
    logits = variant(lm.apply, static_argnames="config")(params, TOKENS, CONFIG)
    np.testing.assert_allclose(logits, apply(params, TOKENS, CONFIG), atol=1e-5)


@pytest.mark.parametrize("change", [{"unroll": 1}, {"remat": True}, {"unroll": 1, "remat": True}])
def test_how_the_layers_are_looped_changes_neither_logits_nor_gradients(params, change):
    def loss(params, config):
        logits = lm.apply(params, TOKENS, config)
        return jnp.mean(jnp.square(logits)), logits

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    expected = run(params, dataclasses.replace(CONFIG, unroll=CONFIG.num_layers))
    actual = run(params, dataclasses.replace(CONFIG, **change))
    near = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * np.abs(y).max())
    jax.tree.map(near, actual, expected)


def test_bfloat16_computes_near_float32_and_leaves_logits_and_parameters_wide(params):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    logits = apply(params, TOKENS, config)
    expected = apply(params, TOKENS, CONFIG)
    scale = jnp.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=5e-2)
    assert jnp.abs(logits - expected).max() > 1e-4  # it did compute in bfloat16
    assert logits.dtype == jnp.float32
    total = lambda params: jnp.sum(lm.apply(params, TOKENS, config))
    gradients = jax.eval_shape(jax.grad(total), params)
    drawn = jax.eval_shape(lambda key: lm.init(key, config), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((drawn, gradients))} == {jnp.dtype("float32")}


def test_vmap_over_parameters_equals_a_loop(params):
    trees = [params, rough(CONFIG, seed=1)]
    together = jax.jit(jax.vmap(lambda tree: lm.apply(tree, TOKENS, CONFIG)))(lm.stack(trees))
    for logits, tree in zip(together, trees, strict=True):
        np.testing.assert_allclose(logits, apply(tree, TOKENS, CONFIG), atol=1e-5)


def test_smollm2_135m_has_its_number_of_parameters():
    config = lm.ModelConfig(49152, num_layers=30, width=576, num_heads=9, num_kv_heads=3, hidden_width=1536)
    assert lm.num_params(config) == 134_515_008


def test_kernels_have_the_stated_scale_and_writers_less_by_the_depth():
    config = lm.ModelConfig(512, num_layers=8, width=64, init_scale=0.1, tie_embeddings=False)
    params = init(jax.random.key(0), config)
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    for part in (params["embedding"], params["head"], attention["qkv"], mlp["gate_up"]):
        np.testing.assert_allclose(jnp.std(part["kernel"]), 0.1, rtol=0.02)
        np.testing.assert_allclose(jnp.mean(part["kernel"]), 0.0, atol=0.003)
    for part in (attention["out"], mlp["down"]):
        np.testing.assert_allclose(jnp.std(part["kernel"]), 0.1 / 4, rtol=0.02)


def test_scales_start_at_one_and_biases_and_the_value_head_at_zero():
    config = dataclasses.replace(CONFIG, qk_norm="head", qkv_bias=True, value_head=True)
    leaves = jax.tree_util.tree_leaves_with_path(init(jax.random.key(0), config))
    starts = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    ones = [leaf for path, leaf in starts.items() if path.endswith("scale")]
    zeros = [leaf for path, leaf in starts.items() if "value" in path or path.endswith("bias")]
    assert len(ones) == 5 and len(zeros) == 3
    assert all((leaf == 1).all() for leaf in ones)
    assert all((leaf == 0).all() for leaf in zeros)


def test_no_two_kernels_share_their_numbers():
    config = dataclasses.replace(CONFIG, tie_embeddings=False)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(init(jax.random.key(0), config))]
    starts = [leaf.ravel()[:8] / leaf.std() for leaf in leaves if np.ptp(leaf) > 0]
    assert len(starts) == 6
    assert min(np.abs(x - y).max() for x, y in itertools.combinations(starts, 2)) > 0.1


def test_stack_undoes_unstack(params):
    blocks = lm.unstack(params["blocks"])
    assert len(blocks) == CONFIG.num_layers
    jax.tree.map(np.testing.assert_array_equal, lm.stack(blocks), params["blocks"])


def test_the_linen_module_is_the_pure_functions():
    module, key = lm.Transformer(CONFIG), jax.random.key(3)
    variables = jax.jit(module.init)(key, TOKENS)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], init(key, CONFIG))
    logits = jax.jit(module.apply)(variables, padded(0), mask=PADDINGS)
    expected = apply(variables["params"], padded(0), CONFIG, mask=PADDINGS)
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
        lm.apply(params, TOKENS, critic)
    with pytest.raises(ValueError, match=r"value_head must be True, got False\. .* value_head=True"):
        lm.values(params, jnp.ones((1, 16)), CONFIG)
