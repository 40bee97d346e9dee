"""A GGUF file becomes its model and tokenizer; a damaged or foreign one is one line of ValueError."""

import dataclasses
import os
import struct

import gguf
import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from proxlm import lm
from proxlm.lm import _rope
from proxlm.lm._config import LayerKind
from tests import arrays

TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    "12",
    "ab",
]
CONFIG = lm.ModelConfig(
    len(TOKENS), num_layers=1, width=32, num_heads=4, num_kv_heads=2, hidden_width=32, max_length=64
)
FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["1 2", "a b"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
KIND = LayerKind(None, "all")
KINDS = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}


@pytest.fixture(scope="module")
def params():
    return arrays.rough(CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def tensors(params):
    return lm.pretrained.to_tensors(params, CONFIG, "gguf:llama")


@pytest.fixture(scope="module")
def content(tensors, tmp_path_factory):
    """The bytes of a right file."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write(path, tensors)
    return path.read_bytes()


def write(path, tensors, packed=gguf.GGMLQuantizationType.Q8_0, **changes):
    """Writes a file, with fields changed, or left out where None; `__` in a name is a point."""
    fields = FIELDS | {name.replace("__", "."): value for name, value in changes.items()}
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture"))
    for name, value in fields.items():
        if value is not None:
            getattr(writer, f"add_{KINDS[type(value)]}")(name, value)
    writer.data_alignment = fields.get("general.alignment") or 32
    for name, tensor in tensors.items():
        quantised = tensor.dtype == np.uint8
        writer.add_tensor(name, tensor, raw_dtype=packed if quantised else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def message(path):
    """The one line that a file is refused with."""
    with pytest.raises(ValueError) as caught:
        lm.load(path)
    text = str(caught.value)
    assert text.startswith(f"load: {path}: ") and "\n" not in text
    return text.removeprefix(f"load: {path}: ")


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_a_file_becomes_its_model(tmp_path, params, tensors):
    changes = {"llama__rope__freq_base": 5e4, "llama__vocab_size": len(TOKENS), "llama__expert_count": 0}
    changes["general__alignment"] = 64  # with which JAX may take a view for an array
    write(tmp_path / "a.gguf", tensors, **changes)
    model = lm.load(tmp_path / "a.gguf")
    with open(tmp_path / "a.gguf", "r+b") as file:  # what is read does not change with its file
        file.write(bytes(os.path.getsize(tmp_path / "a.gguf")))
    assert equal(model.params, params)
    assert (model.config.rope_theta, model.config.num_kv_heads, model.config.max_length) == (5e4, 2, 64)
    assert model.config.norm_epsilon == pytest.approx(1e-5)
    assert (model.config.tie_embeddings, model.stops) == (True, (2,))


def test_fields_that_may_be_missing_have_the_defaults_of_the_format(tmp_path):
    config = lm.ModelConfig(len(TOKENS), 1, 32, 4, hidden_width=32, max_length=64, norm_epsilon=2**-17)
    tensors = lm.pretrained.to_tensors(arrays.rough(config, scale=0.3), config, "gguf:llama")
    absent = ("llama__attention__head_count_kv", "tokenizer__ggml__bos_token_id", "tokenizer__ggml__pre")
    absent += ("tokenizer__ggml__eos_token_id", "tokenizer__ggml__model", "tokenizer__ggml__token_type")
    changes = dict.fromkeys(absent)
    write(tmp_path / "a.gguf", tensors, **changes, llama__attention__layer_norm_rms_epsilon=2**-17)
    model = lm.load(tmp_path / "a.gguf")
    assert (model.config, model.stops) == (config, ())
    # llama.cpp's default cuts at punctuation, and digits into threes.
    words = [word for word, _ in model.tokenizer.pre_tokenizer.pre_tokenize_str("it's 12345 ok!")]
    assert words == ["it", "'", "s", "Ġ", "123", "45", "Ġok", "!"]


SHAPE = {"width": 32, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 32, "max_length": 64}
GEMMA = {"norm": "rms_plus_one", "embedding_scale": 32**0.5, "activation": "gelu_tanh"}
GEMMA_2 = GEMMA | {"norm_place": "both", "window": 8}
LLAMA_3 = lm.RopeScaling("llama3", 8.0, 8192)
YARN = lm.RopeScaling("yarn", 4.0, 16)
SIX = (True, True, True, True, True, False)
FAMILIES = {
    "llama": {"rope_scaling": YARN, "qkv_bias": True, "out_bias": True},
    "llama ": {"rope_scaling": lm.RopeScaling("linear", 2.0, 64)},
    "llama 3": {"rope_scaling": LLAMA_3, "rope_theta": 5e5, "num_heads": 1, "num_kv_heads": 1},
    "qwen2": {"qkv_bias": True, "tie_embeddings": False},
    "qwen3": {"qk_norm": "head", "head_width": 16},
    "gemma": GEMMA | {"head_width": 16},
    "gemma2": GEMMA_2 | {"attention_cap": 50.0, "logit_cap": 30.0, "window_layers": (True, False)},
    "gemma3": GEMMA_2
    | {"qk_norm": "head", "window_layers": SIX, "window_rope_theta": 5e3, "rope_theta": 1e6},
}


def write_family(path, case):
    """Writes a file of one of FAMILIES; returns its config and parameters."""
    kind, changes = case.split()[0], FAMILIES[case]
    depth = len(changes.get("window_layers", (1,)))
    config = lm.ModelConfig(len(TOKENS), depth, **SHAPE | changes)
    params = arrays.rough(config, scale=0.3)
    fields = {name.replace("llama.", f"{kind}."): value for name, value in FIELDS.items()}
    fields |= {"general.architecture": kind, f"{kind}.block_count": depth}
    fields |= {f"{kind}.rope.freq_base": config.rope_theta}
    fields |= {f"{kind}.attention.head_count": config.num_heads}
    fields |= {f"{kind}.attention.head_count_kv": config.num_kv_heads}
    fields |= {f"{kind}.attention.{name}_length": config.head_width for name in ("key", "value")}
    tensors = lm.pretrained.to_tensors(params, config, f"gguf:{kind}")
    if config.window:
        fields |= {f"{kind}.attention.sliding_window": 8}
    if kind == "gemma3":
        fields |= {f"{kind}.rope.freq_base_swa": 5e3}
    if (scaling := config.rope_scaling) == LLAMA_3:
        plain, scaled = (
            np.asarray(_rope.rotation(np.ones(1, int), dataclasses.replace(config, rope_scaling=x), KIND)[1])
            for x in (None, scaling)
        )
        tensors["rope_freqs.weight"] = (np.arcsin(plain) / np.arcsin(scaled))[0].astype(np.float32)
    elif scaling is not None:
        fields |= {"llama.rope.scaling.type": scaling.kind, "llama.rope.scaling.factor": scaling.factor}
        if scaling.kind == "yarn":
            fields |= {"llama.rope.scaling.original_context_length": 16}
    absent = dict.fromkeys(FIELDS.keys() - fields.keys())
    write(path, tensors, **absent | fields)
    return config, params


@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_becomes_its_model(tmp_path, case):
    config, params = write_family(tmp_path / "a.gguf", case)
    model = lm.load(tmp_path / "a.gguf")
    assert model.config == dataclasses.replace(config, norm_epsilon=model.config.norm_epsilon)
    assert jax.tree.all(jax.tree.map(lambda x, y: np.allclose(x, y, atol=1e-6), model.params, params))


def test_frequencies_that_are_not_those_of_llama_3_are_refused(tmp_path, tensors):
    write(tmp_path / "a.gguf", tensors | {"rope_freqs.weight": np.array([1, 2, 3, 9], np.float32)})
    assert "tensor rope_freqs.weight must be that of Llama 3" in message(tmp_path / "a.gguf")


def test_quantised_weights_are_decoded_and_a_head_of_its_own_is_read(tmp_path, tensors):
    q8 = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(tensors["token_embd.weight"], q8)
    write(tmp_path / "a.gguf", tensors | {"token_embd.weight": packed, "output.weight": packed})
    model = lm.load(tmp_path / "a.gguf")
    right = gguf.quants.dequantize(packed, q8)
    np.testing.assert_array_equal(model.params["embedding"]["kernel"], right)
    np.testing.assert_array_equal(model.params["head"]["kernel"], right)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_decoded(tmp_path, kind):
    config = dataclasses.replace(CONFIG, hidden_width=256)
    tensors = lm.pretrained.to_tensors(arrays.rough(config, scale=0.3), config, "gguf:llama")
    kind = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    # bytes below 60 make finite numbers of half precision, wherever a block has its scales
    blocks = np.random.default_rng(0).integers(60, size=(32, size), dtype=np.uint8)
    tensors["blk.0.ffn_down.weight"] = blocks
    write(tmp_path / "a.gguf", tensors, packed=kind, llama__feed_forward_length=256)
    found = lm.load(tmp_path / "a.gguf").params["blocks"]["mlp"]["down"]["kernel"][0]
    np.testing.assert_array_equal(found, gguf.quants.dequantize(blocks, kind).T)
    assert np.std(found) > 0


def test_the_tokenizer_cuts_numbers_into_digits_and_knows_its_control_tokens(tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    tokenizer = lm.load(tmp_path / "a.gguf").tokenizer
    assert tokenizer.encode("ab12<|im_end|>é").tokens == ["ab", "1", "2", "<|im_end|>", "Ã", "©"]
    assert tokenizer.decode(tokenizer.encode("Ab 12 né").ids) == "Ab 12 né"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "ĠOK", "!", "ĊĊ", "Ġa"]),
        ("gpt-2", ["It", "'s", "Ġ1234", "ĠOK", "!", "ĊĊ", "Ġa"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "4", "ĠOK", "!ĊĊ", "Ġa"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "ĠOK", "!ĊĊ", "Ġa"]),
    ],
)
def test_text_is_cut_as_the_family_does(tmp_path, tensors, kind, words):
    write(tmp_path / "a.gguf", tensors, tokenizer__ggml__pre=kind)
    tokenizer = lm.load(tmp_path / "a.gguf").tokenizer
    found = tokenizer.pre_tokenizer.pre_tokenize_str("It's 1234 OK!\n\n a")
    assert [word for word, _ in found] == words


PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{i:02X}>" for i in range(256)),
    "ab",
    "▁a",
    "\n\n",
    "  ",
    "▁",
    "a",
    "b",
]
SENTENCEPIECE = {
    "tokenizer__ggml__model": "llama",
    "tokenizer__ggml__pre": None,
    "tokenizer__ggml__merges": None,
    "tokenizer__ggml__tokens": PIECES,
    "tokenizer__ggml__token_type": [2, 3, 3, *[6] * 256, 1, 1, 4, 4, 1, 1, 1],
    "tokenizer__ggml__scores": [0.0] * 259 + [-1.0, -2.0, 0.0, 0.0, -3.0, -4.0, -5.0],
}


def test_a_sentencepiece_vocabulary_merges_by_score(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=len(PIECES))
    tensors = lm.pretrained.to_tensors(arrays.rough(config, scale=0.3), config, "gguf:llama")
    write(tmp_path / "a.gguf", tensors, **SENTENCEPIECE)
    tokenizer = lm.load(tmp_path / "a.gguf").tokenizer
    # ab is better than ▁a; é is bytes; two spaces are a token of their own
    expected = ["<s>", "▁", "ab", "▁a", "▁▁", "b", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("ab a  bé").tokens == expected
    assert tokenizer.encode("</s>\n\na").tokens == ["<s>", "</s>", "\n\n", "▁a"]
    assert tokenizer.decode(tokenizer.encode("ab a  bé").ids) == "ab a  bé"
    plain = {"tokenizer__ggml__add_space_prefix": False, "tokenizer__ggml__add_bos_token": False}
    write(tmp_path / "b.gguf", tensors, **SENTENCEPIECE, **plain)
    assert lm.load(tmp_path / "b.gguf").tokenizer.encode("a a").tokens == ["a", "▁a"]
    long = SENTENCEPIECE | {"tokenizer__ggml__tokens": [*PIECES[:-1], "b" * 200]}
    for changes in (long, SENTENCEPIECE | {"tokenizer__ggml__scores": [1.0]}):
        write(tmp_path / "c.gguf", tensors, **changes)
        assert "tokenizer.ggml." in message(tmp_path / "c.gguf")


REFUSED = {
    "general__architecture": ["mamba"],
    "llama__rope__scaling__type": ["longrope"],
    "llama__attention__sliding_window": [4096],
    "llama__expert_count": [8],
    "llama__something_new": [1, list(range(500))],
    "llama__block_count": [2**31, 10**6, 2, 1.0, [1]],
    "llama__embedding_length": [2**31 - 1, None],
    "llama__context_length": [2**31],
    "llama__attention__head_count": [0, 3, True],
    "llama__attention__head_count_kv": [3, [2]],
    "llama__attention__layer_norm_rms_epsilon": [-1.0, float("nan"), None],
    "llama__rope__freq_base": [float("nan"), 0.0, float("inf"), -1.0],
    "llama__rope__dimension_count": [4],
    "llama__vocab_size": [2**31 - 1, 7],
    "tokenizer__ggml__eos_token_id": [len(TOKENS), "2"],
    "tokenizer__ggml__pre": ["tekken"],
    "tokenizer__ggml__model": ["t5"],
    "tokenizer__ggml__tokens": [TOKENS[:-1], [*TOKENS[:-1], "12"], 3],
    "tokenizer__ggml__token_type": [[1]],
    "tokenizer__ggml__merges": [["1 2"] * 1_000, ["1 3"], ["12"]],
    "tokenizer__ggml__padding_side": ["é" * 2**20],
    "general__alignment": [0, 48],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in REFUSED.items() for value in values],
    ids=lambda x: str(x)[:30],
)
def test_a_field_is_refused_by_name(tmp_path, tensors, name, value):
    write(tmp_path / "a.gguf", tensors, **{name: value})
    text = message(tmp_path / "a.gguf")
    assert name.replace("__", ".") in text.partition(" must be ")[0]
    assert len(text) < 400


def test_tokens_and_vocabulary_of_different_sizes_are_refused(tmp_path, tensors):
    changes = {"llama__vocab_size": len(TOKENS), "tokenizer__ggml__tokens": TOKENS[:-1]}
    write(tmp_path / "a.gguf", tensors, **changes, tokenizer__ggml__merges=["1 2"])
    assert "llama.vocab_size must be 260, the number of tokenizer.ggml.tokens" in message(tmp_path / "a.gguf")


def patched(content, field, skipped, value):
    """The bytes with a number of 8 bytes written so many bytes after the name of a field or tensor."""
    at = content.index(field.encode()) + len(field) + skipped
    return content[:at] + struct.pack("<Q", value) + content[at + 8 :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: b"", "magic"),
        (lambda x: x[:4] + b"\0\0\0\3" + x[8:], "version"),
        (lambda x: x[:8] + struct.pack("<Q", 2**60) + x[16:], "tensor_count"),
        (lambda x: x[:16] + struct.pack("<Q", 2**60) + x[24:], "kv_count"),
        (lambda x: patched(x, "tokenizer.ggml.tokens", 8, 2**40), "length of tokenizer.ggml.tokens"),
        (lambda x: patched(x, "tokenizer.ggml.token_type", 8, 2**40), "length of tokenizer.ggml.token_type"),
        (lambda x: patched(x, "tokenizer.ggml.pre", 4, 2**63), "length of tokenizer.ggml.pre"),
        (lambda x: patched(x, "tokenizer.ggml.tokens", 0, 77), "type of tokenizer.ggml.tokens"),
        (lambda x: patched(x, "tokenizer.ggml.tokens", 4, 9), "type of the items of tokenizer.ggml.tokens"),
        (lambda x: patched(x, "blk.0.ffn_up.weight", 0, 9), "axes of tensor blk.0.ffn_up.weight"),
        (lambda x: patched(x, "blk.0.ffn_up.weight", 20, 99), "type of tensor blk.0.ffn_up.weight"),
        (lambda x: patched(x, "blk.0.ffn_up.weight", 4, 2**62), "end of tensor blk.0.ffn_up.weight"),
        (lambda x: patched(x, "blk.0.ffn_up.weight", 4, 0), "shape of tensor blk.0.ffn_up.weight"),
        (lambda x: patched(x, "blk.0.ffn_up.weight", 24, 0), "offset of tensor"),
        (lambda x: patched(x, "blk.0.ffn_up.weight", 24, 2**50), "end of tensor blk.0.ffn_up.weight"),
        (lambda x: x[:-200], "end of tensor"),
        (lambda x: x.replace(b"bos_token", b"eos_token"), "'tokenizer.ggml.eos_token_id'"),
        (lambda x: x.replace(b"blk.0.ffn_up", b"blk.0.attn_q"), "name of a tensor must be given once"),
        (lambda x: x[:8] + struct.pack("<Q", 2**17) + x[16:] + bytes(2**22), "at most 65536"),
        (lambda x: patched(x, "tokenizer.ggml.tokens", 8, 2**21) + bytes(2**24), "at most 1048576"),
        (lambda x: x.replace(b"blk.0.ffn_up", b"blk.0.ffn_xx"), "blk.0.ffn_up.weight is missing"),
        (lambda x: x[:-4] + struct.pack("<f", -float("inf")), "ffn_down.weight must be finite"),
        (lambda x: x[:-4] + struct.pack("<f", float("nan")), "ffn_down.weight must be finite"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content, change, expected):
    (tmp_path / "a.gguf").write_bytes(change(content))
    assert expected in message(tmp_path / "a.gguf")


@pytest.mark.parametrize("cases", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_truncated_files_and_turned_bytes_are_read_or_refused(tmp_path, content, cases):
    rng = np.random.default_rng(cases)
    path = tmp_path / "a.gguf"
    header = content.index(b"output_norm.weight") + 50
    for case in range(cases):
        if case % 2:
            path.write_bytes(content[: rng.integers(header if case % 3 else len(content))])
            message(path)
            continue
        damaged = bytearray(content)
        for at in rng.integers(header, size=1 + case % 3):
            damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            lm.load(path)
        except ValueError as error:
            assert str(error).startswith(f"load: {path}: ")
