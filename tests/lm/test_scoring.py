"""Scores of given tokens against NumPy, and which state each number belongs to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm, losses
from proxlm._decoding import distribution
from proxlm.lm import _chunks
from proxlm.lm import _scoring as scoring
from tests import arrays

CONFIG = lm.ModelConfig(
    vocab_size=17, num_layers=1, width=16, num_heads=4, num_kv_heads=2, max_length=12, value_head=True
)
TOKENS = np.random.default_rng(0).integers(0, 17, (3, 8))

score = jax.jit(lm.score, static_argnames=("config", "start", "full"))
values = jax.jit(scoring.values, static_argnames=("config", "start"))
apply = jax.jit(lm.apply, static_argnames="config")

rough = functools.partial(arrays.rough, scale=0.5)

PARAMS = rough(CONFIG)


def reference(logits, temperature):
    """Log-probabilities of tempered logits in float64."""
    logits = np.asarray(logits, np.float64) / temperature
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("start", [1, 7])
def test_scores_equal_a_reference_in_numpy(start, temperature):
    settings = lm.SamplingConfig(temperature=temperature)
    scores = score(PARAMS, TOKENS, CONFIG, start=start, sampling=settings, full=True)
    scores, logits = jax.tree.map(np.asarray, (scores, apply(PARAMS, TOKENS, CONFIG)))
    for row, tokens in enumerate(TOKENS):
        for column in range(start, 8):
            expected = reference(logits[row, column - 1], temperature)
            at = row, column - start
            np.testing.assert_allclose(scores.log_probs[at], expected[tokens[column]], atol=1e-5)
            np.testing.assert_allclose(scores.distribution[at], expected, atol=1e-5)
            entropy = -np.sum(np.exp(expected) * expected)
            np.testing.assert_allclose(scores.entropy[at], entropy, rtol=1e-5)


def test_a_head_in_chunks_gives_the_same_scores_and_gradients(monkeypatch):
    def loss(params, full):
        scores = lm.score(params, TOKENS, CONFIG, full=full)
        return jnp.sum(scores.log_probs * arrays.normal(1, (3, 7)) + scores.entropy**2), scores

    def both(params):
        (one, scores), (other, full) = (loss(params, full) for full in (False, True))
        return one + 2.0 * other, (scores, full)

    run = lambda: jax.jit(lambda params: jax.value_and_grad(both, has_aux=True)(params))(PARAMS)
    at_once = run()
    monkeypatch.setattr(_chunks, "LARGE", 17 * 20)
    monkeypatch.setattr(_chunks, "CHUNK", 17 * 5)  # 21 tokens: five chunks, the last not full
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, run(), at_once)
    with pytest.raises(ValueError, match=r"rows\.shape must be \(21, \.\.\.\), a row a token of hidden"):
        lm.map_logits(lambda logits, x: x, PARAMS, jnp.zeros((21, 16)), CONFIG, jnp.zeros(3))


def next_token(params, teacher, tokens, config):
    hidden = lm.encode(params, tokens, config)
    return lm.map_logits(losses.next_token, params, hidden, config, tokens.reshape(-1))


def log_probs_and_entropy(params, teacher, tokens, config):
    scores = lm.score(params, tokens, config)
    return scores.log_probs + scores.entropy


def exact_kl(params, teacher, tokens, config):
    """The KL from a teacher, as in distillation, both of whose logits exist a chunk at a time."""

    def of(logits, given):
        own, other = map(jax.nn.log_softmax, (logits, lm.logits(teacher, given, config)))
        return jnp.sum(jnp.exp(own) * (own - other), axis=-1)

    hidden = [lm.encode(tree, tokens, config) for tree in (params, teacher)]
    return lm.map_logits(of, params, hidden[0], config, hidden[1])


@pytest.mark.slow
@pytest.mark.parametrize("fn", [next_token, log_probs_and_entropy, exact_kl])
def test_a_head_in_chunks_needs_a_third_of_the_memory(fn, monkeypatch):
    config = lm.ModelConfig(49_152, num_layers=1, width=64, num_heads=2)
    shapes = jax.eval_shape(lambda: lm.init(jax.random.key(0), config))
    tokens = jax.ShapeDtypeStruct((4, 256), int)

    def memory():
        slope = jax.grad(lambda *given: jnp.mean(fn(*given, config)))
        compiled = jax.jit(lambda *given: slope(*given)).lower(shapes, shapes, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    in_chunks = memory()
    monkeypatch.setattr(_chunks, "LARGE", 2**40)
    assert 3 * in_chunks < memory()


KINDS = {"window": 4, "window_layers": (True, False), "rope_layers": (True, False), "attention_cap": 5.0}


@pytest.mark.parametrize(
    ("changes", "masked"),
    [
        (KINDS, True),
        pytest.param(KINDS, False, marks=pytest.mark.slow),
        pytest.param({"positions": "learned"}, True, marks=pytest.mark.slow),
        pytest.param({"positions": "learned"}, False, marks=pytest.mark.slow),
    ],
    ids=["kinds", "kinds, no mask", "learned", "learned, no mask"],
)
def test_answers_behind_one_prompt_score_as_by_themselves(changes, masked):
    config = dataclasses.replace(CONFIG, num_layers=2, **changes)
    params, rng = rough(config), np.random.default_rng(1)
    tokens = np.concatenate([TOKENS[:2, :5].repeat(3, 0), rng.integers(0, 17, (6, 4))], axis=1)
    mask = np.ones((6, 9), bool)
    mask[3:, :2] = False  # one prompt is shorter
    mask[1, 7:] = mask[5, 6:] = False

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def run(mask, group_size, full):
        def loss(params):
            options = {"mask": mask, "start": 5, "group_size": group_size}
            scores = lm.score(params, tokens_in, config, full=full, **options)
            values = scoring.values(params, tokens_in, config, **options)
            counts = jnp.ones((6, 4)) if mask is None else mask[:, 5:]
            keep = lambda x: jnp.where(counts.reshape(6, 4, *[1] * (x.ndim - 2)), x, 0.0)
            kept = jax.tree.map(keep, (scores, values))
            return sum(jnp.sum(x * arrays.normal(2, x.shape)) for x in jax.tree.leaves(kept)), kept

        tokens_in = jnp.array(tokens)
        return jax.value_and_grad(loss, has_aux=True)(params)

    together, alone = (run(jnp.array(mask) if masked else None, size, True) for size in (3, 1))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-4), together, alone)


def test_rows_that_are_no_groups_are_refused():
    for options, message in (
        ({"group_size": 2}, "group_size must be a divisor of the 3 rows of tokens, got 2"),
        ({"group_size": 3}, "tokens must be the same before column 4 in a group, got others"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.score(PARAMS, TOKENS, CONFIG, start=4, **options)


def test_the_distribution_comes_only_when_asked_for_and_values_only_from_a_head():
    headless = dataclasses.replace(CONFIG, value_head=False)
    scores = score(PARAMS, TOKENS, headless)
    assert scores.distribution is None and scores.values is None
    assert scores.log_probs.shape == scores.entropy.shape == (3, 7)


def test_a_value_belongs_to_the_state_before_its_token():
    before = np.asarray(score(PARAMS, TOKENS, CONFIG).values)
    for column in range(1, 8):
        changed = TOKENS.copy()
        changed[:, column] = (changed[:, column] + 1) % 17
        after = np.asarray(score(PARAMS, changed, CONFIG).values)
        # values[:, i] stands for the state before column i + 1.
        np.testing.assert_array_equal(after[:, :column], before[:, :column])
        assert (after[:, column:] != before[:, column:]).all()


def test_values_are_a_linear_head_on_the_hidden_states():
    encode = jax.jit(lm.encode, static_argnames="config")
    hidden = np.asarray(encode(PARAMS, TOKENS, CONFIG), np.float64).reshape(3, 8, 16)
    head = jax.tree.map(np.asarray, PARAMS["value"])
    expected = (hidden @ head["kernel"] + head["bias"])[:, 3:-1]
    np.testing.assert_allclose(values(PARAMS, TOKENS, CONFIG, start=4), expected, atol=1e-5)


def test_values_of_a_critic_need_no_lm_head():
    critic = dataclasses.replace(CONFIG, lm_head=False)
    expected = values(PARAMS, TOKENS, CONFIG)
    np.testing.assert_array_equal(values(PARAMS, TOKENS, critic), expected)


@pytest.mark.parametrize("start", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_padding_changes_no_score(start):
    tokens = np.concatenate([np.full((3, 2), 11), TOKENS], axis=1)
    mask = np.arange(10)[None] >= np.array([[2], [2], [2]])
    padded = score(PARAMS, tokens, CONFIG, mask=mask, start=start + 2)
    alone = score(PARAMS, TOKENS, CONFIG, start=start)
    near = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
    jax.tree.map(near, padded, alone)


def test_entropy_counts_impossible_tokens_as_zero():
    with np.errstate(divide="ignore"):
        rows = np.log(np.array([[0.5, 0.25, 0.25, 0.0], [1, 0, 0, 0], [0.25] * 4], np.float32))
    expected = np.log(2) * np.array([1.5, 0.0, 2.0])
    np.testing.assert_allclose(distribution.entropy(jnp.array(rows)), expected, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(distribution.entropy(x))))(rows)
    # d(−p log p)/d log p = −p (1 + log p), and 0 where p is.
    shares = np.exp(rows)
    slope = -shares * (1 + np.where(shares > 0, rows, 0.0))
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


def test_truncated_entropy_is_that_of_the_support():
    settings = lm.SamplingConfig(top_k=2, temperature=2.0)
    scores = score(PARAMS, TOKENS, CONFIG, sampling=settings, full=True)
    shares = np.exp(np.asarray(scores.distribution, np.float64))
    assert set(np.unique((shares > 0).sum(axis=-1))) <= {2, 3}  # three: the given token is kept
    expected = -np.sum(np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0), -1)
    np.testing.assert_allclose(scores.entropy, expected, atol=1e-5)


ALSO = [pytest.param(x, marks=pytest.mark.slow) for x in ({"top_k": 1}, {"greedy": True})]


@pytest.mark.parametrize("settings", [{"top_k": 2, "top_p": 0.1, "min_p": 0.9}, *ALSO], ids=str)
def test_a_given_token_outside_the_support_has_a_finite_score_and_gradient(settings):
    def total(params):
        scores = lm.score(params, TOKENS, CONFIG, sampling=lm.SamplingConfig(**settings))
        return jnp.sum(scores.log_probs) + jnp.sum(scores.entropy)

    value, gradient = jax.jit(jax.value_and_grad(total))(PARAMS)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_gradient_of_the_score_is_that_of_a_log_softmax():
    weights = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)

    def actual(params):
        scores = lm.score(params, TOKENS, CONFIG)
        return jnp.sum(weights * (scores.log_probs + scores.values)) + jnp.sum(scores.entropy)

    def expected(params):
        hidden = lm.encode(params, TOKENS, CONFIG)
        logits = lm.logits(params, hidden, CONFIG).reshape(3, 8, 17)[:, :-1]
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probs, TOKENS[:, 1:, None], axis=-1)[..., 0]
        before = lm.values(params, hidden, CONFIG).reshape(3, 8)[:, :-1]
        return jnp.sum(weights * (picked + before)) - jnp.sum(jnp.exp(log_probs) * log_probs)

    near = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
    jax.tree.map(near, jax.jit(jax.grad(actual))(PARAMS), jax.jit(jax.grad(expected))(PARAMS))


@pytest.mark.slow
def test_eager_and_compiled_agree():
    settings = lm.SamplingConfig(temperature=0.7, top_p=0.9)
    scores = lm.score(PARAMS, TOKENS, CONFIG, start=5, sampling=settings)
    expected = score(PARAMS, TOKENS, CONFIG, start=5, sampling=settings)
    near = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
    jax.tree.map(near, scores, expected)


def test_vmap_over_parameters_and_temperature_equals_a_loop():
    trees, temperatures = (PARAMS, rough(CONFIG, seed=1)), (0.7, 1.6)
    settings = lambda t: lm.SamplingConfig(temperature=t, top_k=5)
    run = lambda params, t: lm.score(params, TOKENS, CONFIG, sampling=settings(t))
    every = jax.vmap(jax.vmap(run, (0, None)), (None, 0))
    together = jax.jit(every)(jax.tree.map(lambda *x: np.stack(x), *trees), np.float32(temperatures))
    together = jax.tree.map(np.asarray, together)
    for i, temperature in enumerate(temperatures):
        for j, params in enumerate(trees):
            expected = score(params, TOKENS, CONFIG, sampling=settings(temperature))
            near = lambda x, y, at=(i, j): np.testing.assert_allclose(x[at], y, atol=1e-5)
            jax.tree.map(near, together, expected)


def test_bfloat16_scores_are_float32_and_near():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    scores, expected = (score(PARAMS, TOKENS, choice) for choice in (config, CONFIG))
    assert {leaf.dtype for leaf in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    near = lambda x, y: np.testing.assert_allclose(x, y, atol=5e-2 * np.abs(y).max())
    jax.tree.map(near, scores, expected)


@pytest.mark.parametrize("start", [0, -1, 8, 1.0])
@pytest.mark.parametrize("fn", [lm.score, scoring.values])
def test_a_start_outside_the_columns_is_refused(fn, start):
    inside = "" if isinstance(start, float) and fn is lm.score else " from 1 to 7, inside the 8 columns"
    message = f"start must be an integer{inside}, got {start}"
    with pytest.raises(ValueError, match=message):
        fn(PARAMS, TOKENS, CONFIG, start=start)
