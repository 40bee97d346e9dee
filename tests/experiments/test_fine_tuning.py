"""Texts packed in rows are classified as each by itself, and what is padding counts nowhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from experiments import text_classification
from experiments.support.text_classification import fine_tuning
from proxlm import lm
from proxlm.lm import trainable
from tests import arrays

MODEL = lm.ModelConfig(vocab_size=9, num_layers=2, width=8, num_heads=2, max_length=16)
TEXTS = [[0, 3], [0, 4, 5, 6], [0, 7, 8], [0, 5, 5, 5, 2], [0, 1]]


def model():
    layers, frozen = trainable.split(arrays.rough(MODEL, scale=0.3), trainable.last_layers(1))
    head = {"kernel": jnp.asarray(arrays.normal(0, (16, 3))), "bias": jnp.asarray(arrays.normal(1, (3,)))}
    return {"lm": layers, "head": head}, frozen


def test_each_text_stands_once_in_a_row_as_a_segment_of_its_own():
    labels = np.array([1, 0, 2, 1, 0])
    order = [3, 1, 0, 4, 2]
    packed = fine_tuning.pack(TEXTS, 8, order, labels)
    found = {}
    for tokens, segments, index, label in zip(*packed.values(), strict=True):
        for place, i in enumerate(index):
            assert (i == fine_tuning.NONE) == (label[place] == fine_tuning.NONE)
            if i != fine_tuning.NONE:
                found[int(i)] = tokens[segments == place + 1].tolist(), label[place]
    assert found == {i: (text, label) for i, (text, label) in enumerate(zip(TEXTS, labels, strict=True))}
    # 5 and 2 tokens; then 4, 2 and no room for 3
    assert packed["index"].tolist() == [[3, 0], [1, 4], [2, -1]]


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"length=4: expected at least 5, the tokens of text 3"):
        fine_tuning.pack(TEXTS, 4, range(5))


def test_packed_texts_are_scored_as_each_by_itself():
    params, frozen = model()
    together = fine_tuning.judge(params, TEXTS, frozen, MODEL, length=8)
    config = MODEL
    for text, scores in zip(TEXTS, together, strict=True):
        states = lm.encode(trainable.join(params["lm"], frozen), jnp.array([text]), config)
        features = np.concatenate([states.mean(axis=0), states[-1]])
        features /= np.sqrt(np.mean(features**2) + 1e-6)
        np.testing.assert_allclose(
            scores, features @ params["head"]["kernel"] + params["head"]["bias"], atol=1e-4
        )


def test_the_loss_is_the_mean_over_texts_and_a_new_head_knows_nothing():
    params, frozen = model()
    labels = np.array([1, 0, 2, 1, 0])
    batch = fine_tuning.pack(TEXTS, 8, range(5), labels)
    scores = fine_tuning.judge(params, TEXTS, frozen, MODEL, length=8)
    likelihood = special.log_softmax(scores, axis=1)[np.arange(5), labels]
    found = float(fine_tuning.loss(params, batch, frozen, MODEL))
    assert found == pytest.approx(-likelihood.mean(), abs=1e-4)
    start = params | {"head": fine_tuning.init_head(8, 3)}
    assert float(fine_tuning.loss(start, batch, frozen, MODEL)) == pytest.approx(np.log(3), abs=1e-6)


def test_steps_are_whole_chunks_of_an_epoch_or_more():
    config = text_classification.Config(tuned_epochs=2)
    rows = fine_tuning.rows_of(500, 64, config)
    assert rows.shape == (80, 12)  # 2 · 500 / 12 = 83
    assert sorted(rows.ravel()[:500]) == [*range(500)]
    assert fine_tuning.rows_of(3, 64, config).shape == (10, 3)
