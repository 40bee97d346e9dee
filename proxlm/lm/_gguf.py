"""A model and its tokenizer in a GGUF file: its metadata in the terms of transformers' config.json."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from proxlm.lm import _architectures, _gguf_file, _gguf_tokenizer
from proxlm.lm._chat import ChatTemplate
from proxlm.lm._folder import Source
from proxlm.lm._gguf_file import invalid

SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
NUMBERS = {"rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
OPTIONAL = ("vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length")
OPTIONAL += ("rope.dimension_count",)
# Fields of some architectures, with the defaults of the format; ...: it has to be given.
OWN: dict[str, dict[str, tuple[str, Any]]] = {
    "gemma2": {
        "attention.sliding_window": ("sliding_window", 4096),
        "attn_logit_softcapping": ("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": ("final_logit_softcapping", 30.0),
    },
    "gemma3": {
        "attention.sliding_window": ("sliding_window", ...),
        "rope.freq_base_swa": ("rope_local_base_freq", 1e4),
    },
}
# Models whose queries are scaled by the width per head, as llama.cpp knows them: by their depth.
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
SCALING = ("type", "factor", "original_context_length", "attn_factor", "finetuned")
# What is not implemented, with the values that ask for nothing; every other field is refused.
NEUTRAL = {
    "rope.scale_linear": (0, 1),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
}
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read(path: pathlib.Path) -> Source:
    """Reads a GGUF file.

    Every count, length and offset is checked against the size of the file before it is used. Fields
    that may be missing get the defaults of the format. Source: the GGUF specification of ggml.
    """
    fields, tensors = _gguf_file.read(path)
    kind = fields.get("general.architecture")
    if not isinstance(kind, str) or kind not in _architectures.GGUF:
        raise invalid("general.architecture", kind, f"one of {tuple(_architectures.GGUF)}")
    model_type, layout = _architectures.GGUF[kind]
    config = {**_config(kind, fields, tensors), "model_type": model_type}
    factors = tensors.pop("rope_freqs.weight", None)
    if factors is not None:
        config["rope_scaling"] = _llama_3(np.asarray(factors), config)
    ids = _token_ids(fields, config["vocab_size"])
    _gguf_tokenizer.check(fields)
    tokenizer = _gguf_tokenizer.read(fields, ids)
    template = fields.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise invalid("tokenizer.chat_template", template, "a string")
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    token = lambda key: "" if tokenizer is None else str(tokenizer.id_to_token(ids[key]))
    known = {name: token(key) for key, name in names.items() if key in ids}
    chat = None if template is None else ChatTemplate(template, known)
    stops = [ids[name] for name in ("eos", "eot", "eom") if name in ids]
    return Source(config, tensors, layout, tokenizer, chat, stops)


def _config(kind: str, fields: Mapping[str, Any], tensors: Mapping[str, _gguf_file.Tensor]) -> dict[str, Any]:
    """The fields of a config.json, from the metadata."""
    own = {name.removeprefix(f"{kind}."): x for name, x in fields.items() if name.startswith(f"{kind}.")}
    extra = OWN.get(kind, {})
    scaling = {f"rope.scaling.{name}" for name in SCALING}
    for name, value in own.items():
        if name in SIZES or name in NUMBERS or name in OPTIONAL or name in extra or name in scaling:
            continue
        if _plain(value) not in NEUTRAL.get(name, ()):
            raise invalid(f"{kind}.{name}", value, "absent or neutral", "It is not implemented.")
    config = _shape(kind, own, fields, tensors)
    config["rms_norm_eps"] = _number(own, kind, "attention.layer_norm_rms_epsilon", None, 1.0)
    config["rope_theta"] = _number(own, kind, "rope.freq_base", 1e4, math.inf)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["rope_scaling"] = _scaling(own, kind)
    if "blk.0.attn_q.bias" in tensors and kind != "qwen2":
        config["attention_bias"] = True
    for name, (target, default) in extra.items():
        if (value := own.get(name, default)) is ...:
            raise invalid(f"{kind}.{name}", None, "given")
        config[target] = value
    if kind in SCALED_BY_WIDTH:
        by_width = config["num_hidden_layers"] == SCALED_BY_WIDTH[kind]
        width = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = width if by_width else config["head_dim"]
    return config


def _shape(kind, own, fields, tensors) -> dict[str, Any]:
    """The sizes of the model, each held to the tensors that have it."""
    integer = lambda name, default: _integer(own, kind, name, default)
    sizes = {target: integer(name, None) for name, target in SIZES.items()}
    layers, width = sizes["num_hidden_layers"], sizes["hidden_size"]
    heads = sizes["num_attention_heads"]
    if layers * 9 > len(tensors):
        expected = f"at most {len(tensors) // 9}, as the file has {len(tensors)} tensors"
        raise invalid(f"{kind}.block_count", layers, expected, _gguf_file.DAMAGED)
    tokens = _gguf_tokenizer.strings(fields, "tokenizer.ggml.tokens")
    vocab_size = integer("vocab_size", tokens.count if tokens else None)
    if tokens and tokens.count != vocab_size:
        raise invalid(
            f"{kind}.vocab_size", vocab_size, f"{tokens.count}, the number of tokenizer.ggml.tokens"
        )
    _check_sizes(kind, vocab_size, width, tensors.get("token_embd.weight"))
    kv_heads = integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise invalid(f"{kind}.attention.head_count_kv", kv_heads, f"a divisor of head_count={heads}")
    if "attention.key_length" not in own and width % heads:
        raise invalid(f"{kind}.attention.head_count", heads, f"a divisor of embedding_length={width}")
    head_width = integer("attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (given := integer(name, head_width)) != head_width:
            raise invalid(
                f"{kind}.{name}", given, f"{head_width}, the width of a head", "It is not implemented."
            )
    return {**sizes, "vocab_size": vocab_size, "num_key_value_heads": kv_heads, "head_dim": head_width}


def _check_sizes(kind: str, vocab_size: int, width: int, embedding: _gguf_file.Tensor | None) -> None:
    """Checks the two sizes that the embedding has."""
    shape = embedding.shape if embedding else None
    if shape is None or len(shape) != 2:
        raise invalid("tensor token_embd.weight", shape, "there, with two axes", _gguf_file.DAMAGED)
    names = (f"{kind}.vocab_size, or the length of tokenizer.ggml.tokens,", f"{kind}.embedding_length")
    for name, given, size in zip(names, (vocab_size, width), shape, strict=True):
        if given != size:
            raise invalid(name, given, f"{size}, as token_embd.weight has it")


def _scaling(own: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """The scaling of RoPE that the metadata asks for."""
    name = own.get("rope.scaling.type", "none")
    if name == "none":
        if _plain(given := own.get("rope.scaling.factor", 1)) not in (0, 1):
            raise invalid(f"{kind}.rope.scaling.factor", given, "1 without a type")
        return None
    if name not in ("linear", "yarn"):
        raise invalid(
            f"{kind}.rope.scaling.type", name, "'none', 'linear' or 'yarn'", "It is not implemented."
        )
    factor = _number(own, kind, "rope.scaling.factor", None, 1e6)
    parts = {"rope_type": name, "factor": factor}
    if name == "yarn":
        length = "rope.scaling.original_context_length"
        parts["original_max_position_embeddings"] = _integer(own, kind, length, None)
        given = _number(own, kind, "rope.scaling.attn_factor", 1.0, math.inf)
        parts["attention_factor"] = given * (1 + 0.1 * math.log(max(factor, 1.0)))
    return parts


def _llama_3(factors: np.ndarray, config: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later, of which a file holds what it divides the frequencies by."""
    rope = {"rope_type": "llama3", "factor": float(np.max(factors)), **LLAMA_3}
    frequency = config["rope_theta"] ** (-np.arange(0, config["head_dim"], 2) / config["head_dim"])
    turns = LLAMA_3["original_max_position_embeddings"] * frequency / (2 * math.pi)
    share = np.clip((turns - 1.0) / 3.0, 0.0, 1.0)
    expected = 1 / (share + (1 - share) / rope["factor"])
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise invalid("tensor rope_freqs.weight", factors, "that of Llama 3", "It is not implemented.")
    return rope


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else None


def _integer(own: Mapping[str, Any], kind: str, name: str, default: int | None) -> int:
    value = own.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise invalid(f"{kind}.{name}", value, "an integer from 1 to 2^31 - 1")
    return value


def _number(own: Mapping[str, Any], kind: str, name: str, default: float | None, most: float) -> float:
    value = own.get(name, default)
    if not isinstance(value, float) or not 0 < value < most:
        raise invalid(f"{kind}.{name}", value, f"a number above 0 and below {most}")
    return value


def _token_ids(fields: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """The ids of special tokens, by kind."""
    ids = {}
    for kind in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        name = f"tokenizer.ggml.{kind}_token_id"
        if (value := fields.get(name)) is not None:
            if not isinstance(value, int) or not 0 <= value < vocab_size:
                raise invalid(name, value, f"a token below {vocab_size}")
            ids[kind] = value
    return ids
