"""Shapes of models that people have, and chips by the numbers of their makers."""

from typing import Any, NamedTuple

from proxlm import lm


class Chip(NamedTuple):
    """One device.

    Attributes:
      memory: GiB.
      flops: dense bfloat16 products a second.
      bandwidth: of its memory, bytes a second.
      link: to its neighbours, bytes a second in one direction.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float


# NVIDIA's data sheets, NVLink 4 in one direction; Google's pages of TPUs, one axis of the torus in both.
CHIPS = {
    "h100": Chip(80e9 / 2**30, 989e12, 3.35e12, 450e9),
    "h200": Chip(141e9 / 2**30, 989e12, 4.8e12, 450e9),
    "a100": Chip(80e9 / 2**30, 312e12, 2.0e12, 300e9),
    "v5e": Chip(16.0, 197e12, 0.82e12, 90e9),
    "v5p": Chip(95.0, 459e12, 2.77e12, 180e9),
}

_LLAMA: dict[str, Any] = {
    "tie_embeddings": False,
    "rope_theta": 5e5,
    "vocab_size": 128_256,
    "num_kv_heads": 8,
}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "num_layers": 2, "width": 64, "num_heads": 4, "hidden_width": 128},
    "smollm2-135m": {
        "vocab_size": 49_152,
        "num_layers": 30,
        "width": 576,
        "num_heads": 9,
        "num_kv_heads": 3,
        "hidden_width": 1536,
    },
    "llama-1b": _LLAMA
    | {"num_layers": 16, "width": 2048, "num_heads": 32, "hidden_width": 8192, "tie_embeddings": True},
    "llama-8b": _LLAMA | {"num_layers": 32, "width": 4096, "num_heads": 32, "hidden_width": 14_336},
    "llama-70b": _LLAMA | {"num_layers": 80, "width": 8192, "num_heads": 64, "hidden_width": 28_672},
}


def config_of(name: str, tokens: int, dtype: str, value_head: bool) -> lm.ModelConfig:
    """The configuration of a model by its name, for rows of so many tokens, its layers rematerialised.

    >>> config_of("tiny", 64, "float32", False).num_layers
    2
    """
    shape = MODELS[name] | {"max_length": tokens, "compute_dtype": dtype, "value_head": value_head}
    return lm.ModelConfig(**shape, remat=True, unroll=1)
