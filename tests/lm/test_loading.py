"""A folder becomes its model and the model a folder; what is damaged or unknown is refused by name."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from proxlm import lm
from proxlm.lm import _config_fields
from tests import arrays
from tests.lm import peer_models

SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
CONFIG = lm.ModelConfig(
    len(SPECIAL) + len(ALPHABET), 2, 8, 4, num_kv_heads=2, hidden_width=12, max_length=32, qkv_bias=True
)
TEMPLATE = lm.ChatTemplate(
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% generation %}{{ m.content }}"
    "{% endgeneration %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    {"bos_token": "<s>", "eos_token": "<|im_end|>"},
)
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model():
    vocab = {token: i for i, token in enumerate([*SPECIAL, *ALPHABET])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return lm.Pretrained(arrays.rough(CONFIG, scale=0.3), CONFIG, tokenizer, (0, 2), TEMPLATE)


@pytest.fixture
def folder(model, tmp_path):
    lm.save(tmp_path / "model", model)
    return tmp_path / "model"


def equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def message(folder):
    """The one line that a folder is refused with."""
    with pytest.raises(ValueError) as caught:
        lm.load(folder)
    text = str(caught.value)
    assert text.startswith(f"load: {folder}: ") and "\n" not in text and len(text) < 600
    return text.removeprefix(f"load: {folder}: ")


def rewrite(path, **changes):
    """Changes fields of a JSON file, or leaves them out where Ellipsis."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def test_a_model_survives_its_folder(model, folder):
    again = lm.load(folder)
    assert equal(again.params, model.params) and again.config == CONFIG
    assert (again.stops, again.template) == (model.stops, TEMPLATE)
    assert again.tokenizer.to_str() == model.tokenizer.to_str()
    fields = json.loads((folder / "config.json").read_text())
    assert fields["architectures"] == ["Qwen2ForCausalLM"] and fields["eos_token_id"] == [0, 2]
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": 0,
        "eos_token_id": [0, 2],
    }


