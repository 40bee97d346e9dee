"""Tasks, rewards, prompts and trained parts of reinforce; the whole of it is a slow proof."""

import json
import types

import jax
import numpy as np
import pytest

from experiments import reinforce
from experiments.support import Refusal
from experiments.support.models import pretrained, trained_part
from experiments.support.reinforce import prompting, rewards, tasks
from experiments.support.reinforce.tasks import Problem, Task
from experiments.support.run import cli, runs
from proxlm import lm

SUM = Problem("3 + 4 =", "7")


def test_sums_are_all_there_and_apart():
    task = tasks.load("sums:3", 5, seed=0)
    assert {p.question for p in task.train} | {p.question for p in task.held_out} == {
        f"{a} + {b} =" for a in range(4) for b in range(4)
    }
    assert len(task.train) == 11
    assert all(eval(p.question.removesuffix("=")) == int(p.answer) for p in task.train)


def test_a_file_gives_problems_and_names_a_bad_line(tmp_path):
    path = tmp_path / "task.jsonl"
    rows = [{"question": f"{i}?", "answer": i, "choices": ["1", "2"]} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = tasks.load(str(path), 2, seed=0)
    assert sorted(task.train + task.held_out)[3] == Problem("3?", "3", ("1", "2"))
    path.write_text('{"question": "1?", "answer": 1}\n{"question": "2?"}\n')
    with pytest.raises(Refusal, match="line 2 of"):
        tasks.load(str(path), 1, seed=0)


def test_a_generator_takes_options_by_name(monkeypatch):
    def create_dataset(name, size, seed, max_terms=2):
        entries = [{"question": f"{name} {i % max_terms}", "answer": i} for i in range(size)]
        return Made(entries)

    class Made(list):
        def score_answer(self, response, entry):
            return float(response == str(entry["answer"]))

    fake = types.SimpleNamespace(create_dataset=create_dataset)
    monkeypatch.setattr(tasks.importlib, "import_module", lambda name: fake)
    task = tasks.load("reasoning_gym/chain_sum:max_terms=5", 2, seed=0)
    assert sorted(p.question for p in task.train + task.held_out) == [f"chain_sum {i}" for i in range(5)]
    assert task.score is not None and task.score(task.train[0].answer, task.train[0]) == 1.0
    for wrong in ("digits=2", "max_terms", "max_terms=x"):
        with pytest.raises(Refusal, match="OPTION=NUMBER"):
            tasks.load(f"reasoning_gym/chain_sum:{wrong}", 2, seed=0)


@pytest.mark.parametrize(
    ("name", "named"),
    [("sums:x", "task must be"), ("none.jsonl", "cannot be read"), ("sums:1", "has 4 problems, of which 3")],
)
def test_what_is_no_task_is_refused(name, named):
    with pytest.raises((Refusal, ValueError), match=named):
        tasks.load(name, 3, seed=0)


@pytest.mark.parametrize(
    ("text", "answer", "problem", "score"),
    [
        ("exact", " 7 ", SUM, 1.0),
        ("exact", "17", SUM, 0.0),
        ("0.2*regex:^\\d+$", "17", SUM, 0.2),
        ("choice", "I say red.", Problem("?", "red", ("red", "blue")), 1.0),
        ("choice", "red or blue", Problem("?", "red", ("red", "blue")), 0.0),
        ("python:math.dist", (1.0,), (4.0,), 3.0),
        ("task", "7", SUM, 0.5),
    ],
)
def test_a_reward_scores(text, answer, problem, score):
    (reward,) = rewards.parse([text], Task([], [], lambda answer, problem: 0.5))
    assert reward.weight * reward.score(answer, problem) == pytest.approx(score)


def test_rewards_add_up_and_none_is_not_judged():
    unknown = rewards.Reward("unknown", 1.0, lambda answer, problem: None if answer == "" else 1.0)
    found = rewards.parse(["2*exact"], Task([], []))
    np.testing.assert_array_equal(rewards.total([*found, unknown], ["7", ""], [SUM, SUM]), [3.0, np.nan])


@pytest.mark.parametrize("text", ["exactly", "regex:", "regex:(", "python:os", "python:os.nothing", "task"])
def test_what_is_no_reward_is_refused(text):
    with pytest.raises(ValueError, match="reward must be"):
        rewards.parse([text], Task([], []))


@pytest.mark.parametrize(
    "text", ["", "last", "last:0", "all:3", "few", "last:2 last:3", "norms:2", "lora:2 norms"]
)
def test_what_is_no_trained_part_is_refused(text):
    with pytest.raises(ValueError, match="train must be"):
        trained_part.parse(text)


def test_norms_alone_are_a_trained_part():
    choice = trained_part.parse("last:1 norms sparse:1e-3")
    assert choice == trained_part.Choice(last=1, norms=True, sparse=1e-3)
    params = lm.init(jax.random.key(0), lm.ModelConfig(8, num_layers=2, width=8, num_heads=2))
    trained, _ = choice.split(jax.random.key(1), params)
    assert [x.shape for x in jax.tree.leaves(trained)] == [(1, 8), (1, 8)]


def test_prompts_stand_at_the_right_end_behind_solved_problems(tmp_path):
    task = tasks.load("sums:20", 4, seed=0)
    model = pretrained.load("untrained", tmp_path, [p.question for p in task.train], 64)
    asker = prompting.Asker(model, (SUM,))
    prompts = asker.prompts([SUM, Problem("1311 + 140 + 9 =", "1460")])
    text = lambda row: model.tokenizer.decode(prompts.tokens[row][prompts.mask[row]].tolist())
    assert text(0) == "3 + 4 = 7\n3 + 4 ="
    assert prompts.mask[:, -1].all() and not prompts.mask[0, 0]
    newline = model.tokenizer.encode("\n").ids[0]
    assert newline in asker.stops()
    ids = np.array([model.tokenizer.encode(" 7\n8").ids])
    assert asker.answers(ids, np.ones_like(ids, bool)) == ["7"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "train"), [("grpo", "sparse:1e-4"), ("ppo", "lora:2"), ("remax", "last:1")]
)
def test_it_learns_resumes_and_saves(tmp_path, recipe, train):
    config = reinforce.Config(
        model="untrained", train=train, recipe=recipe, prompts=2, group=2, tokens=2, iterations=2, held_out=4
    )
    options = runs.Options(runs=str(tmp_path))
    found = cli.start(reinforce.main, config, options)
    again = cli.start(reinforce.main, config, runs.Options(runs=str(tmp_path), resume=True))
    assert found == again
    (folder,) = tmp_path.glob("reinforce/*/model")
    assert lm.load(folder).config.num_layers == 2
