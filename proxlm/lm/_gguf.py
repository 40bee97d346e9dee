"""A model with its tokenizer from a GGUF file of a Llama."""

import importlib.util
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from proxlm.lm import _gguf_file, pretrained
from proxlm.lm._config import ModelConfig, Params
from proxlm.lm._gguf_file import invalid

if TYPE_CHECKING:
    import tokenizers

CONTROL = 3  # the type of tokens that no text is made of
SIZES = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
OPTIONAL = ("vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length")
NUMBERS = ("rope.dimension_count", "rope.freq_base", "attention.layer_norm_rms_epsilon")
# What is not implemented, with the values that ask for nothing; every other field is refused.
NEUTRAL = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (0, 1),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
}
PRE_TOKENIZERS = ("default", "smollm")
# How llama.cpp cuts a text where a file does not say how, one pattern after the other.
DEFAULT_PATTERNS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


class Pretrained(NamedTuple):
    """A language model with its tokenizer.

    Attributes:
      params: of the shape of `lm.init`.
      config: its `ModelConfig`.
      tokenizer: None where the file has none.
      stops: the tokens that end a text, ascending.
    """

    params: Params
    config: ModelConfig
    tokenizer: "tokenizers.Tokenizer | None"
    stops: tuple[int, ...]


def from_gguf(path: str | os.PathLike[str]) -> Pretrained:
    """Reads a model and its tokenizer from a GGUF file of a Llama, quantised or not.

    Every count, length and offset is checked against the size of the file before it is used, and
    weights are decoded to float32 one at a time. Fields that may be missing get the defaults of the
    format. Tokenizers are byte-level BPEs whose `tokenizer.ggml.pre` is "smollm" or "default".

    Needs gguf and tokenizers: `pip install proxlm[models]`.

    Args:
      path: the file.

    Raises:
      ValueError: if the file is damaged, or a field asks for what is not implemented: another
        architecture, a sliding window, scaled RoPE, experts, another tokenizer.
      ImportError: if gguf or tokenizers is not installed.

    Source: the GGUF specification of ggml.

    >>> model = from_gguf("model.gguf")  # doctest: +SKIP
    >>> logits = lm.apply(model.params, tokens, model.config)  # doctest: +SKIP
    """
    for name in ("gguf", "tokenizers"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"from_gguf needs {name}: pip install proxlm[models]")
    try:
        fields, tensors = _gguf_file.read(path)
        config = _config(fields, tensors)
        stops = _stops(fields, config.vocab_size)
        _check_tokenizer(fields)
        params = pretrained.from_tensors(tensors, config, "gguf:llama")
        return Pretrained(params, config, _tokenizer(fields), stops)
    except ValueError as error:
        raise ValueError(f"from_gguf: {path}: {error}") from error