def test_shards_hold_at_most_their_size_and_are_one_model(model, tmp_path):
    lm.save(tmp_path / "a", model, max_shard_size=1500)
    shards = sorted(tmp_path.glob("a/*.safetensors"))
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    sizes = [sum(x.nbytes for x in safetensors.numpy.load_file(path).values()) for path in shards]
    index = json.loads((tmp_path / "a" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes) and len(index["weight_map"]) == 26
    assert max(size for size in sizes if size != CONFIG.vocab_size * 32) <= 1500  # the embedding is larger
    assert equal(lm.load(tmp_path / "a").params, model.params)


def test_dtypes_are_those_asked_for(model, tmp_path):
    lm.save(tmp_path / "a", model, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    assert safetensors.numpy.load_file(tmp_path / "a" / ONE)["model.norm.weight"].dtype == jnp.bfloat16
    assert equal(lm.load(tmp_path / "a").params, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))
    again = lm.load(tmp_path / "a", param_dtype="bfloat16")
    assert equal(again.params, rounded) and again.params["norm"]["scale"].dtype == jnp.bfloat16
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"


def test_parameters_are_placed_where_the_caller_says(folder, model):
    asked = {}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    again = lm.load(folder, sharding=lambda path, shape: asked.setdefault(path, (shape, device))[1])
    assert asked["blocks/mlp/down/kernel"][0] == (2, 12, 8) and len(asked) == len(
        jax.tree.leaves(model.params)
    )
    assert all(x.sharding == device for x in jax.tree.leaves(again.params))


LOADED = """
import sys, threading, time, jax, numpy as np
from proxlm import lm, sharding
place = None
if len(jax.devices()) == 4:
    mesh = sharding.make_mesh("fsdp=2,model=2")
    place = lambda path, shape: jax.NamedSharding(mesh, sharding.spec(path, shape, mesh))
lm.load(sys.argv[1] + "/small", sharding=place)
held = lambda: int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024
before, peak, done = held(), [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], held())
thread = threading.Thread(target=watch); thread.start()
model = lm.load(sys.argv[1] + "/large", sharding=place, param_dtype=sys.argv[2])
done.set(); thread.join()
leaves = jax.tree.leaves(model.params)
down = model.params["blocks"]["mlp"]["down"]["kernel"]
if place is not None:
    assert all(len(x.sharding.device_set) == 4 for x in leaves)
    assert down.sharding == place("blocks/mlp/down/kernel", down.shape)
    assert down.addressable_shards[0].data.size == down.size // 4
result = sum(shard.data.nbytes for x in leaves for shard in x.addressable_shards)
for name, x in np.load(sys.argv[1] + "/sums.npz").items():
    found = leaves[int(name)]
    assert np.array_equal(np.asarray(found), x.astype(found.dtype)), name
print((peak[0] - before) / result)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "dtype"), [("4", "float32"), ("1", "bfloat16")])
def test_memory_peaks_little_above_the_result_of_which_each_device_holds_its_part(
    model, tmp_path, devices, dtype
):
    config = dataclasses.replace(CONFIG, num_layers=6, width=512, hidden_width=1536)
    if devices == "1":  # an embedding that is half of the model
        config = dataclasses.replace(config, vocab_size=40_000)
    large = model._replace(params=arrays.rough(config, scale=0.3), config=config)
    lm.save(tmp_path / "small", model)
    lm.save(tmp_path / "large", large)
    leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(large.params))}
    np.savez(tmp_path / "sums.npz", **leaves)
    del large
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", LOADED, str(tmp_path), dtype]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) < 1.3


def test_a_chat_is_the_tokens_of_its_template(folder):
    model = lm.load(folder)
    messages = [{"role": "user", "content": "Hé"}]
    text = "<s><|im_start|>user\nHé<|im_end|>\n"
    assert model.template.render(messages, add_generation_prompt=False) == text
    assert model.tokenizer.decode(model.chat(messages), skip_special_tokens=False) == (
        text + "<|im_start|>assistant\n"
    )
    assert model.chat(messages)[:2] == [0, 1]
    with pytest.raises(ValueError, match="chat: tokenizer must be there"):
        model._replace(tokenizer=None).chat(messages)


def test_prompts_are_padded_on_the_left(model):
    tokens, mask = model.prompts(["ab", "abc"])
    assert mask.tolist() == [[False, True, True], [True, True, True]]
    assert tokens[0, 1:].tolist() == tokens[1, :2].tolist() == model.tokenizer.encode("ab").ids
    for texts in ([], "ab", [""]):
        with pytest.raises(ValueError, match="prompts: texts must be a list of texts, not all empty"):
            model.prompts(texts)
    with pytest.raises(ValueError, match="prompts: tokenizer must be there"):
        model._replace(tokenizer=None).prompts(["ab"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ raise_exception('only users') }}", "only users"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% do messages.append(1) %}", "do"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for %}", "Expected"),
    ],
)
def test_a_template_stays_in_its_sandbox(source, expected):
    with pytest.raises(ValueError, match=expected):
        lm.ChatTemplate(source, {}).render([])


def test_templates_have_what_transformers_gives_them():
    source = "{{ {'ä': x} | tojson }}{% for i in x %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert lm.ChatTemplate(source, {}).render([], x=[1, 2]) == '{"ä": [1, 2]}1'


def test_stops_and_templates_come_from_the_first_file_that_has_them(folder):
    rewrite(folder / "generation_config.json", eos_token_id=1)
    assert lm.load(folder).stops == (1,)
    (folder / "generation_config.json").unlink()
    assert lm.load(folder).stops == (0, 2)
    rewrite(folder / "config.json", eos_token_id=...)
    assert lm.load(folder).stops == (2,)  # the tokenizer's
    (folder / "chat_template.jinja").unlink()
    assert lm.load(folder).template is None
    named = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    for given, expected in (("c", "c"), (named, "b")):
        rewrite(folder / "tokenizer_config.json", chat_template=given, eos_token={"content": "<|im_end|>"})
        assert lm.load(folder).template == lm.ChatTemplate(expected, TEMPLATE.tokens)


def test_tokens_that_only_the_settings_have_are_added(folder):
    added = {str(CONFIG.vocab_size): {"content": "<new>", "special": True}}
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder=added)
    assert lm.load(folder).tokenizer.encode("<new>a").ids[0] == CONFIG.vocab_size
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder={"7": {"content": "<new>"}})
    assert "id of the token <new>" in message(folder)
    (folder / "chat_template.jinja").unlink()
    for name, value in {"added_tokens_decoder": {"x": {}}, "bos_token": 3, "chat_template": 5}.items():
        rewrite(folder / "tokenizer_config.json", **{"added_tokens_decoder": {}, name: value})
        assert {"bos_token": "special token"}.get(name, name) in message(folder)
        rewrite(folder / "tokenizer_config.json", **{name: ...})


def test_a_name_of_the_hub_without_a_network_says_what_to_fetch(monkeypatch, tmp_path):
    import huggingface_hub

    def fails(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(FileNotFoundError, match="`hf download some/model`"):
        lm.load("hf:some/model")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        lm.load(tmp_path / "nothing")


def test_a_name_of_the_hub_is_the_folder_in_its_cache(monkeypatch, folder):
    import huggingface_hub

    asked = []
    fetch = lambda name, revision, **patterns: asked.append((name, revision)) or str(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert lm.load("hf:some/model@v1").config == CONFIG
    assert asked == [("some/model", "v1")]


REFUSED = {
    "model_type": ["mamba", None, 3, []],
    "architectures": [["Qwen2ForSequenceClassification"]],
    "hidden_size": [0, 8.0, "8", True, 10**15, ...],
    "num_hidden_layers": [10**9, 10**30, None],
    "vocab_size": [10**15],
    "num_attention_heads": [3, [4]],
    "intermediate_size": [-1],
    "rms_norm_eps": [-1.0, "1e-5", float("nan")],
    "rope_theta": [0, float("nan"), float("inf"), None, "1e4"],
    "hidden_act": ["relu", 3, ["silu"]],
    "tie_word_embeddings": ["yes", 2],
    "rope_scaling": [
        3,
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 3, "long_factor": [1.0] * 3},
        {"rope_type": ["yarn"]},
        {"rope_type": "yarn"},
        {"rope_type": "yarn", "factor": 0.5},
        {"rope_type": "yarn", "factor": "2"},
        {"rope_type": "yarn", "factor": 2.0, "new": 1},
        {"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1},
    ],
    "rope_parameters": [[1], {"rope_type": "default", "factor": 2.0}],
    "use_sliding_window": ["yes"],
    "layer_types": [["full_attention"], ["full_attention", "chunked"], "full", ["sliding_attention"] * 2],
    "max_window_layers": [-1, "all"],
    "mlp_bias": [True],
    "partial_rotary_factor": [0.5],
    "quantization_config": [{"bits": 4}],
    "something_new": [1, list(range(10_000))],
    "eos_token_id": [CONFIG.vocab_size, "2", [-1]],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, x) for name, values in REFUSED.items() for x in values],
    ids=lambda x: str(x)[:30],
)
def test_a_field_is_refused_by_name(folder, name, value):
    (folder / "generation_config.json").unlink()
    rewrite(folder / "config.json", **{name: value})
    named_by = {
        "num_attention_heads": "num_heads|width",
        "vocab_size": "embed_tokens",
        "hidden_size": "shape",
    }
    named_by["rope_parameters"] = "rope_scaling"
    assert any(part in message(folder) for part in (name, *named_by.get(name, name).split("|")))


def change_tensors(folder, change):
    tensors = safetensors.numpy.load_file(folder / ONE)
    safetensors.numpy.save_file(change(tensors), folder / ONE)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: {k: x for k, x in t.items() if "1.mlp.up" not in k},
            "layers.1.mlp.up_proj.weight is missing",
        ),
        (lambda t: t | {"model.norm.bias": np.ones(8)}, "model.norm.bias is not known"),
        (lambda t: t | {"model.norm.weight": np.ones(9)}, "model.norm.weight has shape (9,), expected (8,)"),
        (lambda t: t | {"model.norm.weight": np.ones(8, np.int8)}, "dtype of model.norm.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder, change, expected):
    change_tensors(folder, change)
    assert expected in message(folder)


def test_damaged_files_are_refused_by_name(folder):
    content = (folder / ONE).read_bytes()
    rng = np.random.default_rng(0)
    for case in range(40):
        damaged = bytearray(content if case % 2 else content[: rng.integers(len(content))])
        for at in rng.integers(min(3000, len(damaged)), size=case % 2):
            damaged[at] ^= 1 << rng.integers(8)
        (folder / ONE).write_bytes(damaged)
        if case % 2 == 0:
            assert ONE in message(folder)
            continue
        try:
            lm.load(folder)
        except ValueError as error:
            assert str(error).startswith(f"load: {folder}: ")
    for last in (np.float32(np.nan), np.float32(-np.inf)):
        (folder / ONE).write_bytes(content[:-4] + last.tobytes())
        assert re.search(rf"tensor \S+ of {ONE} must be finite, got NaN or infinite values", message(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", '{"a": ' + "9" * 10_000 + "}"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_json_that_is_no_object_is_refused(folder, name, text):
    (folder / name).write_bytes(text.encode("latin1"))
    assert name in message(folder)


def test_an_index_is_held_to_its_shards(folder):
    (folder / ONE).rename(folder / "a.safetensors")
    names = safetensors.numpy.load_file(folder / "a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    lm.load(folder)
    shutil.copy(folder / "a.safetensors", folder / "c.safetensors")
    for weight_map, expected in (
        (dict.fromkeys([*names, "x"], "a.safetensors"), "tensor x must be in a.safetensors"),
        (dict.fromkeys(names, "../a.safetensors"), "'../a.safetensors'"),
        (dict.fromkeys(names, "b.safetensors"), "'b.safetensors'"),
        (dict(zip(names, ["c.safetensors", *["a.safetensors"] * len(names)], strict=False)), "in one shard"),
        ([1], "weight_map"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert expected in message(folder)
    (folder / INDEX).unlink()
    assert "weights must be model.safetensors" in message(folder)


def test_a_gpt_2_without_its_prefix_and_with_buffers_is_read(tmp_path):
    config = lm.ModelConfig(
        31, 2, 8, 2, hidden_width=32, max_length=16, positions="learned", norm="layer", gated=False,
        qkv_bias=True, out_bias=True, mlp_bias=True, activation="gelu_tanh",
    )  # fmt: skip
    params = arrays.rough(config, scale=0.3)
    lm.save(tmp_path / "a", lm.Pretrained(params, config, None, ()))
    assert json.loads((tmp_path / "a/config.json").read_text())["model_type"] == "gpt2"
    bare = lambda tensors: {name.removeprefix("transformer."): x for name, x in tensors.items()}
    change_tensors(
        tmp_path / "a", lambda t: bare(t) | {"h.0.attn.bias": np.ones((1, 1, 16, 16), bool)[..., :0]}
    )
    again = lm.load(tmp_path / "a")
    assert equal(again.params, params) and again.config == config and again.tokenizer is None


@pytest.mark.parametrize(
    "change", [{"norm": "layer"}, {"out_bias": True, "gated": False}, {"value_head": True}]
)
def test_what_no_architecture_has_is_not_saved(tmp_path, model, change):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ValueError, match=r"save: config\..*No architecture of transformers"):
        lm.save(tmp_path / "a", model._replace(config=config, params=arrays.rough(config, scale=1.0)))
    assert not (tmp_path / "a").exists()


def test_a_folder_with_content_is_not_written_to(folder, model):
    with pytest.raises(ValueError, match="save: path must be an empty folder"):
        lm.save(folder, model)


VECTORS = json.loads(peer_models.PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", VECTORS)
def test_fields_and_config_are_one_another(case):
    config = _config_fields.from_fields(VECTORS[case]["fields"], 100)
    fields = _config_fields.to_fields(config)
    assert fields["model_type"] == VECTORS[case]["fields"]["model_type"]
    assert _config_fields.from_fields(json.loads(json.dumps(fields)), 100) == config


def test_a_cap_that_transformers_does_not_apply_is_refused():
    fields = VECTORS["gemma3"]["fields"] | {"attn_logit_softcapping": 50.0}
    with pytest.raises(ValueError, match="attn_logit_softcapping must be None"):
        _config_fields.from_fields(fields, 100)
