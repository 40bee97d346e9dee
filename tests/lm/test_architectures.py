"""Architectures of transformers: the same logits, and a config.json read, written or refused by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from proxlm import lm
from proxlm.lm import _architectures, _config_fields
from tests.lm import hub_configs, peer_models

VECTORS = json.loads(peer_models.PATH.read_text(encoding="utf-8"))


def params_of(fields):
    """The config of some fields, and the parameters that the weights of peer_models make."""
    config = _config_fields.from_fields(fields, 100)
    layout = _architectures.ARCHITECTURES[fields["model_type"]].layout
    tensors = {
        slot.name: peer_models.weights(slot.name, slot.shape) for slot in lm.pretrained.slots(config, layout)
    }
    return config, lm.pretrained.from_tensors(tensors, config, fields["model_type"])


@pytest.mark.parametrize("case", peer_models.CASES)
def test_logits_are_those_of_transformers(case):
    config, params = params_of(VECTORS[case]["fields"])
    config = dataclasses.replace(config, unroll=1)  # a layer to compile
    tokens, mask = peer_models.inputs()
    logits = jax.jit(lm.apply, static_argnames="config")(params, tokens, config=config, mask=mask)
    expected = np.array(VECTORS[case]["logits"])
    np.testing.assert_allclose(logits[:, -1], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", hub_configs.CONFIGS)
def test_fields_of_older_files_mean_what_they_did(name):
    fields, expected = hub_configs.CONFIGS[name]
    config = _config_fields.from_fields(fields, 10**4)
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", hub_configs.CONFIGS)
def test_transformers_reads_older_files_as_we_do(name):
    transformers = pytest.importorskip("transformers")
    fields, _ = hub_configs.CONFIGS[name]
    theirs = transformers.AutoConfig.for_model(**fields).to_dict()
    assert _config_fields.from_fields(theirs, 10**4) == _config_fields.from_fields(fields, 10**4)
