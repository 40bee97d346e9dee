"""The reward model sums evidence, ignores padding, and learns what a token means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.support.models import reward_model
from proxlm import lm
from tests import arrays
from tests.arrays import normal

LANGUAGE = lm.ModelConfig(vocab_size=16, num_layers=3, width=8, num_heads=2, max_length=16)
PARAMS, MODEL = reward_model.from_language_model(arrays.rough(LANGUAGE, 0.1), LANGUAGE, num_layers=2)


odds_of = jax.jit(reward_model.log_odds, static_argnums=3)
score_of = jax.jit(reward_model.score, static_argnums=3)


@jax.jit
def slope(params, batch, skip):
    return jax.value_and_grad(reward_model.loss)(params, batch, MODEL, skip=skip)


def with_head(kernel, bias):
    return PARAMS | {"value": {"kernel": kernel, "bias": np.float32(bias)}}


def constant(evidence):
    """Every token speaks for "positive" by as much, in log-odds."""
    return with_head(np.zeros(8, np.float32), evidence / reward_model.UNIT)


def tokens_of(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 16, shape, dtype=np.int32)


def test_the_first_layers_are_taken_over_and_the_rest_left():
    language = arrays.rough(LANGUAGE, 0.1, seed=5)
    params, config = reward_model.from_language_model(language, LANGUAGE, num_layers=2)
    assert (config.num_layers, config.lm_head, config.value_head) == (2, False, True)
    assert config.width == LANGUAGE.width
    expected = jax.tree.map(lambda x: x[:2], language["blocks"])
    for one, other in zip(*map(jax.tree.leaves, (params["blocks"], expected)), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(params["embedding"]["kernel"], language["embedding"]["kernel"])
    like = jax.eval_shape(functools.partial(lm.init, config=config), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)


def test_a_new_head_says_nothing():
    odds = odds_of(PARAMS, tokens_of((2, 5)), np.ones((2, 5), bool), MODEL)
    np.testing.assert_array_equal(odds, np.zeros((2, 5)))


def test_log_odds_are_the_evidence_so_far():
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool)
    odds = odds_of(constant(3.0), tokens_of((2, 5)), mask, MODEL)
    np.testing.assert_allclose(odds, [[3, 6, 9, 12, 15], [3, 6, 6, 9, 9]], rtol=1e-6)


def test_evidence_is_read_off_the_hidden_states():
    params, tokens = with_head(normal(1, (8,)), 0.5), tokens_of((2, 5))
    mask = np.ones(tokens.shape, bool)
    hidden = jax.jit(lm.encode, static_argnums=2)(params, tokens, MODEL).reshape(2, 5, 8)
    evidence = np.asarray(hidden) @ np.asarray(normal(1, (8,))) + 0.5
    odds = odds_of(params, tokens, mask, MODEL)
    np.testing.assert_allclose(odds, reward_model.UNIT * np.cumsum(evidence, axis=1), rtol=1e-4)


def test_the_score_of_a_text_is_not_changed_by_padding():
    params, tokens = with_head(normal(1, (8,)), 0.1), tokens_of((3, 5))
    mask = np.ones(tokens.shape, bool)
    expected = score_of(params, tokens, mask, MODEL)
    assert np.std(expected) > 1e-2
    for pad in ((0, 4), (4, 0), (2, 2)):
        wide = np.pad(tokens, ((0, 0), pad), constant_values=7)
        score = score_of(params, wide, np.pad(mask, ((0, 0), pad)), MODEL)
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)


def test_the_score_of_a_prefix_is_its_place_in_the_log_odds():
    params, tokens = with_head(normal(1, (8,)), 0.1), tokens_of((3, 6))
    odds = odds_of(params, tokens, np.ones((3, 6), bool), MODEL)
    for length in (1, 4):
        prefix = tokens[:, :length]
        score = score_of(params, prefix, np.ones(prefix.shape, bool), MODEL)
        np.testing.assert_allclose(score, odds[:, length - 1], rtol=1e-4, atol=1e-5)


def test_masked_tokens_add_nothing_whatever_they_are():
    params, tokens = with_head(normal(1, (8,)), 0.1), tokens_of((2, 6))
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 0]], bool)
    batch = {"tokens": tokens, "mask": mask, "label": np.float32([1, 0])}
    other = batch | {"tokens": np.where(mask, tokens, 3)}
    grads = (slope(params, x, skip=0)[1] for x in (batch, other))
    for one, two in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    score = lambda tokens: score_of(params, tokens, mask, MODEL)
    np.testing.assert_array_equal(score(tokens), score(other["tokens"]))


def test_loss_is_the_logistic_loss_after_every_token_but_the_first():
    # The log-odds after token t are t + 1; counted are 3 and 4 of the first row, 3 of the second.
    batch = {
        "tokens": tokens_of((2, 4)),
        "mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool),
        "label": np.float32([1, 0]),
    }
    loss, _ = slope(constant(1.0), batch, skip=2)
    softplus = lambda x: np.log1p(np.exp(x))
    assert loss == pytest.approx((softplus(-3) + softplus(-4) + softplus(3)) / 3, rel=1e-5)


def test_loss_of_texts_too_short_to_judge_is_zero():
    batch = {"tokens": tokens_of((2, 4)), "mask": np.ones((2, 4), bool), "label": np.ones(2, np.float32)}
    value, grads = slope(constant(1.0), batch, skip=4)
    assert value == 0.0
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


# Document i is END, 100·i + 1, 100·i + 2, ..., END, so that a token says where it stood.
LENGTHS, LABELS = (30, 5, 13), (1, 0, 1)
DOCUMENTS = [np.array([0, *(100 * i + 1 + np.arange(n)), 0]) for i, n in enumerate(LENGTHS)]


def test_snippets_are_pieces_of_documents_with_their_labels():
    texts = reward_model.snippets(0, DOCUMENTS, LABELS, length=12, count=600)
    assert texts["tokens"].shape == texts["mask"].shape == (600, 13)
    assert texts["label"].dtype == np.float32
    starts = {0: [], 1: [], 2: []}
    for tokens, mask, label in zip(*texts.values(), strict=True):
        size = mask.sum()
        assert mask[:size].all()
        assert tokens[0] == 0 and not tokens[size:].any()
        which, start = divmod(tokens[1], 100)
        assert label == LABELS[which]
        assert size - 1 == min(12, LENGTHS[which] + 1)
        np.testing.assert_array_equal(tokens[1:size], DOCUMENTS[which][start : start + size - 1])
        starts[which].append(int(start))
    # From the first token on, and as far as a whole piece fits, the END after it counted.
    assert {which: {*seen} for which, seen in starts.items()} == {0: {*range(1, 21)}, 1: {1}, 2: {1, 2, 3}}
    # One in four at the beginning, and of the others one in twenty.
    assert np.mean(np.array(starts[0]) == 1) == pytest.approx(0.25 + 0.75 / 20, abs=0.08)


def test_snippets_depend_on_the_seed_alone():
    one, same, other = (reward_model.snippets(s, DOCUMENTS, LABELS, 4, 50) for s in (0, 0, 1))
    np.testing.assert_array_equal(one["tokens"], same["tokens"])
    assert (one["tokens"] != other["tokens"]).any()


def test_openings_are_the_first_tokens_of_documents_that_have_them():
    texts = reward_model.openings(DOCUMENTS, LABELS, length=13)
    assert texts["tokens"].tolist() == [[0, *range(1, 14)], [0, *range(201, 214)]]
    assert texts["mask"].all() and texts["mask"].shape == (2, 14)
    assert texts["label"].tolist() == [1, 1]


@pytest.mark.parametrize("batch", [2, *(pytest.param(x, marks=pytest.mark.slow) for x in (5, 8))])
def test_every_text_is_judged_by_its_own_score(batch):
    tokens, mask = tokens_of((5, 6)), tokens_of((5, 6), seed=1) > 4
    mask[:, 0] = True
    params = with_head(normal(1, (8,)), 0.1)
    odds = reward_model.judge(params, {"tokens": tokens, "mask": mask, "label": np.ones(5)}, MODEL, batch)
    expected = score_of(params, tokens, mask, MODEL)
    np.testing.assert_allclose(odds, expected, rtol=1e-4, atol=1e-5)
    assert np.std(expected) > 1e-2


def documents_of(seed, count):
    """Noise in which token 14 means label 1 and token 15 label 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    noise = rng.integers(1, 14, (count, 30))
    telling = rng.random(noise.shape) < 0.3
    bodies = np.where(telling, 15 - labels[:, None], noise)
    return [np.array([0, *body, 0]) for body in bodies], labels


@pytest.mark.slow
def test_it_learns_what_a_token_means():
    train = reward_model.snippets(0, *documents_of(0, 200), length=15, count=60 * 16)
    batches = jax.tree.map(lambda x: x.reshape(60, 16, *x.shape[1:]), train)
    optimizer = optax.adam(3e-2)

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(reward_model.loss)(params, batch, MODEL), state)
        return (optax.apply_updates(params, updates), state), None

    learn = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0])
    texts = reward_model.openings(*documents_of(1, 256), length=15)
    right = lambda params: (reward_model.judge(params, texts, MODEL) > 0) == texts["label"]
    assert np.mean(right(PARAMS)) < 0.7
    assert np.mean(right(learn(PARAMS))) > 0.95
