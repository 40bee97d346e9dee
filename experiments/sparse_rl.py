"""Reinforcement learning that changes a chosen few of a model's weights, exactly.

    python -m experiments.sparse_rl            writes sparsity.png, report.txt and the patches
    python -m experiments.sparse_rl --smoke
"""

import dataclasses
import functools
import shutil
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.models import pretrained
from experiments.support.reinforce import learning, prompting, rewards, tasks
from experiments.support.run import cached_results, cli, configs, runs, stages
from experiments.support.sparse_rl import changes, imitation, judging, lanes, report
from proxlm import lm
from proxlm.policy import ppo, recipes


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    # a folder of transformers, a GGUF file, hf:organisation/name or smollm2
    model: str = configs.field(pretrained.SMOLLM2, smoke=pretrained.UNTRAINED)
    tasks: tuple[str, ...] = configs.field(("sums:30",), smoke=("sums:9",))
    # KIND[:NUMBER]@RATE, as in experiments/support/sparse_rl/lanes.py
    lanes: tuple[str, ...] = configs.field(
        ("adam@5e-5", "l1:3e-4@1e-3"), smoke=("adam@1e-3", "l1:1e-3@1e-2", "sft@1e-3")
    )
    cuts: tuple[int, ...] = configs.field((300_000, 100_000, 30_000, 10_000), smoke=(10,))  # of Adam's changes
    last: int = configs.field(8, smoke=1)  # layers that are trained
    shots: int = 2  # solved problems before each question
    prompts: int = configs.field(8, smoke=2)  # of an iteration
    group: int = configs.field(8, smoke=2)  # answers to each
    tokens: int = configs.field(4, smoke=2)  # of an answer, at most
    iterations: int = configs.field(30, smoke=2)  # one update each
    held_out: int = configs.field(100, smoke=4)  # problems
    validation: int = configs.field(50, smoke=2)  # problems, by which strengths and rates were chosen
    seeds: int = configs.field(3, smoke=1)
    seed: int = 0  # the first

    def validate(self) -> None:
        for lane in self.lanes:
            lanes.parse(lane)
        ppo.check_batch(self.prompts * self.group, settings_of(self))

    @property
    def evaluate_every(self) -> int:
        """Iterations between two saved states: a lane is saved at its end, and when it is stopped."""
        return self.iterations


class Setting(NamedTuple):
    """A task with what all lanes on it share."""

    name: str
    asker: prompting.Asker
    rewards: list[rewards.Reward]
    problems: list[tasks.Problem]
    judge: Any


def settings_of(config: Config) -> ppo.PPOConfig:
    """GRPO with one update an iteration and no penalty on the KL, whose work the anchor does."""
    return recipes.make("grpo").replace(kl=None, num_epochs=1, num_minibatches=1, group_size=config.group)


def prepare(config: Config, model: lm.Pretrained, name: str) -> Setting:
    """Parts a task into problems that are shown, learnt from, chosen by and held out."""
    task = tasks.load(name, config.held_out + config.validation, 0)
    asker = prompting.Asker(model, tuple(task.train[: config.shots]))
    asked = judging.questions(asker, task.held_out)
    judge = judging.make_judge(asker, model.config, asked, model.params)
    return Setting(name, asker, rewards.parse(["exact"], task), task.train[config.shots :], judge)


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Trains every lane on every task, seed by seed, and judges; returns the numbers of the report."""
    texts = [p.question for p in tasks.load(config.tasks[0], config.held_out, 0).train]
    model = pretrained.load(config.model, run.data, texts, 512)
    found = {}
    for name in config.tasks:
        setting = prepare(config, model, name)
        for lane in map(lanes.parse, config.lanes):
            found[name, lane] = of_lane(run, config, setting, lane)
    return report.write(run, config, model, found)


def of_lane(run, config: Config, setting: Setting, lane: lanes.Lane) -> list[dict[str, Any]]:
    """The results of the seeds of a lane, each a stage that runs of the same settings share."""
    model, ppo_config, optimizer = setting.asker.model, settings_of(config), lane.chain()
    sampling = lm.SamplingConfig(stop_token=setting.asker.stops())
    parts = learning.make_parts(model.config, sampling, config.tokens, optimizer, ppo_config)
    shared = (setting.asker, setting.rewards, ppo_config, optimizer, parts, config.prompts, config.group)
    own = {"tasks", "lanes", "seeds", "seed"}
    given = {name: value for name, value in dataclasses.asdict(config).items() if name not in own}
    results = []
    for seed in range(config.seed, config.seed + config.seeds):
        settings = given | {"task": setting.name, "lane": dataclasses.asdict(lane), "seed": seed}

        def compute(folder, seed=seed, settings=settings):
            inner = dataclasses.replace(run, path=folder, config=settings, tracker=None)
            train(inner, config, setting, lane, learning.Setup(*shared), seed)

        label = f"{setting.name}-{lane.name}-{seed}".replace(":", "-")
        stage = stages.stage(run, label, settings, compute)
        inner = dataclasses.replace(run, path=stage.path)
        results.append(cached_results.compute_once(inner, "result", dict) | {"path": stage.path})
    return results


def train(run, config: Config, setting: Setting, lane: lanes.Lane, setup: learning.Setup, seed: int) -> None:
    """One lane with one seed; what it found, and its delta, are in the folder of the run."""
    model = setting.asker.model
    trained, frozen = lane.split(jax.random.key(seed), model.params, config.last)
    began, watch = time.process_time(), functools.partial(changes.counts, trained)
    start = setting.judge(trained, frozen)
    if lane.kind == "sft":
        own = (setting.asker, setup.optimizer, seed, trained, frozen, setting.problems, watch)
        new = imitation.learn(run, config, *own)
    else:
        new = learning.learn(run, config, setup, seed, trained, frozen, setting.problems, None, watch)
    seconds = time.process_time() - began
    result: dict[str, Any] = {"start": start._asdict(), "end": setting.judge(new, frozen)._asdict()}
    result |= {"seconds": seconds, "changed": np.asarray(lm.delta.count(trained, new))}
    result["where"] = changes.by_leaf(trained, new)
    result["bytes"] = changes.save(run.path / "delta.safetensors", trained, new)
    if lane.kind == "adam":
        size = sum(x.size for x in jax.tree.leaves(trained))
        for count in config.cuts:
            result[f"cut {count}"] = cut(run, setting, trained, frozen, new, jnp.float32(count / size))
    log = runs.read_log(run, f"seed {seed}")
    result["log"] = {name: np.array([row[name] for row in log]) for name in log[0] if name != "stage"}
    cached_results.compute_once(run, "result", lambda: result)
    shutil.rmtree(run.path / "fit")


def cut(run, setting: Setting, trained: Any, frozen: Any, new: Any, share: jax.Array) -> dict[str, Any]:
    """What the largest changes alone are good for."""
    kept = changes.cut(trained, new, share)
    size = changes.save(run.path / "cut.safetensors", trained, kept)
    judged = setting.judge(kept, frozen)._asdict()
    return {"end": judged, "changed": np.asarray(lm.delta.count(trained, kept)), "bytes": size}


if __name__ == "__main__":
    cli.run(main)
