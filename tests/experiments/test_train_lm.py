"""The character-level experiment, on a text whose next character is always known."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from experiments import train_lm
from experiments.support.data import corpora, tokenization
from experiments.support.run import runs
from proxlm import lm
from tests import arrays
from tests.experiments.starting import start

# Of another length than half a context, so that a lost place shows.
CYCLE = "abcdefg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the text and the runs of this module."""
    path = tmp_path_factory.mktemp("train_lm")
    (path / "text.txt").write_text(300 * CYCLE)
    return path


@pytest.fixture(scope="module")
def config(folder):
    return train_lm.Config(
        text=str(folder / "text.txt"),
        num_layers=1,
        num_heads=2,
        width=16,
        context=16,
        batch=8,
        steps=200,
        learning_rate=1e-2,
        prompt="\n",  # does not occur, and is the default
        samples=2,
        sample_length=40,
    )


@pytest.fixture(scope="module")
def finished(folder, config):
    """The one run that is trained, and its numbers."""
    numbers = start(train_lm, config, runs.Options(runs=str(folder / "runs")))
    return runs.open_run("train_lm", config, folder / "runs", resume=True), numbers


def test_a_run_learns_and_says_so(finished):
    run, numbers = finished
    assert numbers.keys() == {"loss", "held_out_loss", "perplexity"}
    # Where the cycle stands at first cannot be known, and little else costs anything.
    assert numbers["held_out_loss"] < 0.3
    assert numbers["perplexity"] == pytest.approx(np.exp(numbers["held_out_loss"]), rel=1e-4)
    losses = [row["loss"] for row in runs.read_log(run, "language model")]
    assert len(losses) == 2
    assert losses[1] < losses[0] < np.log(len(CYCLE)) + 0.2


def test_training_and_held_out_loss_are_told_apart(finished, folder, config, capsys):
    _, numbers = finished
    start(train_lm, config, runs.Options(resume=True, runs=str(folder / "runs")))
    lines = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["loss, training", f"{numbers['loss']:.4g}"] in lines
    assert ["loss, held out", f"{numbers['held_out_loss']:.4g}"] in lines


def test_a_run_leaves_its_config_metrics_curves_and_samples(finished, config):
    run, _ = finished
    assert json.loads((run.path / "config.json").read_text()) == dataclasses.asdict(config)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [100, 200]
    assert (run.path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_samples_go_on_with_the_prompt_beyond_the_context(finished, config):
    run, _ = finished
    texts = (run.path / "samples.txt").read_text().removesuffix("\n").split("\n\n--------\n\n")
    assert len(texts) == config.samples
    for text in texts:
        assert text[0] == CYCLE[0]
        assert len(text) == 1 + config.sample_length > 2 * config.context
        pairs = [one + other for one, other in itertools.pairwise(text)]
        assert np.mean([pair in CYCLE + CYCLE for pair in pairs]) > 0.95


def test_a_finished_run_is_resumed_to_the_same_numbers(finished, folder, config):
    run, numbers = finished
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    options = runs.Options(resume=True, runs=str(folder / "runs"))
    assert start(train_lm, config, options) == numbers
    after = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert {"metrics.jsonl", "samples.txt"} < after.keys()
    assert after == before


@pytest.mark.parametrize("length", [1, 16, *(pytest.param(x, marks=pytest.mark.slow) for x in (7, 8))])
def test_prompts_of_every_length_up_to_the_context_are_continued(config, length):
    alphabet = tokenization.Characters(CYCLE)
    model = lm.ModelConfig(len(CYCLE), num_layers=1, width=8, num_heads=2, max_length=16)
    params = arrays.rough(model, 0.1)
    prompt = alphabet.encode((3 * CYCLE)[:length])
    texts = train_lm.write(params, prompt, model, alphabet, config)
    assert [text[:length] for text in texts] == 2 * [(3 * CYCLE)[:length]]
    assert {len(text) for text in texts} == {length + config.sample_length}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "abz"}, "the character 'z' does not occur"),
        ({"context": 210}, "last tenth, which is held out, 210: expected more than .* 210 there"),
        ({"context": 3000}, "the text has 2100 characters"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tmp_path, config, changes, message):
    config = dataclasses.replace(config, **changes)
    with pytest.raises(ValueError, match=message):
        start(train_lm, config, runs.Options(runs=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "there is no file"),
        (b" \n\t\n", ValueError, "nothing but white space"),
        ("Bücher".encode("latin1"), ValueError, "not UTF-8 at byte 1"),
    ],
)
def test_a_text_that_cannot_be_read_leaves_no_run(tmp_path, config, content, error, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    config = dataclasses.replace(config, text=str(path))
    with pytest.raises(error, match=message):
        start(train_lm, config, runs.Options(runs=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_runs_that_cannot_be_made_is_named(folder, config):
    root = folder / "text.txt" / "runs"
    with pytest.raises(ValueError, match=r"runs: .*text\.txt.* cannot be made"):
        start(train_lm, config, runs.Options(runs=str(root)))


def test_resume_asks_for_the_settings_of_the_run(finished, folder, config):
    options = runs.Options(resume=True, runs=str(folder / "runs"))
    with pytest.raises(ValueError, match=r"steps: saved 200, given 100"):
        start(train_lm, dataclasses.replace(config, steps=100), options)
    with pytest.raises(ValueError, match="there is no run"):
        start(train_lm, config, dataclasses.replace(options, runs=str(folder / "elsewhere")))


def test_windows_lie_in_their_part_of_the_text():
    tokens = np.arange(50)
    windows = tokenization.random_windows(tokens, 9, 0, (40, 25))
    assert windows.shape == (40, 25, 10)
    starts = windows[..., :1]
    np.testing.assert_array_equal(windows, starts + np.arange(10))
    # Every start that leaves room for a window and its last target, and no other.
    assert {*starts.reshape(-1).tolist()} == {*range(41)}


def test_the_last_tenth_is_held_out():
    config = train_lm.Config(context=9, steps=30, batch=5)
    windows = train_lm.cut(np.arange(500), config)
    assert windows.train.shape == (30, 5, 10) and windows.held_out.shape == (1024, 10)
    assert windows.train.max() < 450 <= windows.held_out.min()


def test_the_plays_are_learnt_by_default(wheels):
    config = train_lm.Config()
    text = train_lm.read(config, runs.Options(data=str(wheels)))
    assert len(text) == corpora.TINY_SHAKESPEARE
    assert config.prompt in text


@pytest.mark.slow
def test_with_patience_the_numbers_are_those_of_the_best_params(folder, config):
    # A rate at which training soon gets worse: the loss after 500 steps is not the last.
    config = dataclasses.replace(config, steps=3000, learning_rate=0.3, patience=1)
    numbers = start(train_lm, config, runs.Options(runs=str(folder / "patient")))
    run = runs.open_run("train_lm", config, folder / "patient", resume=True)
    rows = [row for row in runs.read_log(run, "language model") if "held_out_loss" in row]
    assert rows[-1]["step"] < 3000
    best = min(rows, key=lambda row: row["held_out_loss"])
    assert best["step"] < rows[-1]["step"]
    assert numbers["held_out_loss"] == best["held_out_loss"]
