"""A stream is what `sample` draws, one token at a time."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from tests import arrays

CONFIG = lm.ModelConfig(vocab_size=19, num_layers=2, width=16, num_heads=4, num_kv_heads=2, max_length=12)
PROMPTS = jnp.array([[3, 1, 4], [1, 5, 9]])
SETTINGS = {
    "plain": lm.SamplingConfig(),
    "truncated": lm.SamplingConfig(temperature=0.7, top_k=5, repetition_penalty=1.7, logit_bias={1: 3.0}),
    "greedy": lm.SamplingConfig(greedy=True),
}
sample = jax.jit(lm.sample, static_argnames=("config", "num_tokens"))


@pytest.fixture(scope="module")
def params():
    return arrays.rough(CONFIG, scale=0.35)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x == "truncated" else pytest.mark.slow) for x in SETTINGS]
)
def test_a_stream_is_what_sample_draws(params, name):
    settings = SETTINGS[name]
    tokens = [*lm.stream(jax.random.key(3), params, PROMPTS, CONFIG, 7, sampling=settings)]
    samples = sample(jax.random.key(3), params, PROMPTS, CONFIG, 7, sampling=settings)
    assert np.array_equal(np.stack(tokens, axis=1), samples.tokens[:, 3:])


def test_a_stream_of_unstacked_layers_is_the_same_and_leaves_them_whole(params):
    key, unstacked = jax.random.key(3), {**params, "blocks": lm.unstack(params["blocks"])}
    first, second, third = (
        np.stack([*lm.stream(key, tree, PROMPTS, CONFIG, 7)]) for tree in (params, unstacked, unstacked)
    )
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_a_stream_ends_where_each_row_has_said_a_stop_string(params):
    letters = lambda ids: "".join(chr(97 + token) for token in ids)
    free = np.stack([*lm.stream(jax.random.key(3), params, PROMPTS, CONFIG, 7)], axis=1)
    stops = [letters(free[0, 2:4]), letters(free[1, 3:5])]
    lengths = [min(n for n in range(8) if any(stop in letters(row[:n]) for stop in stops)) for row in free]
    assert len(set(lengths)) == 2 and max(lengths) < 7
    stream = lm.stream(jax.random.key(3), params, PROMPTS, CONFIG, 7, stop_strings=stops, decode=letters)
    expected = np.where(np.arange(7) < np.array(lengths)[:, None], free, 0)[:, : max(lengths)]
    np.testing.assert_array_equal(np.stack([*stream], axis=1), expected)
    for bad, message in {
        ("", letters): "stream: stop_strings must be strings of a character or more, got ''",
        ("a", None): "stream: decode must be a function, got None. It gives",
        (None, letters): "stream: decode must be None without stop_strings",
    }.items():
        with pytest.raises(ValueError, match=message):
            lm.stream(jax.random.key(3), params, PROMPTS, CONFIG, 7, stop_strings=bad[0], decode=bad[1])


def test_a_stream_may_be_left_early(params):
    stream = lm.stream(jax.random.key(3), params, PROMPTS, CONFIG, 7)
    assert len([*itertools.islice(stream, 2)]) == 2


@pytest.mark.parametrize(
    ("prompts", "num_tokens", "settings", "message"),
    [
        (PROMPTS, 10, {}, "13 tokens do not fit"),
        (PROMPTS[:, :0], 2, {}, "B, T ≥ 1"),
        (PROMPTS, 0, {}, "num_tokens must be an integer ≥ 1, got 0"),
        (PROMPTS, 2, {"stop_token": 19}, "stop_token must be from 0 to 18"),
    ],
)
def test_bad_input_is_refused_when_called(params, prompts, num_tokens, settings, message):
    settings = dataclasses.replace(lm.SamplingConfig(), **settings)
    with pytest.raises(ValueError, match=message):
        lm.stream(jax.random.key(0), params, prompts, CONFIG, num_tokens, sampling=settings)
