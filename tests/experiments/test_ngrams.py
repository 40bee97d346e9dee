"""Texts as bags of phrases: what counts how much, and what a penalty leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.support.text_classification import ngrams


def test_a_text_is_its_phrases_and_the_rare_ones_count_more():
    known = ngrams.known(["so! so bad", "so! so good", "bad", "fine"], 2, 2)
    shared = ["! so", "so", "so !", "!", "bad", "bad >"]
    assert sorted(known.names) == sorted(["", "<", ">", "< so", *shared])
    weight = lambda name: known.weights[known.index[name]]
    assert [weight(""), weight("<")] == [0.0, 0.0]  # all have a beginning
    assert [weight("so"), weight("bad >")] == pytest.approx([np.log(4 / 2)] * 2)
    numbers = lambda *names: [known.index[name] for name in names]
    bag = ngrams.bags(["Bad!", "so"], known.index, 2, 6)
    assert sorted(bag[0]) == sorted([0, 0, *numbers("<", "!", "bad", ">")])
    assert sorted(bag[1]) == sorted([0, 0, *numbers("<", "< so", "so", ">")])
    some = ngrams.bags(["Bad!"] * 50, known.index, 2, 3)
    assert len({tuple(sorted(row)) for row in some}) == 4


def test_the_phrases_of_a_text_count_one_together():
    weights = np.array([0.0, 3.0, 4.0, 9.0], np.float32)
    kernel = jnp.array([[7.0, 7.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    params = {"kernel": kernel, "bias": jnp.array([0.0, 0.5])}
    bag = np.array([[1, 2, 0], [2, 0, 0], [0, 0, 0]], np.int32)
    scores = ngrams.judge(params, bag, weights, batch=2)
    assert np.allclose(scores, [[0.6, 0.8 + 0.5], [0.0, 1.5], [0.0, 0.5]], atol=1e-6)


def test_the_penalty_leaves_the_phrases_that_say_something():
    bag = jnp.array([[1, 3], [2, 3], [1, 3], [2, 3]])  # 3 is in every text
    batch = {"bag": bag, "label": jnp.array([0, 1, 0, 1])}
    params, optimizer = ngrams.init(4, 2), ngrams.chain(0.3, 0.01)
    gradient = jax.jit(jax.grad(lambda params: ngrams.loss(params, batch, jnp.ones(4))))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(50):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    assert np.any(np.asarray(params["kernel"]), axis=1).tolist() == [False, True, True, False]
    known = ngrams.Known(("", "a", "b", "c"), {}, np.ones(4, np.float32))
    assert ngrams.kept(params) == 2
    assert ngrams.telling(params, np.asarray(bag), known, least=2) == [["a"], ["b"]]
