"""Tokenizers and chat templates beside transformers, where it is installed, on a thousand strings."""

import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from proxlm import lm
from tests.lm import test_gguf, test_loading

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
PIECES = [
    *(
        "the ",
        "Straße",
        " naïve",
        "日本語",
        "한국어",
        "Ωμέγα",
        "👩\u200d🚀",
        "é",
        "e\u0301",
        "\u200b",
        "ﬁ",
        "İ",
    ),
    *(
        " ",
        "  ",
        "    ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "\u3000",
        "\xa0",
        "12345",
        "3.14",
        "٣",
        "Ⅷ",
        "x2y",
        "I'll",
    ),
    *(
        "<|im_start|>",
        "<|im_end|>",
        "</s>",
        "<s>",
        "<",
        "|>",
        "a" * 40,
        "...",
        "—",
        "¿Qué?",
        "\x00",
        "\ufeff",
    ),
    *("we'RE", "def f(x):", "&&"),
]
CORPUS = [" ".join(PIECES), "it's 2024: the cat sat on the mat, 12345 times\n\n  indented code\n"] * 20
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>"]
CHATS = [
    [{"role": "user", "content": 'Hi there, 12 < 13 & "quotes" 日本'}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "a\n\nb"}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2 "},
        {"role": "user", "content": "3"},
    ],
]
TEMPLATES = [
    test_loading.TEMPLATE.source,
    "{%- for m in messages %}\n    {%- if m.role == 'system' %}\n        {{- m.content | trim }}\n"
    "    {%- endif %}\n    {{- '[INST] ' ~ m.content ~ ' [/INST]' if loop.index0 % 2 == 0 else m.content "
    "~ eos_token }}\n{%- endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ m | tojson }}\n"
    "{% endfor %}  {{ ns.n }} {{ tools is none }} {{ bos_token is defined }} {{ pad_token is defined }}",
]  # fmt: skip


def strings():
    rng = np.random.default_rng(0)
    return ["", *("".join(rng.choice(PIECES, size=rng.integers(1, 12))) for _ in range(999))]


def byte_level(kind):
    """A tokenizer of the family, trained here."""
    from proxlm.lm import _gguf_tokenizer

    result = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    if kind == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    elif kind == "gpt-2":
        steps = [pre_tokenizers.ByteLevel(False)]
    else:
        (pattern,) = _gguf_tokenizer.PATTERNS[kind]
        cut = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        steps = [cut, pre_tokenizers.ByteLevel(False, use_regex=False)]
    result.pre_tokenizer = pre_tokenizers.Sequence(steps)
    result.normalizer = normalizers.NFC() if kind == "qwen2" else None
    result.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    result.train_from_iterator(CORPUS, trainer)
    return result


def of_size(tokenizer, **changes):
    config = lm.ModelConfig(
        tokenizer.get_vocab_size(), 1, 32, 4, num_kv_heads=2, hidden_width=32, max_length=64
    )
    params = lm.init(jax.random.key(0), config)
    template = lm.ChatTemplate(TEMPLATES[0], {"bos_token": "<s>", "eos_token": "<|im_end|>"})
    return lm.Pretrained(params, config, tokenizer, (2,), template)


@pytest.mark.parametrize("kind", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_tokenizers_are_those_of_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    model = of_size(byte_level(kind))
    lm.save(tmp_path / "a", model)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    ours = lm.load(tmp_path / "a").tokenizer
    written = json.loads(model.tokenizer.to_str())["model"]
    tokens = sorted(written["vocab"], key=written["vocab"].get)
    fields = {
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in written["merges"]],
    }
    tensors = lm.pretrained.to_tensors(model.params, model.config, "gguf:llama")
    test_gguf.write(tmp_path / "a.gguf", tensors, **fields)
    from_gguf = lm.load(tmp_path / "a.gguf").tokenizer
    for text in strings():
        expected = theirs(text).input_ids
        assert ours.encode(text).ids == expected == from_gguf.encode(text).ids, text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    for source in TEMPLATES:
        template = model.template._replace(source=source)
        theirs.chat_template = source
        for chat in CHATS:
            for prompted in (False, True):
                own = model._replace(template=template).chat(chat, prompted)
                expected = theirs.apply_chat_template(chat, add_generation_prompt=prompted, return_dict=False)
                assert own == expected


@pytest.mark.parametrize("prefix", [True, False], ids=["llama", "gemma"])
def test_sentencepiece_tokenizers_are_those_of_sentencepiece(tmp_path, prefix):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(line.replace("\x00", "") for line in CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "spm"),
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=prefix,
        split_digits=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<|im_end|>"],
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    ids = range(theirs.vocab_size())
    kind = lambda i: (
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
    )
    tokens = [theirs.id_to_piece(i) for i in ids]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [4 if tokens[i] == "<|im_end|>" else kind(i) for i in ids],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.add_bos_token": False,
    }
    config = lm.ModelConfig(len(tokens), 1, 32, 4, num_kv_heads=2, hidden_width=32, max_length=64)
    tensors = lm.pretrained.to_tensors(lm.init(jax.random.key(0), config), config, "gguf:llama")
    test_gguf.write(tmp_path / "a.gguf", tensors, **fields)
    ours = lm.load(tmp_path / "a.gguf").tokenizer
    for text in strings():
        # control tokens are text to SentencePiece, which knows no NUL either; and after a token of the user's
        # llama.cpp adds the prefix once more
        if any(part in text for part in ("<s>", "</s>", "\x00", *["<|im_end|>"] * prefix)):
            continue
        assert ours.encode(text).ids == (theirs.encode(text) if text else []), text
