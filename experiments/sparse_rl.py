"""Reinforcement learning that changes a chosen few of a model's weights, exactly.

    python -m experiments.sparse_rl            # writes sparsity.png, where.png, a patch and report.txt
    python -m experiments.sparse_rl --last 8 --lanes adam@5e-5 l1:3e-4@1e-3 --baselines sft@5e-5
    python -m experiments.sparse_rl --tasks reasoning_gym/chain_sum:max_terms=2,max_digits=2 --seeds 1
    python -m experiments.sparse_rl --smoke

GRPO of SmolLM2-135M (`make more-data`) on sums of numbers up to 30, two solved ones shown. An ℓ1 penalty on
the distance from the pretrained weights, in Adam's metric, stands beside Adam and what else makes a small
patch: its largest changes, the scales of norms, low-rank factors, groups, supervised learning. Success on
held-out problems is the probability that an answer sampled at temperature 1 is right, computed and not
sampled. A lane with a seed is trained once for all runs of the same settings, and resumed.

2 CPU cores (Intel Xeon with AVX-512, shared with others), 80 CPU minutes, 3 to 7 a lane and seed: 30
iterations of 8 x 8 answers, all 30 layers trained. Right, in %, of 100 held-out sums up to 30 (standard error
of the problems about 4); ± the standard deviation over n=3 seeds, elsewhere n=1:

    lane                              weights changed, of the model   patch     right         KL, nats
    start                                       0                               21.8
    Adam at 5e-6                      106,190,618    79 %              340 MB   69.2 ± 2.2    2.2
    its 3,000,000 largest changes       2,999,497     2.2 %             11 MB   28.5 ± 0.8    0.1
    its 100,000 largest changes            99,938      .074 %          434 kB   22.1 ± 0.0    0.0
    ℓ1 of 3e-4 at 2e-4                     63,370      .047 %          253 kB   66.6 ± 4.2    2.0
    scales of the norms at 1e-3            34,560      .026 %          138 kB   65.4 ± 2.4    2.3
    ℓ1 of 1e-3 on these scales              9,243      .0069 %          37 kB   69.0 ± 1.4    2.3
    ℓ1 of 3e-3 on these scales              2,036      .0015 %           9 kB   64.3 ± 3.1    1.7
    LoRA of rank 1 at 1e-3                305,280 factors              1.2 MB   67.8          2.1
    SFT on right answers at 2e-5      106,198,757    79 %              372 MB   71.9          2.5

So on the scales of the norms ℓ1 has all of Adam's gain by .0069 % of the weights and 37 kB, and 90 % by 9 kB;
free among all weights 95 %, within the spread, by .047 %. Where to look it says itself: at 1e-4 and 4e-4
(568,372 weights, 57.2) it changes 96 % of the scales of the MLPs' norms, 69 % of those of attention and .5 %
of the kernels. Two other tasks, at the same rates: sums up to 9, 40 held out, and sums and differences of
reasoning-gym (`chain_sum:max_terms=2,max_digits=2`), 100 held out, 41 and 54 CPU minutes:

    start                              42.2                                27.3
    Adam at 5e-6                       93.2 ± 2.3   79 %      345 MB       45.1 ± 0.3   79 %      339 MB
    its 100,000 largest changes        42.7 ± 0.1     .074 %  433 kB       27.6 ± 0.0     .074 %  434 kB
    ℓ1 of 3e-4 at 2e-4                 94.7 ± 1.6     .033 %  180 kB       47.4 ± 2.3     .053 %  282 kB
    ℓ1 of 1e-3 on the scales           93.6 ± 1.0     .0048 %  26 kB       38.8           .0069 %  37 kB
    scales of the norms at 1e-3        91.2           .026 %  138 kB

Free among all weights ℓ1 has there all of Adam's gain; on the scales (n=1 of chain_sum) 65 % of the latter.

The last 8 layers alone (`--last 8`), sums up to 30 and, of 40 held out, up to 9:

    Adam at 5e-5                       28,320,341    21 %              107 MB   47.5 ± 0.8    69.1 ± 7.1
    its 100,000 largest changes            99,996      .074 %          458 kB   23.0 ± 0.1    45.3 ± 0.4
    ℓ1 of 3e-4 at 1e-3                     83,642      .062 %          354 kB   46.0 ± 1.4    86.0 ± 3.2
    scales of the norms at 3e-3             9,216      .0069 %          37 kB   47.3 ± 1.6    78.5 ± 6.2
    ℓ1 of 1e-3 on these scales              4,735      .0035 %          20 kB   44.9 ± 2.2    79.1 ± 3.4
    LoRA of rank 1 at 1e-3                 81,408 factors              326 kB   39.5          74.9
    SFT on the right answers           28,320,412    21 %              107 MB   49.8          80.6

Sums up to 99 (n=1): 13.8 become 36.5 by Adam, 34.2 by ℓ1 (390 kB), 36.9 by the scales (37 kB). Those of
three numbers (all layers, n=1) are too hard: 6.1 become 10.4 by Adam at 2e-5, 11.1 by ℓ1 on the scales.

Rates were chosen on 50 validation problems, those of Adam here by three seeds: 2e-5, 1e-5 and 5e-6 (62.7,
68.3, 70.3; held out 58.1 ± 2.6, 64.9 ± 9.1, 69.2 ± 2.2; ℓ1 has 71.2 there, on the scales too), others by one.
All layers, held out: 1e-3, 4e-4 and 2e-4 for ℓ1 (49.2, 54.8, 68.6); none else was tried. Last 8: 5e-5, 2e-5
and 1e-4 for Adam (47.0, 40.3, 35.1), two for ℓ1 (44.5, 39.8), the scales (40.7, 47.9), LoRA (39.5, 35.3).

Of bfloat16 weights 1,135,401 differ after an iteration of Adam and 12,361,612 after all; with ℓ1 31,527 and
35,452, 191 kB for samplers (`patch.safetensors`, which vLLM 0.33 applies); on the scales (1e-3) 3,182 and
6,336. Of the weights that two seeds change, both change 48 %, of the scales 51 %.
"""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.support.models import pretrained
from experiments.support.reinforce import learning, prompting, rewards, tasks
from experiments.support.run import cached_results, cli, configs, processes, runs, stages
from experiments.support.sparse_rl import changes, imitation, judging, lanes, report
from proxlm import lm
from proxlm.policy import ppo, recipes

