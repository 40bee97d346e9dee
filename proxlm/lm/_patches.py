"""Patches of a checkpoint: changed weights by the names of other libraries, for samplers updated in place."""

import os
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.lm import _parameters, _weight_files, pretrained
from proxlm.lm._config import ModelConfig, Params

FORMAT, VERSION, ENCODING = "sparse_weight_patch", "1", "gap_delta"


@_validation.typed
def save_patch(
    path: str | os.PathLike[str],
    base: Params,
    params: Params,
    config: ModelConfig,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    model_version: int = 0,
) -> None:
    """Writes the weights that changed by the names of a Hugging Face checkpoint, as samplers take them.

    Of each tensor of the checkpoint that changed the file of safetensors holds `NAME.val`, the new weights,
    and `NAME.idx`, how many are skipped before each in the flattened tensor, as uint16, or uint32 where a gap
    needs it: cumsum(idx + 1) − 1 and the weights are what `CheckpointWeightPatch` of vLLM 0.33 is made of
    (vllm-project/vllm#50723), whose models then hold the bits of `params` saved whole. Keys and metadata are
    those of TRL's delta sync as proposed (huggingface/trl#5937, encoding "gap_delta"). Unlike the file of
    `save` it holds weights and not changes, no checksum of the base, and is not read here.

    Args:
      base: what the sampler holds.
      params: what it is to hold, with nothing split off and no factors.
      dtype: of the sampler's weights: what rounds to the weight it has is left out; None: of `params`.
      model_version: a number that the reader logs.

    Raises:
      ValueError: if parameters do not fit the config, or no architecture has its switches.
      ImportError: if safetensors is not installed.

    >>> import tempfile, jax, safetensors.numpy
    >>> from proxlm import lm
    >>> config = ModelConfig(vocab_size=16, num_layers=1, width=8, num_heads=2)
    >>> base = lm.init(jax.random.key(0), config)
    >>> scale = base["norm"]["scale"]
    >>> params = base | {"norm": {"scale": scale.at[jnp.array([1, 4])].set(0.5)}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_patch(f"{folder}/patch.safetensors", base, params, config)
    ...     patch = safetensors.numpy.load_file(f"{folder}/patch.safetensors")
    >>> {name: x.tolist() for name, x in sorted(patch.items())}
    {'model.norm.weight.idx': [1, 2], 'model.norm.weight.val': [0.5, 0.5]}
    """
    _weight_files.library("delta.save_patch")
    _validation.integer(0, "delta.save_patch", model_version=model_version)
    try:
        for tree in (base, params):
            _parameters.check(tree, config)
        layout = pretrained.layout_of(None, config)
    except ValueError as error:
        raise ValueError(f"delta.save_patch: {error}") from error
    held: dict[str, np.ndarray] = {}
    sizes = []
    for name, old, new in _pairs(base, params, config, layout, dtype):
        places = np.flatnonzero(_weight_files.bits(old) != _weight_files.bits(new))
        sizes.append((len(places), old.size))
        if len(places):
            gaps = np.diff(places, prepend=-1) - 1
            held[f"{name}.idx"] = gaps.astype(np.uint16 if gaps.max() < 2**16 else np.uint32)
            held[f"{name}.val"] = new[places]
    changed, count = np.sum(sizes, axis=0).tolist()
    about = {"format": FORMAT, "version": VERSION, "encoding": ENCODING, "sparse": True}
    about |= {"model_version": model_version, "num_changed_params": len(held) // 2}
    about |= {"total_changed_elements": changed, "total_elements": count, "sparsity": 1 - changed / count}
    _weight_files.write_one(path, held, {name: str(value) for name, value in about.items()})


def _pairs(base, params, config, layout, dtype) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, old and new weights of each tensor of the checkpoint, flat and as the sampler holds them."""
    before, after = (pretrained.write(tree, config, layout) for tree in (base, params))
    for (name, old), (_, new) in zip(before, after, strict=True):
        kind = jnp.dtype(dtype or new.dtype)
        yield name, np.ravel(old).astype(kind), np.ravel(new).astype(kind)
