"""Features of words and texts do not depend on the other texts of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.support.models import smollm
from experiments.support.text_classification import smollm_features
from proxlm import lm
from tests import arrays

MODEL = lm.ModelConfig(vocab_size=9, num_layers=1, width=8, num_heads=2, max_length=16)


def test_texts_are_read_part_by_part_and_a_part_only_once(tmp_path):
    config = lm.ModelConfig(vocab_size=9, num_layers=2, width=8, num_heads=2)
    params = arrays.rough(config, scale=0.3)
    model = lm.Pretrained(params, config, None, (0,))
    rows = [[0, 3], [0, 4, 5, 6], [0, 7, 8]]
    params, config = smollm.first_layers(model, 1, 4)
    read = lambda: smollm.states_by_parts(params, rows, config, tmp_path, part=2, batch=64)
    first = read()
    hidden = jax.jit(lm.hidden_states, static_argnums=2)(params, jnp.array([[0, 7, 8]]), config)
    hidden = np.asarray(hidden)[0].reshape(3, 8)[1:]
    expected = hidden / np.sqrt(np.mean(np.square(hidden), axis=1, keepdims=True) + 1e-6)
    assert np.allclose(first[2], expected.mean(axis=0), atol=1e-5)
    changed = first[:2] + 1
    np.save(tmp_path / "texts-0.npy", changed)
    (tmp_path / "texts-2.npy").unlink()
    assert np.array_equal(read(), np.concatenate([changed, first[2:]]))


def test_a_model_has_no_more_layers_than_it_has():
    model = lm.Pretrained({}, MODEL, None, (0,))
    with pytest.raises(ValueError, match="num_layers=2: expected 1 to 1"):
        smollm.first_layers(model, 2, 8)


def test_word_vectors_are_the_same_in_any_company():
    config = lm.ModelConfig(vocab_size=9, num_layers=1, width=8, num_heads=2, max_length=8)
    params = lm.init(jax.random.key(0), config)
    rows = [[0, 3], [0, 4, 5, 6], [0, 7, 8]]
    together = smollm.mean_states(params, rows, config, batch=2)
    alone = smollm.mean_states(params, rows[1:2], config, batch=2)
    assert np.allclose(together[1], alone[0], atol=1e-5)
    assert np.allclose(jnp.mean(jnp.square(together[0])), 1.0, atol=1e-2)


def test_principal_components_keep_what_varies_most():
    rng = np.random.default_rng(0)
    parts = smollm_features.principal(rng.normal(size=(500, 4)) * [1, 9, 0.1, 5], 2, 0.02)
    assert parts.shape == (500, 2)
    assert np.allclose(parts.std(axis=0), 0.02)
    assert np.allclose(np.corrcoef(parts.T), np.eye(2), atol=1e-6)
