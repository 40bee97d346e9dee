"""Text from models that were kept, token by token."""

import json

import jax
import numpy as np
import pytest

from experiments import generate
from experiments.support.data import tokenization
from experiments.support.run import model_store, runs
from proxlm import lm
from tests import arrays

CYCLE = "abcdefg"


@pytest.fixture(scope="module")
def writer():
    """Every letter is followed by the next, by hand: no block adds anything to the embedding."""
    size = len(CYCLE)
    config = lm.ModelConfig(size, num_layers=1, width=8, num_heads=2, max_length=16, tie_embeddings=False)
    params = jax.tree.map(np.zeros_like, arrays.rough(config, 0.1))
    params["norm"]["scale"] = np.ones(8, np.float32)
    params["embedding"]["kernel"] = np.eye(size, 8, dtype=np.float32)
    params["head"]["kernel"] = 30 * np.roll(np.eye(size, 8, dtype=np.float32), 1, axis=0)
    alphabet = tokenization.Characters(CYCLE)
    return model_store.LoadedModel(
        params, config, lambda text: alphabet.encode(text).tolist(), alphabet.decode, ()
    )


def test_a_text_grows_piece_by_piece_and_beyond_the_context(writer):
    pieces = []
    config = generate.Config(prompt="abc", num_tokens=40, samples=2)
    numbers = generate.write(writer, config, pieces.append)
    assert numbers["texts"] == 2 * [(7 * CYCLE)[:43]]
    assert pieces[:4] == ["[1] abc", "d", "e", "f"]
    assert numbers["tokens_per_second"] > 0


def test_a_stop_ends_a_text_and_is_not_written(writer):
    writer = writer._replace(stops=(CYCLE.index("f"),))
    config = generate.Config(prompt="c", num_tokens=9)
    assert generate.write(writer, config, lambda text: None)["texts"] == ["cde"]


def test_a_text_that_ends_at_once_has_no_speed(writer):
    writer = writer._replace(stops=(CYCLE.index("b"),))
    numbers = generate.write(writer, generate.Config(prompt="a"), lambda text: None)
    assert numbers["texts"] == ["a"]
    assert np.isnan(numbers["first_seconds"]) and np.isnan(numbers["tokens_per_second"])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("abc" * 6, "18 tokens: expected 1 to 15"), ("abz", "the character 'z' does not occur")],
)
def test_prompts_that_do_not_fit_are_refused(writer, prompt, message):
    with pytest.raises(ValueError, match=message):
        generate.write(writer, generate.Config(prompt=prompt), lambda text: None)


def test_characters_are_shown_when_all_their_bytes_are_there():
    whole = "né!".encode()
    decode = lambda tokens: bytes(tokens).decode(errors="replace")
    assert [*generate.decoded(iter(whole), decode)] == ["n", "é", "!", ""]
    # What never becomes a character is shown at the end as what it is.
    assert [*generate.decoded(iter(whole[:2]), decode)] == ["n", "\ufffd"]


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_what_is_kept_comes_back_with_its_tokenizer(tmp_path, kind):
    text = "to be or not to be"
    if kind == "characters":
        tokenizer, size = tokenization.Characters(text), len(set(text))
    else:
        tokenizer, size = tokenization.train_bpe([text], 260), 260
    config = lm.ModelConfig(size, num_layers=1, width=8, num_heads=2, max_length=16)
    params = arrays.rough(config, 0.1)
    model_store.save(tmp_path / "run" / "lm", params, config, tokenizer)
    model_store.save(tmp_path / "run" / "lm", params, config, tokenizer)
    writer = model_store.load(str(tmp_path / "run"), tmp_path)
    assert writer.config == config
    assert jax.tree.all(jax.tree.map(np.array_equal, writer.params, params))
    tokens = writer.encode(text)
    assert writer.decode(tokens) == text
    # A model of documents expects their end before a text, and ends one by it.
    assert (tokens[0], writer.stops) == ((0, (0,)) if kind == "bpe" else (tokens[0], ()))


def test_a_folder_of_transformers_is_read(tmp_path):
    tokenizer = tokenization.train_bpe([CYCLE], 260)
    config = lm.ModelConfig(260, num_layers=1, width=8, num_heads=2, max_length=16)
    params = arrays.rough(config, 0.1)
    template = lm.ChatTemplate("{{ messages[0].content }}!", {})
    lm.save(tmp_path / "model", lm.Pretrained(params, config, tokenizer, (3,), template))
    model = model_store.load(str(tmp_path / "model"), tmp_path)
    assert (model.config, model.stops, model.decode(model.encode(CYCLE))) == (config, (3,), CYCLE)
    assert model.chat and model.decode(model.chat(CYCLE)) == CYCLE + "!"
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, params))
    with pytest.raises(ValueError, match="chat: the model has no chat template"):
        generate.write(model._replace(chat=None), generate.Config(chat=True), lambda text: None)


def test_a_folder_without_a_model_or_with_several_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        model_store.load(str(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(ValueError, match="no language model with its tokenizer"):
        model_store.load(str(tmp_path), tmp_path)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        (tmp_path / name / model_store.ABOUT).write_text("{}")
    with pytest.raises(ValueError, match=r"holds 2 models, .*after, .*before: give one"):
        model_store.load(str(tmp_path), tmp_path)


@pytest.mark.parametrize("about", ["", "{}", '{"model": {"size": 3}, "tokenizer": {}}'])
def test_a_damaged_description_is_refused(tmp_path, about):
    (tmp_path / model_store.ABOUT).write_text(about)
    with pytest.raises(ValueError, match="is damaged"):
        model_store.load(str(tmp_path), tmp_path)


def test_a_description_of_another_model_than_is_there_is_refused(tmp_path):
    alphabet = tokenization.Characters(CYCLE)
    config = lm.ModelConfig(len(CYCLE), num_layers=1, width=8, num_heads=2)
    model_store.save(tmp_path, arrays.rough(config, 0.1), config, alphabet)
    about = json.loads((tmp_path / model_store.ABOUT).read_text())
    about["model"] |= {"width": 16, "head_width": 8}
    (tmp_path / model_store.ABOUT).write_text(json.dumps(about))
    with pytest.raises(ValueError, match="width: saved 8, given 16"):
        model_store.load(str(tmp_path), tmp_path)


@pytest.mark.parametrize("change", [{"num_layers": 10**9}, {"hidden_width": 2**40}])
def test_a_description_of_more_than_its_files_can_hold_is_refused(tmp_path, change):
    config = lm.ModelConfig(len(CYCLE), num_layers=1, width=8, num_heads=2)
    alphabet = tokenization.Characters(CYCLE)
    model_store.save(tmp_path, arrays.rough(config, 0.1), config, alphabet)
    about = json.loads((tmp_path / model_store.ABOUT).read_text())
    about["model"] |= change
    (tmp_path / model_store.ABOUT).write_text(json.dumps(about))
    (given,) = [f"{name}={value}" for name, value in change.items()]
    with pytest.raises(ValueError, match=f"{given}.* parameters, and its files have"):
        model_store.load(str(tmp_path), tmp_path)


@pytest.mark.slow
def test_the_smoke_run_writes_what_was_asked_for(capsys):
    config = generate.Config(samples=2)
    numbers = generate.main(config, runs.Options(smoke=True))
    out = capsys.readouterr().out
    assert all(text in out for text in numbers["texts"])
    assert {len(text) for text in numbers["texts"]} == {len(config.prompt) + 40}
    assert "tokens a second" in out