def _config(fields: Mapping[str, Any], tensors: Mapping[str, _gguf_file.Tensor]) -> ModelConfig:
    """The model's config, from the metadata."""
    if (given := fields.get("general.architecture")) != "llama":
        raise invalid("general.architecture", given, "'llama'", "No other one is implemented.")
    own = {name.removeprefix("llama."): x for name, x in fields.items() if name.startswith("llama.")}
    for name, value in own.items():
        if name not in (*SIZES, *OPTIONAL, *NUMBERS) and _plain(value) not in NEUTRAL.get(name, ()):
            raise invalid(f"llama.{name}", value, "absent or neutral", "It is not implemented.")
    sizes = {name: _integer(own, name, None) for name in SIZES}
    layers, width, heads = sizes["block_count"], sizes["embedding_length"], sizes["attention.head_count"]
    if layers * 9 > len(tensors):
        expected = f"at most {len(tensors) // 9}, as the file has {len(tensors)} tensors"
        raise invalid("llama.block_count", layers, expected, _gguf_file.DAMAGED)
    tokens = _strings(fields, "tokenizer.ggml.tokens")
    vocab_size = _integer(own, "vocab_size", tokens.count if tokens else None)
    if tokens and tokens.count != vocab_size:
        raise invalid("llama.vocab_size", vocab_size, f"{tokens.count}, the number of tokenizer.ggml.tokens")
    _check_sizes(vocab_size, width, tensors.get("token_embd.weight"))
    kv_heads = _integer(own, "attention.head_count_kv", heads)
    if heads % kv_heads:
        raise invalid("llama.attention.head_count_kv", kv_heads, f"a divisor of head_count={heads}")
    if "attention.key_length" not in own and width % heads:
        raise invalid("llama.attention.head_count", heads, f"a divisor of embedding_length={width}")
    head_width = _integer(own, "attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (given := _integer(own, name, head_width)) != head_width:
            raise invalid(
                f"llama.{name}", given, f"{head_width}, the width of a head", "It is not implemented."
            )
    return ModelConfig(
        vocab_size,
        num_layers=layers,
        width=width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=head_width,
        hidden_width=sizes["feed_forward_length"],
        max_length=sizes["context_length"],
        rope_theta=_number(own, "rope.freq_base", 1e4, math.inf),
        norm_epsilon=_number(own, "attention.layer_norm_rms_epsilon", None, 1.0),
        tie_embeddings="output.weight" not in tensors,
    )


def _check_sizes(vocab_size: int, width: int, embedding: _gguf_file.Tensor | None) -> None:
    """Checks the two sizes that the embedding has."""
    shape = embedding.shape if embedding else None
    if shape is None or len(shape) != 2:
        raise invalid("tensor token_embd.weight", shape, "there, with two axes", _gguf_file.DAMAGED)
    names = ("llama.vocab_size, or the length of tokenizer.ggml.tokens,", "llama.embedding_length")
    for name, given, size in zip(names, (vocab_size, width), shape, strict=True):
        if given != size:
            raise invalid(name, given, f"{size}, as token_embd.weight has it")


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else None


def _integer(own: Mapping[str, Any], name: str, default: int | None) -> int:
    value = own.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise invalid(f"llama.{name}", value, "an integer from 1 to 2^31 - 1")
    return value


def _number(own: Mapping[str, Any], name: str, default: float | None, most: float) -> float:
    value = own.get(name, default)
    if not isinstance(value, float) or not 0 < value < most:
        raise invalid(f"llama.{name}", value, f"a number above 0 and below {most}")
    return value


def _stops(fields: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """The ids of the tokens that end a text, a turn or a message; bos is checked with them."""
    ids = {}
    for kind in ("bos", "eos", "eot", "eom"):
        name = f"tokenizer.ggml.{kind}_token_id"
        if (value := fields.get(name)) is not None:
            if not isinstance(value, int) or not 0 <= value < vocab_size:
                raise invalid(name, value, f"a token below {vocab_size}")
            ids[kind] = value
    ids.pop("bos", None)
    return tuple(sorted(set(ids.values())))


def _strings(fields: Mapping[str, Any], name: str) -> _gguf_file.Strings | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, _gguf_file.Strings):
        raise invalid(name, value, "an array of strings")
    return value


def _check_tokenizer(fields: Mapping[str, Any]) -> None:
    """Checks the kind of the tokenizer, before weights are read."""
    for name, known in (("model", ("gpt2",)), ("pre", PRE_TOKENIZERS)):
        value = fields.get(f"tokenizer.ggml.{name}", known[0])
        if not isinstance(value, str) or value not in known:
            remedy = "No other tokenizer is implemented."
            raise invalid(f"tokenizer.ggml.{name}", value, " or ".join(map(repr, known)), remedy)


def _tokenizer(fields: Mapping[str, Any]) -> "tokenizers.Tokenizer | None":
    """The byte-level BPE, or None where there are no tokens."""
    import tokenizers
    from tokenizers import decoders, models

    strings = _strings(fields, "tokenizer.ggml.tokens")
    if strings is None:
        return None
    tokens = list(strings)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise invalid("tokenizer.ggml.tokens", len(vocab), f"{len(tokens)} different strings")
    kinds = fields.get("tokenizer.ggml.token_type", ())
    if "tokenizer.ggml.token_type" in fields and len(kinds) != len(tokens):
        raise invalid("length of tokenizer.ggml.token_type", len(kinds), f"{len(tokens)}, as of the tokens")
    result = tokenizers.Tokenizer(models.BPE(vocab, _merges(fields, vocab)))
    result.pre_tokenizer = _pre_tokenizer(fields.get("tokenizer.ggml.pre", PRE_TOKENIZERS[0]))
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == CONTROL])  # noqa: B905
    return result


def _merges(fields: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs that the BPE merges, each of them and their sum tokens of the vocabulary."""
    name = "tokenizer.ggml.merges"
    strings = _strings(fields, name)
    # A token of n characters is the sum of n - 1 pairs at most.
    most = sum(len(token) for token in vocab)
    if strings is not None and strings.count > most:
        raise invalid(f"length of {name}", strings.count, f"at most {most}, the pairs that tokens consist of")
    merges = []
    for merge in strings or ():
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise invalid(f"{name}[{len(merges)}]", merge, "two tokens whose sum is a token")
        merges.append((left, right))
    return merges


def _pre_tokenizer(kind: str) -> Any:
    """The step that cuts a text into words; SmolLM's takes each digit by itself."""
    import tokenizers
    from tokenizers import pre_tokenizers

    if kind == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    else:
        cut = lambda pattern: pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        steps = [*map(cut, DEFAULT_PATTERNS), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(steps)
