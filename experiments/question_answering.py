"""Question answering: supervised learning of short answers, then reinforcement by exact match.

    python -m experiments.question_answering               # sums in words, and QuaRTz's science
    python -m experiments.question_answering --ask "12 + 7 ="
    python -m experiments.question_answering --ask "What is the capital of France?"

One core of an Intel Xeon with AVX-512, shared with others, 14 CPU minutes, about 7 of them for sums; n=3
seeds, one run, resumed once. Of 1000 held-out sums and differences, 91.1 ± 1.1 % of sampled answers and
97.4 ± 1.4 % of the likeliest are right after answers were shown, up to a loss of 0.05 nats per token (by
1350, 1500 and 2650 steps); after reinforcement learning on exact match, 98.4 ± 0.5 % (98.0 to 98.9 by seed)
and 99.9 ± 0.1 %. Settings were chosen on a tenth of the pairs to learn from. There supervised learning
needed no judge: unstopped, its rates falling over 1500 steps, it had 99.2 % of sampled answers right after
them (n=1). QuaRTz's two-choice questions are beyond a model that has read nothing else: 50.1 ± 0.3 % of 563
without near twins among those shown; majority 49.7 %, tf-idf 52.8 %, naive Bayes 58.3 %. Ridge regression
on what 22 layers of the pretrained SmolLM2-135M make of a question, times the words of its choices: 62.7 ±
0.8 % (n=3 splits, 557 to 575 questions each; by split 63.1, 63.2 and 61.7, naive Bayes 58.3, 58.7 and
57.2). Its ridge was chosen on 487 of the training questions of a fourth split, 62.0 % right. The next word
that SmolLM2 expects says little: 50.7 % of these, 53.2 after fine-tuning its last 8 layers.

--ask: 0.7 ms in the median, 11 ms in the 95th percentile of 50. SmolLM2 answers what is neither, and begins
after 0.21 s of CPU time, at most 0.23 s of 24 (two questions of some 38 tokens with the chat template; the
Xeon, once compiled).
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.support.models import language_model
from experiments.support.question_answering import answering, report, science, tasks
from experiments.support.run import cli, configs, policy_training, runs, supervised
from proxlm import _validation, lm, training
from proxlm.policy import ppo, recipes

CHUNK = 50  # supervised steps a call


@dataclasses.dataclass(frozen=True)
class Config(configs.Base):
    num_layers: int = configs.field(2, smoke=1)  # of the model
    num_heads: int = configs.field(4, smoke=2)  # of attention, in each layer
    width: int = configs.field(64, smoke=16)  # of the residual stream
    exercises: int = configs.field(20_000, smoke=200)  # made up to learn arithmetic from
    sums_steps: int = configs.field(3000, smoke=50)  # of supervised learning at most
    enough: float = 0.05  # nats per token that end it for sums, while a tenth is still wrong
    science_steps: int = configs.field(200, smoke=50)  # of supervised learning, for QuaRTz
    sums_iterations: int = configs.field(800, smoke=10)  # of reinforcement learning
    science_iterations: int = configs.field(20, smoke=10)  # of reinforcement learning, for QuaRTz
    batch: int = configs.field(64, smoke=16)  # exercises of a supervised step
    prompts: int = configs.field(32, smoke=4)  # of an iteration, each answered `group` times
    group: int = 8  # answers to each prompt
    rl_rate: float = 5e-3  # of Muon in reinforcement learning; a fifth of it is Adam's
    recipe: str = "rloo"  # of policy optimisation
    pretrained: bool = configs.field(True, smoke=False)  # also answer QuaRTz by the states of SmolLM2
    seeds: int = configs.field(3, smoke=2)  # models of each task; splits of QuaRTz, for SmolLM2
    seed: int = 0  # the first of them

    def validate(self) -> None:
        configs.check_multiples(
            self, sums_steps=CHUNK, science_steps=CHUNK, sums_iterations=10, science_iterations=10
        )
        _validation.at_least(2, group=self.group)
        _validation.at_least(self.batch, remedy="The lower bound is batch.", exercises=self.exercises)
        configs.check_choices(self, recipe=recipes.RECIPES)
        ppo.check_batch(self.prompts * self.group, settings(self))


def settings(config: Config) -> ppo.PPOConfig:
    """One step a batch on advantages within a question's group of answers; no KL, no critic."""
    one_step = {"num_epochs": 1, "num_minibatches": 1}
    return recipes.make(config.recipe, group_size=config.group, kl_coef=0.0, **one_step)


