"""Fine-tuning: what is learnt of an example, what is refused, and whole runs of every kind."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from experiments import finetune
from experiments.support import Refusal
from experiments.support.data import tokenization
from experiments.support.finetune import examples, objectives
from experiments.support.models import pretrained, trained_part
from experiments.support.run import configs, runs
from proxlm import lm
from proxlm.lm import delta, lora, trainable
from tests.arrays import rough
from tests.experiments.starting import start

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@functools.cache
def model(template=None):
    tokenizer = tokenization.train_bpe(["abc"], 257)
    config = lm.ModelConfig(257, num_layers=2, width=8, num_heads=2, max_length=64, unroll=1)
    chat = template and lm.ChatTemplate(template, {})
    return lm.Pretrained(rough(config, 0.3), config, tokenizer, (tokenization.END,), chat)


def learnt(example, number=0):
    """The text that an answer of an example teaches, and all of its text."""
    tokens, targets = example.answers[number]
    assert len(targets) == len(tokens) - 1
    assert all(target in (-100, token) for target, token in zip(targets, tokens[1:], strict=True))
    decode = model().tokenizer.decode
    return decode([x for x in targets if x >= 0], skip_special_tokens=False), decode(
        tokens, skip_special_tokens=False
    )


def encode(row, template=None, pairs=False):
    return examples.encode(row | {"line": 7}, model(template), pairs=pairs, chat=True)


def test_answers_alone_are_learnt_with_the_end_of_the_text():
    example = encode({"prompt": "ab", "response": "ca"})
    assert learnt(example) == ("ca<|end|>", "ab\nca<|end|>")
    assert model().tokenizer.decode(example.prompt) == "ab\n"


def test_of_a_chat_all_turns_of_the_assistant_are_learnt_with_their_ends():
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    example = encode({"messages": [{"role": role, "content": text} for role, text in turns]}, TEMPLATE)
    words, whole = learnt(example)
    assert words == "b<end>d<end>" and whole.endswith("<user>c<end><assistant>d<end>")
    assert model().tokenizer.decode(example.prompt) == "<system>s<end><user>a<end><assistant>"


def test_pairs_share_their_prompt():
    example = encode({"prompt": "ab", "chosen": "c", "rejected": "bb"}, TEMPLATE, pairs=True)
    assert [learnt(example, i)[0] for i in (0, 1)] == ["c<end>", "bb<end>"]
    rows = examples.rows_of([example], max(len(tokens) for tokens, _ in example.answers))
    assert rows["tokens"].shape == rows["targets"].shape and rows["tokens"].shape[2] % 8 == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 7: it has text: expected prompt and response, or messages"),
        ({"prompt": "a", "response": 3}, "line 7: expected messages with a role and a content, got '3'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 7: no message is the assistant's"),
        (
            {"prompt": "a", "response": [{"role": "user", "content": "b"}]},
            "line 7: no message is the assistant's",
        ),
    ],
)
def test_a_line_of_another_form_is_refused_by_its_number(row, message):
    with pytest.raises(Refusal, match=message):
        encode(row)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    template = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(Refusal, match="the chat template changes earlier turns"):
        encode({"messages": turns}, template)


def test_a_damaged_file_is_refused_by_its_line(tmp_path):
    run = runs.open_run("finetune", {}, tmp_path)
    path = tmp_path / "data.jsonl"
    for text, message in (
        ('{"a": 1}\n{"a"', "line 2 of .* is not JSON"),
        ("\n[1]\n", "line 2 of .* is a list"),
    ):
        path.write_text(text)
        with pytest.raises(Refusal, match=message):
            examples.read(str(path), runs.Run("finetune", runs.open_run("finetune", {}, tmp_path).path))
    assert run.path.is_dir()


def test_written_dates_are_right_and_rejected_ones_wrong():
    rows = examples.dates(200)
    assert len({row["prompt"] for row in rows}) > 190
    assert rows[0] | {"prompt": ""} == {
        "prompt": "",
        "response": rows[0]["chosen"],
        "chosen": rows[0]["chosen"],
        "rejected": rows[0]["rejected"],
        "line": 1,
    }
    for row in rows:
        year, month, day = map(int, row["prompt"].split()[3].split("-"))
        right = row["chosen"].split()
        assert (right[0], right[2]) == (str(day), str(year)) and right[1][0] in "JFMASOND"[: max(1, month)]
        assert row["chosen"] != row["rejected"]


def test_the_losses_are_those_of_the_answers_and_padding_changes_nothing():
    rows = [encode({"prompt": "ab", "chosen": "cab", "rejected": "b"}, pairs=True)]
    data = examples.rows_of(rows, 9) | {"reference": np.zeros((1, 2), np.float32)}
    trained, frozen = trainable.split(model().params, "^norm/")
    config = model().config

    @jax.jit
    def of(trained, frozen, data):
        total = objectives.log_probs(trained, data, frozen, config)
        sft = objectives.supervised(trained, data, frozen, config)
        return total, sft, objectives.preference(trained, data, frozen, config, 0.5)

    total, sft, dpo = of(trained, frozen, data)
    expected, apply = [], jax.jit(lm.apply, static_argnums=2)
    for tokens, targets in rows[0].answers:
        scores = special.log_softmax(apply(model().params, np.array([tokens[:-1]]), config)[0], axis=-1)
        expected.append(sum(float(scores[i, t]) for i, t in enumerate(targets) if t >= 0))
    np.testing.assert_allclose(total[0], expected, rtol=1e-4)
    np.testing.assert_allclose(sft, -sum(expected) / (4 + 2), rtol=1e-4)
    np.testing.assert_allclose(dpo, np.log1p(np.exp(-0.5 * (expected[0] - expected[1]))), rtol=1e-3)


def test_packed_examples_lose_what_they_do_alone():
    rows = [("ab", "ca"), ("b", "c"), ("abca", "bcab"), ("cab", "abc"), ("c", "aabb")]
    encoded = [encode({"prompt": prompt, "response": response}) for prompt, response in rows]
    packed = examples.packed(encoded, 20)
    alone = examples.rows_of(encoded, 20)
    assert len(packed["tokens"]) < len(rows) and packed["segments"].max() > 1
    assert (packed["targets"] >= 0).sum() == (alone["targets"] >= 0).sum()
    config = dataclasses.replace(model().config, window=5, window_layers=(True, False))
    loss = jax.jit(functools.partial(objectives.supervised, config=config))
    trained, frozen = trainable.split(model().params, ".")
    np.testing.assert_allclose(*(loss(trained, batch, frozen) for batch in (packed, alone)), rtol=1e-5)
    for name, value, message in [
        ("segments", packed["segments"][0], r"segments.shape must be \(2, 20\)"),
        ("mask", packed["segments"][:, 0] > 0, "mask must be None with segments"),
    ]:
        how = {"segments": packed["segments"][:, 0], name: value}
        with pytest.raises(ValueError, match=message):
            lm.encode(model().params, packed["tokens"][:, 0], config, **how)


@pytest.mark.parametrize(
    "train",
    [
        "lora",
        "lora:",
        "lora:x",
        "all:3",
        "half",
        "last:0",
        "sparse:0",
        "sparse:-1",
        "sparse:0%",
        "sparse:101%",
    ],
)
def test_what_cannot_be_trained_is_refused(train):
    with pytest.raises(ValueError, match="train must be"):
        finetune.Config(train=train)


def test_a_share_becomes_the_strength_that_moves_it_at_first():
    choice = trained_part.parse("last:1 sparse:50%", shares=True)
    gradient = {"w": jnp.array([0.1, -0.4]), "b": jnp.array([0.2, 0.3])}
    assert choice.at(gradient) == trained_part.Choice(last=1, sparse=pytest.approx(0.2))
    with pytest.raises(ValueError, match="train must be"):  # where nothing finds the strength
        trained_part.parse("sparse:50%")


SMALL = configs.smoke(finetune.Config())


@pytest.mark.slow
@pytest.mark.parametrize("dpo", [False, True])
@pytest.mark.parametrize("train", ["all", "lora:2", "last:1", "sparse:1e-3", "sparse:5%"])
def test_a_run_learns_and_what_it_writes_is_the_model_that_it_judged(train, dpo, tmp_path):
    config = dataclasses.replace(SMALL, train=train, dpo=dpo, steps=20, learning_rate=3e-3, merged=True)
    numbers = start(finetune, config, runs.Options(runs=str(tmp_path)))
    assert numbers["held_out_loss"]["after"] < numbers["held_out_loss"]["before"]
    (folder,) = (tmp_path / "finetune").glob("[0-9]*")
    saved = lm.load(folder / "model")
    texts = [str(row) for row in examples.dates(480)]
    base = pretrained.load(config.model, tmp_path, texts, config.max_tokens)
    if train == "lora:2":
        params = lora.merge(lora.load(folder / "adapter", base.params, base.config))
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), saved.params, params)
    if train.startswith("sparse"):
        params = delta.apply(base.params, folder / "delta.safetensors")
        jax.tree.map(np.testing.assert_array_equal, saved.params, params)
        assert (
            delta.count(base.params, params) == numbers["changed_weights"] < 0.9 * numbers["trained_weights"]
        )


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, steps=20, train="last:1", data=str(tmp_path / "data.jsonl"))
    rows = [json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    start(finetune, config, runs.Options(runs=str(tmp_path / "whole")))
    with monkeypatch.context() as patched:
        patched.setattr(finetune, "exact", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start(finetune, config, runs.Options(runs=str(tmp_path / "cut")))
    start(finetune, config, runs.Options(runs=str(tmp_path / "cut"), resume=True))
    one, other = (next((tmp_path / name).glob("finetune/[0-9]*/model")) for name in ("whole", "cut"))
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()