PATCH = "patch.safetensors"  # for samplers


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    # a folder of transformers, a GGUF file, hf:organisation/name or smollm2
    model: str = configs.field(pretrained.SMOLLM2, smoke=pretrained.UNTRAINED)
    # as those of reinforce: "sums:30", a file of JSON lines, "reasoning_gym/chain_sum"
    tasks: tuple[str, ...] = configs.field(("sums:30",), smoke=("sums:9",))
    # KIND[:NUMBER]@RATE, as in experiments/support/sparse_rl/lanes.py
    lanes: tuple[str, ...] = configs.field(
        ("adam@5e-6", "l1:3e-4@2e-4", "norms@1e-3", "l1_norms:1e-3@1e-3", "l1_norms:3e-3@1e-3"),
        smoke=("adam@1e-3", "l1:1e-3@1e-2", "sft@1e-3"),
    )
    # lanes of one seed
    baselines: tuple[str, ...] = configs.field(("lora:1@1e-3", "sft@2e-5"), smoke=("norms@1e-3",))
    cuts: tuple[int, ...] = configs.field((3_000_000, 300_000, 100_000), smoke=(10,))  # of Adam's changes
    last: int = configs.field(30, smoke=1)  # layers that are trained
    shots: int = 2  # solved problems before each question
    prompts: int = configs.field(8, smoke=2)  # of an iteration
    group: int = configs.field(8, smoke=2)  # answers to each
    tokens: int = configs.field(4, smoke=2)  # of an answer, at most
    iterations: int = configs.field(30, smoke=2)  # one update each
    held_out: int = configs.field(100, smoke=4)  # problems
    validation: int = configs.field(50, smoke=2)  # problems, by which strengths and rates were chosen
    seeds: int = configs.field(3, smoke=1)  # one after another
    seed: int = 0  # the first

    def validate(self) -> None:
        for lane in (*self.lanes, *self.baselines):
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
    held_out: int
    validation: int
    judge: Callable[[Any, Any], judging.Judgement]
    start: judging.Judgement


def settings_of(config: Config) -> ppo.PPOConfig:
    """GRPO with one update an iteration and no penalty on the KL, whose work the anchor does."""
    return recipes.make("grpo").replace(kl=None, num_epochs=1, num_minibatches=1, group_size=config.group)


