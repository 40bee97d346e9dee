"""Tokenizers of GGUF files: byte-level BPE of several families, and SentencePiece's BPE."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxlm.lm import _gguf_file
from proxlm.lm._gguf_file import invalid

if TYPE_CHECKING:
    import tokenizers

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of tokens
MODELS = ("gpt2", "llama")
LONGEST_PIECE = 128  # of SentencePiece, whose merges are looked for at each of its places
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# The name that a file gives to how text is cut ↦ the patterns for it, one after the other. What llama.cpp
# cuts by where a file does not say how is the first.
PATTERNS: dict[str, Sequence[str]] = {
    "default": (
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ),
    "smollm": (r"\p{N}", _GPT_2),
    "gpt-2": (_GPT_2,),
    "olmo": (_GPT_2,),
    "llama-bpe": (_LLAMA_3,),
    "llama3": (_LLAMA_3,),
    "llama-v3": (_LLAMA_3,),
    "qwen2": (_LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}"),),
}
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3")  # a word that is a token stays one
NORMALISED = ("qwen2",)  # text is in Unicode's composed form


def check(fields: Mapping[str, Any]) -> None:
    """Checks the kind of the tokenizer, before weights are read."""
    for name, known in (("model", MODELS), ("pre", tuple(PATTERNS))):
        value = fields.get(f"tokenizer.ggml.{name}", known[0])
        if not isinstance(value, str) or value not in known:
            remedy = "No other tokenizer is implemented."
            raise invalid(f"tokenizer.ggml.{name}", value, " or ".join(map(repr, known)), remedy)


def strings(fields: Mapping[str, Any], name: str) -> _gguf_file.Strings | None:
    """A field that is an array of strings, or None."""
    value = fields.get(name)
    if value is not None and not isinstance(value, _gguf_file.Strings):
        raise invalid(name, value, "an array of strings")
    return value


def read(fields: Mapping[str, Any], ids: Mapping[str, int]) -> "tokenizers.Tokenizer | None":
    """The tokenizer, or None where there are no tokens.

    Args:
      ids: of special tokens, checked.
    """
    import tokenizers

    found = strings(fields, "tokenizer.ggml.tokens")
    if found is None:
        return None
    kinds = _array(fields, "tokenizer.ggml.token_type", found.count)
    tokens = list(found)
    is_bytes = fields.get("tokenizer.ggml.model", MODELS[0]) == "gpt2"
    if not is_bytes:  # files have runs of spaces as they are, and the vocabulary as SentencePiece does
        tokens = ["▁" * len(token) if set(token) == {" "} else token for token in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise invalid("tokenizer.ggml.tokens", len(vocab), f"{len(tokens)} different strings")
    result = _byte_level(fields, vocab) if is_bytes else _sentencepiece(fields, vocab, kinds)
    of_kind = lambda kind: [token for token, own in zip(tokens, kinds, strict=bool(kinds)) if own == kind]
    result.add_special_tokens(of_kind(CONTROL))
    whole = [token for token in of_kind(USER_DEFINED) if token.strip("▁")]
    result.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in whole])
    if fields.get("tokenizer.ggml.add_bos_token", not is_bytes) and "bos" in ids:
        bos = tokens[ids["bos"]]
        result.post_processor = tokenizers.processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, ids["bos"])]
        )
    return result


def _array(fields: Mapping[str, Any], name: str, length: int) -> Sequence[float]:
    """An array of numbers, one a token; empty where it is not there."""
    values = fields.get(name)
    if values is None:
        return ()
    found = getattr(values, "size", None)
    if found != length:
        raise invalid(f"length of {name}", found, f"{length}, as of the tokens")
    return values.tolist()


def _byte_level(fields: Mapping[str, Any], vocab: Mapping[str, int]) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    kind = fields.get("tokenizer.ggml.pre", next(iter(PATTERNS)))
    model = models.BPE(dict(vocab), _merges(fields, vocab), ignore_merges=kind in IGNORE_MERGES)
    result = tokenizers.Tokenizer(model)
    cut = lambda pattern: pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    steps = [*map(cut, PATTERNS[kind]), pre_tokenizers.ByteLevel(False, use_regex=False)]
    result.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if kind in NORMALISED:
        result.normalizer = normalizers.NFC()
    result.decoder = decoders.ByteLevel()
    return result


def _merges(fields: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs that the BPE merges, each of them and their sum tokens of the vocabulary."""
    name = "tokenizer.ggml.merges"
    found = strings(fields, name)
    # A token of n characters is the sum of n - 1 pairs at most.
    most = sum(len(token) for token in vocab)
    if found is not None and found.count > most:
        raise invalid(f"length of {name}", found.count, f"at most {most}, the pairs that tokens consist of")
    merges = []
    for merge in found or ():
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise invalid(f"{name}[{len(merges)}]", merge, "two tokens whose sum is a token")
        merges.append((left, right))
    return merges


def _sentencepiece(
    fields: Mapping[str, Any], vocab: Mapping[str, int], kinds: Sequence[float]
) -> "tokenizers.Tokenizer":
    """SentencePiece's BPE: of all pairs whose sum is a token, that with the highest score merges first."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    name = "tokenizer.ggml.scores"
    scores = _array(fields, name, len(vocab))
    if not scores or not kinds:
        raise invalid(name if kinds else "tokenizer.ggml.token_type", None, "one number a token")
    if str(fields["general.architecture"]).startswith("gemma"):  # its merges are in the order of the tokens
        scores = range(0, -len(vocab), -1)
    pairs = []
    for (token, number), kind in zip(vocab.items(), kinds, strict=True):
        if kind in (UNKNOWN, CONTROL):
            continue
        if len(token) > LONGEST_PIECE:
            raise invalid(
                f"tokenizer.ggml.tokens[{number}]", token, f"at most {LONGEST_PIECE} characters long"
            )
        parts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs += [(-scores[number], pair) for pair in parts if pair[0] in vocab and pair[1] in vocab]
    pairs.sort(key=lambda x: (x[0], -len(x[1][0])))
    unknown = [token for token, kind in zip(vocab, kinds, strict=True) if kind == UNKNOWN]
    model = models.BPE(
        dict(vocab),
        [pair for _, pair in pairs],
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    result = tokenizers.Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
        back.append(decoders.Strip(" ", 1, 0))
    result.normalizer = normalizers.Sequence(steps)
    result.decoder = decoders.Sequence(back)
    return result
