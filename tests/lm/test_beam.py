"""Beam search against greedy decoding, against scoring, and against all sequences there are."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm._decoding import rows
from tests import arrays

CONFIG = lm.ModelConfig(
    vocab_size=4,
    num_layers=1,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    max_length=12,
    qk_norm="head",
    tie_embeddings=False,
)
PARAMS = arrays.rough(CONFIG, scale=0.7)
PROMPTS = np.random.default_rng(0).integers(0, 4, (3, 5))
RAGGED = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0]], bool)
LENGTH, STOP = 4, 0
WIDEST = 4 ** (LENGTH - 1)

search = jax.jit(
    functools.partial(lm.beam_search, PARAMS, config=CONFIG, num_tokens=LENGTH),
    static_argnames=("width", "stop_token"),
)
score = jax.jit(functools.partial(lm.score, PARAMS, config=CONFIG, start=5))


def everything(row):
    """All continuations of a prompt with their masks and log-probabilities, one row each."""
    tokens = np.array(list(itertools.product(range(4), repeat=LENGTH)))
    mask = np.ones(tokens.shape, bool)
    mask[:, 1:] = np.cumprod(tokens != STOP, axis=1, dtype=bool)[:, :-1]
    alike = lambda x: np.broadcast_to(x, (len(tokens), 5))
    whole = np.concatenate([alike(PROMPTS[row]), tokens], axis=1)
    valid = np.concatenate([alike(RAGGED[row]), np.ones(tokens.shape, bool)], axis=1)
    whole, valid = rows.align(whole, valid)
    log_probs = np.where(mask, score(whole, mask=valid).log_probs, 0.0).sum(axis=1)
    return np.where(mask, tokens, 0), mask, log_probs


def test_one_beam_is_greedy_decoding():
    beams = search(PROMPTS, width=1, prompt_mask=RAGGED, stop_token=STOP)
    sampling = lm.SamplingConfig(greedy=True, stop_token=STOP)
    greedy = jax.jit(functools.partial(lm.sample, config=CONFIG, num_tokens=LENGTH))(
        jax.random.key(0), PARAMS, PROMPTS, prompt_mask=RAGGED, sampling=sampling
    )
    np.testing.assert_array_equal(beams.tokens[:, 0], greedy.tokens[:, 5:])
    np.testing.assert_array_equal(beams.mask[:, 0], greedy.response_mask)
    np.testing.assert_array_equal(beams.ended[:, 0], greedy.ended)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_widest_search_finds_the_best_of_all_sequences(penalty):
    beams = search(PROMPTS, width=WIDEST, prompt_mask=RAGGED, stop_token=STOP, length_penalty=penalty)
    for row in range(3):
        tokens, mask, log_probs = everything(row)
        best = np.argmax(log_probs / mask.sum(axis=1) ** penalty)
        np.testing.assert_array_equal(beams.tokens[row, 0], tokens[best])
        np.testing.assert_array_equal(beams.mask[row, 0], mask[best])
        np.testing.assert_allclose(beams.log_probs[row, 0], log_probs[best], rtol=1e-4)


def test_beams_are_distinct_in_order_and_as_likely_as_scoring_says():
    beams = search(PROMPTS, width=WIDEST, prompt_mask=RAGGED, stop_token=STOP)
    assert np.all(np.diff(beams.log_probs, axis=1) <= 0)
    for row in range(3):
        tokens, _, log_probs = everything(row)
        known = dict(zip(map(tuple, tokens.tolist()), log_probs, strict=True))
        found = [tuple(beam) for beam in beams.tokens[row].tolist()]
        assert len(set(found)) == WIDEST
        expected = [known[beam] for beam in found]
        np.testing.assert_allclose(beams.log_probs[row], expected, rtol=1e-4, atol=1e-5)


def test_a_length_penalty_prefers_longer_beams():
    length = lambda penalty: np.sum(
        search(PROMPTS, width=WIDEST, prompt_mask=RAGGED, stop_token=STOP, length_penalty=penalty).mask[:, 0]
    )
    assert length(0.0) < length(4.0)


@pytest.mark.slow
def test_beams_without_a_continuation_are_impossible():
    beams = search(PROMPTS[:1], width=5 * WIDEST, prompt_mask=RAGGED[:1], stop_token=None)
    assert jnp.isfinite(beams.log_probs).sum() == 4**LENGTH


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="width must be an integer ≥ 1, got 0"):
        lm.beam_search(PARAMS, PROMPTS, CONFIG, LENGTH, width=0)
    with pytest.raises(ValueError, match="max_length=12"):
        lm.beam_search(PARAMS, PROMPTS, CONFIG, 8, width=1)
    with pytest.raises(ValueError, match="stop_token must be from 0 to 3, the vocabulary, or None, got 4"):
        lm.beam_search(PARAMS, PROMPTS, CONFIG, LENGTH, width=1, stop_token=4)