def prepare(config: Config, model: lm.Pretrained, name: str) -> Setting:
    """Parts a task into problems that are shown, learnt from, chosen by and held out."""
    count = sum(map(len, tasks.load(name, 1, 0)[:2]))
    held_out, validation = min(config.held_out, 2 * count // 5), min(config.validation, count // 10)
    task = tasks.load(name, held_out + validation, 0)
    asker = prompting.Asker(model, tuple(task.train[: config.shots]))
    asked = judging.questions(asker, task.held_out)
    judge = judging.make_judge(asker, model.config, asked, model.params)
    start = judge(*lm.trainable.split(model.params, lm.trainable.last_layers(config.last)))
    found, problems = rewards.parse(["exact"], task), task.train[config.shots :]
    return Setting(name, asker, found, problems, held_out, validation, judge, start)


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Trains every lane on every task, seed by seed, and judges; returns the numbers of the report."""
    texts = [p.question for p in tasks.load(config.tasks[0], 1, 0).train]
    load = functools.partial(pretrained.load, config.model, run.data, texts, 512)
    model, found, overlaps, held_out, checked = load(), {}, {}, {}, []
    for name in config.tasks:
        setting = prepare(config, model, name)
        held_out[name] = setting.held_out
        for text in (*config.lanes, *config.baselines):
            lane, seeds = lanes.parse(text), config.seeds if text in config.lanes else 1
            found[name, lane] = results = of_lane(run, config, setting, lane, seeds)
            if lane.sparse:
                start, _ = lane.split(jax.random.key(config.seed), model.params, config.last)
                overlaps |= {(name, lane): report.overlap(results, start)} if seeds > 1 else {}
                checked += [] if checked else [check(run, config, setting, lane, results[0], load())]
    return report.write(run, model, found, held_out, "".join(checked), overlaps)


def check(
    run, config: Config, setting: Setting, lane: lanes.Lane, result: dict[str, Any], fresh: lm.Pretrained
):
    """Applies a delta to a model loaded anew and judges it: says whether all numbers are the same.

    Writes it for samplers, too, by the names and in the dtype of the checkpoint.
    """
    start, frozen = lane.split(jax.random.key(config.seed), fresh.params, config.last)
    new: Any = lm.delta.apply(start, result["path"] / "delta.safetensors")
    again = setting.judge(new, frozen)
    same = all(np.array_equal(result["end"][name], x) for name, x in again._asdict().items())
    size = changes.save_patch(run.path / PATCH, fresh, lm.trainable.merge(new, frozen))
    given = "the bits that were saved (SHA-256)"
    told = f"{lane.name} on {setting.name}, applied to a model loaded anew: {given}, judged alike: {same}"
    return f"{told}\n{PATCH}: its weights in bfloat16 by the checkpoint's names, {size:,} bytes"


def of_lane(run, config: Config, setting: Setting, lane: lanes.Lane, seeds: int) -> list[dict[str, Any]]:
    """The results of the seeds of a lane, each a stage that runs of the same settings share."""
    model, ppo_config, optimizer = setting.asker.model, settings_of(config), lane.chain()
    sampling = lm.SamplingConfig(stop_token=setting.asker.stops())
    parts = learning.make_parts(model.config, sampling, config.tokens, optimizer, ppo_config)
    shared = (setting.asker, setting.rewards, ppo_config, optimizer, parts, config.prompts, config.group)
    own = {"tasks", "lanes", "baselines", "seeds", "seed"}
    given = {name: value for name, value in dataclasses.asdict(config).items() if name not in own}
    given |= {"held_out": setting.held_out, "validation": setting.validation}
    results = []
    for seed in range(config.seed, config.seed + seeds):
        settings = given | {"task": setting.name, "lane": dataclasses.asdict(lane), "seed": seed}

        def compute(folder, seed=seed, settings=settings):
            inner = dataclasses.replace(run, path=folder, config=settings, tracker=None)
            train(inner, config, setting, lane, learning.Setup(*shared), seed)

        stage = stages.stage(run, f"{setting.name}-{lane.name}-{seed}", settings, compute)
        inner = dataclasses.replace(run, path=stage.path)
        results.append(cached_results.compute_once(inner, "result", dict) | {"path": stage.path})
    return results


def train(run, config: Config, setting: Setting, lane: lanes.Lane, setup: learning.Setup, seed: int) -> None:
    """One lane with one seed; what it found, and its delta, are in the folder of the run."""
    model = setting.asker.model
    trained, frozen = lane.split(jax.random.key(seed), model.params, config.last)
    began, watch = time.process_time(), functools.partial(changes.counts, trained)
    if lane.kind == "sft":
        own = (setting.asker, setup.optimizer, seed, trained, frozen, setting.problems, watch)
        new = imitation.learn(run, config, *own)
    else:
        new = learning.learn(run, config, setup, seed, trained, frozen, setting.problems, None, watch)
    seconds = time.process_time() - began
    result: dict[str, Any] = {"start": setting.start._asdict(), "end": setting.judge(new, frozen)._asdict()}
    result |= {"seconds": seconds, "changed": np.asarray(lm.delta.count(trained, new))}
    result["where"] = changes.by_leaf(trained, new)
    whole = sum(x.nbytes for x in jax.tree.leaves(trained))
    result["bytes"] = min(whole, changes.save(run.path / "delta.safetensors", trained, new))
    if lane.kind == "adam":
        size = sum(x.size for x in jax.tree.leaves(trained))
        for count in config.cuts:
            result[f"cut {count}"] = cut(run, setting, trained, frozen, new, jnp.float32(count / size))
    log = runs.read_log(run, f"seed {seed}")
    result["log"] = {name: np.array([row[name] for row in log]) for name in log[0] if name != "stage"}
    cached_results.compute_once(run, "result", lambda: result)
    if processes.is_first():
        shutil.rmtree(run.path / "fit")


def cut(run, setting: Setting, trained: Any, frozen: Any, new: Any, share: jax.Array) -> dict[str, Any]:
    """The result of the largest changes alone."""
    kept = changes.cut(trained, new, share)
    size = changes.save(run.path / "cut.safetensors", trained, kept)
    judged = setting.judge(kept, frozen)._asdict()
    return {"end": judged, "changed": np.asarray(lm.delta.count(trained, kept)), "bytes": size}


if __name__ == "__main__":
    cli.run(main)