def supervised_loss(params, batch, model: lm.ModelConfig):
    """-Σ log p(answer token | question, answer so far) / number of answer tokens, in nats.

    The question is read, and not learnt to be written: only tokens of answers count.
    """
    tokens = jnp.concatenate([batch.prompts, batch.answers], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.answer_mask], axis=1)
    scores = lm.score(params, tokens, model, mask=mask, start=batch.prompts.shape[1])
    said = jnp.where(batch.answer_mask, scores.log_probs, 0.0)
    return -jnp.sum(said) / jnp.sum(batch.answer_mask)


def learn(run, name: str, data, model, steps: int, enough: float, config: Config):
    """Supervised learning from questions with their answers; params, one row a seed, in one vmap.

    A seed stays as it is once its mean loss over a chunk is below `enough`.
    """
    ramp = functools.partial(language_model.ramp, steps=config.sums_steps, warmup=0.03, last=0.1)
    optimizer = language_model.muon(ramp(0.02), ramp(4e-3))
    step = training.make_step(functools.partial(supervised_loss, model=model), optimizer)
    seeds = jnp.arange(config.seed, config.seed + config.seeds)
    rows = jnp.stack([supervised.epochs(int(seed), len(data.prompts), config.batch, steps) for seed in seeds])

    def advance(state, rows, data):
        take = lambda rows: jax.tree.map(lambda x: x[rows], data)
        return jax.lax.scan(lambda state, rows: step(state, take(rows)), state, rows)

    choose = lambda ended, *states: jax.tree.map(functools.partial(jnp.where, ended), *states)
    choose = jax.jit(jax.vmap(choose))
    advance = jax.jit(jax.vmap(advance, (0, 0, None)))
    begin = jax.vmap(lambda seed: training.init(lm.init(jax.random.key(seed), model), optimizer))

    def run_chunk(carry, _):
        old, losses = carry
        ended = losses < enough
        if jnp.all(ended):
            return carry, []
        first = int(jnp.max(old.step))
        new, metrics = advance(old, rows[:, first : first + CHUNK], data)
        losses = jnp.where(ended, losses, jnp.mean(metrics.loss, axis=1))
        return (choose(ended, old, new), losses), [{"loss": losses}]

    start = jax.jit(begin)(seeds), jnp.full(len(seeds), jnp.inf)
    key, title = jax.random.key(0), f"{name}, supervised"
    end = supervised.run_resumable(run, title, run_chunk, start, steps // CHUNK, CHUNK, key=key, every=2)
    return end[0].params


def reinforce(run, name: str, task: tasks.Task, data, model, params, iterations, config):
    """Reinforcement learning from exact match of sampled answers; returns params, one row a seed."""
    ramp = functools.partial(language_model.ramp, steps=iterations)
    muon = language_model.muon(ramp(config.rl_rate), ramp(config.rl_rate / 5))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), muon)
    actor = lm.make_actor(model, task.response, critic=False, sampling=answering.SAMPLING)
    collect, improve = ppo.make_collect_and_learn(actor, optimizer, settings(config))

    def iterate(state, key, data):
        key_rows, key_sample, key_learn = jax.random.split(key, 3)
        rows = jax.random.randint(key_rows, (config.prompts,), 0, len(data.prompts))
        asked = jax.tree.map(lambda x: x[rows], data)
        samples = collect(state, key_sample, lm.Prompts(asked.prompts, asked.prompt_mask))
        truth = jax.tree.map(lambda x: jnp.repeat(x, config.group, axis=0), asked)
        reward = answering.is_right(samples, truth).astype(jnp.float32)
        state, metrics = improve(state, key_learn, samples, reward)
        shown = ("reward", "kl", "entropy", "first_ratio_error")
        return state, {name: getattr(metrics, name) for name in shown}

    def advance(state, key, data):
        return jax.lax.scan(lambda state, key: iterate(state, key, data), state, jax.random.split(key, chunk))

    chunk = iterations // 10

    @functools.partial(jax.jit, donate_argnums=0)
    def advance_all(states, keys, data):
        return policy_training.each(lambda state, key: advance(state, key, data), states, keys)

    # the reference is given, since the KL is measured although it costs nothing
    start = lambda params: ppo.init(
        {"policy": params}, optimizer, settings(config), {"policy": jax.tree.map(jnp.copy, params)}
    )
    begin = jax.jit(jax.vmap(start))

    def run_chunk(state, key):
        state, numbers = advance_all(state, jax.random.split(key, config.seeds), data)
        return state, [jax.tree.map(lambda x, i=i: x[:, i], numbers) for i in range(chunk)]

    options = {"key": jax.random.key(config.seed), "every": 1, "shown": ("reward", "entropy")}
    title = f"{name}, by reward"
    state = supervised.run_resumable(run, title, run_chunk, begin(params), 10, chunk, **options)
    return state.params["policy"]


