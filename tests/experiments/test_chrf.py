"""The reward of translations is sacrebleu's sentence chrF."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu

from experiments.support.data import tokenization
from experiments.support.translation import chrf

TEXTS = [
    "And he said unto them, Whither goest thou?",
    "He said to them, 'Where are you going?'",
    "the the the the the",
    "the thee",
    "a",
    "abcde",
    "Yahweh is my shepherd: I shall lack nothing.",
    "",
]
LENGTH = 48


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_bpe(TEXTS[:2], 270)


def points(text):
    letters = [ord(c) for c in "".join(text.split())]
    return np.array(letters + [0] * (LENGTH - len(letters)), np.int32)


def test_the_score_is_sacrebleus_for_every_pair():
    spelt = jnp.stack([points(text) for text in TEXTS])
    every = jax.jit(jax.vmap(jax.vmap(chrf.score, (None, 0)), (0, None)))
    expected = [[sacrebleu.sentence_chrf(one, [other]).score for other in TEXTS] for one in TEXTS]
    np.testing.assert_allclose(100 * every(spelt, spelt), expected, rtol=1e-5, atol=1e-4)


def test_tokens_spell_their_text_without_blanks_and_what_is_masked(tokenizer):
    table = chrf.characters(tokenizer)
    tokens = tokenization.encode(tokenizer, TEXTS[:1])[0]
    mask = np.ones(len(tokens), bool)
    np.testing.assert_array_equal(chrf.spell(tokens, mask, table, LENGTH), points(TEXTS[0]))
    mask[5:] = False
    text = tokenizer.decode(tokens[:5].tolist())
    np.testing.assert_array_equal(chrf.spell(tokens, mask, table, LENGTH), points(text))


def test_what_does_not_fit_is_left_out(tokenizer):
    table = chrf.characters(tokenizer)
    tokens = tokenization.encode(tokenizer, TEXTS[:1])[0]
    spelt = chrf.spell(tokens, np.ones(len(tokens), bool), table, 7)
    np.testing.assert_array_equal(spelt, points(TEXTS[0])[:7])