def answer_all(run, name: str, task: tasks.Task, config, steps, iterations, enough):
    """Both stages of one task and their accuracy on held-out questions, `[seeds]` each."""
    longest = task.longest + task.response
    model = language_model.shape(config, len(task.words.vocabulary), max_length=longest)
    print(
        f"{name}: {len(task.train):,} and {len(task.held_out):,} held-out questions, "
        f"{lm.num_params(model):,} parameters"
    )
    data = jax.device_put(task.encode(task.train))
    judge = functools.partial(answering.accuracy, task=task, model=model)
    sampled = functools.partial(judge, sampling=answering.SAMPLING)
    before = learn(run, name, data, model, steps, enough, config)
    after = reinforce(run, name, task, data, model, before, iterations, config)
    answering.save(run, name, task, model, jax.tree.map(lambda x: x[0], after))
    some = task.train[: len(task.held_out)]
    return {
        "before": judge(before, task.held_out),
        "after": judge(after, task.held_out),
        "before, sampled": sampled(before, task.held_out),
        "after, sampled": sampled(after, task.held_out),
        "before, seen": judge(before, some),
        "after, seen": judge(after, some),
    }


def main(config: Config, run: runs.Run) -> dict[str, Any]:
    """Learns both tasks in both stages; returns the numbers of the report."""
    judged = 100 if run.options.smoke else 1000
    found = {
        "arithmetic": tasks.arithmetic(config.seed, config.exercises, judged),
        "science": tasks.quartz(config.seed, run.data),
    }
    lengths = {
        "arithmetic": (config.sums_steps, config.sums_iterations, config.enough),
        "science": (config.science_steps, config.science_iterations, 0.0),
    }
    results = {name: answer_all(run, name, task, config, *lengths[name]) for name, task in found.items()}
    if config.pretrained:
        others = (tasks.quartz(config.seed + i, run.data) for i in range(1, config.seeds))
        results["science"]["SmolLM2"] = science.accuracy(run, [found["science"], *others])
    return report.write(run, found, results)


def command(
    config: Config = Config(),
    options: runs.Options = runs.Options(),
    ask: str | None = None,
    checkpoint: str = "",
) -> None:
    """Trains and judges; or answers a question by a checkpoint, the newest of this experiment.

    Args:
        config: what to train.
        options: how to run.
        ask: a sum, a question with choices "A: ... B: ...", or any other, to answer instead of training.
        checkpoint: the folder of the run that answers.
    """
    if ask is None:
        cli.start(main, config, options)
    else:
        place = checkpoint or f"{options.runs}/{answering.EXPERIMENT}"
        answering.reply(ask, place, pathlib.Path(options.data))


if __name__ == "__main__":
    cli.call(command, answering.EXPERIMENT, __doc__)
