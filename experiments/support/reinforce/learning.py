"""Iterations of a recipe on a model of which a part is trained, with answers judged as texts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.reinforce import rewards as rewards_lib
from experiments.support.reinforce.prompting import Asker
from experiments.support.reinforce.tasks import Problem
from experiments.support.run import processes, supervised
from proxlm import lm, sharding
from proxlm.policy import ppo


class Parts(NamedTuple):
    """Jitted parts of an iteration; what is frozen is their first argument, not a constant of theirs."""

    sample: Callable[..., lm.Samples]
    collect: Callable[..., lm.Samples]
    learn: Callable[..., Any]


class Setup(NamedTuple):
    """All that stays the same over the iterations of all seeds."""

    asker: Asker
    rewards: Sequence[rewards_lib.Reward]
    settings: ppo.PPOConfig
    optimizer: optax.GradientTransformation
    parts: Parts
    prompts: int  # an iteration
    group: int  # answers to each


class Judgement(NamedTuple):
    """Shares of problems solved by one answer and by any of a group, and some answers."""

    one: float
    any: float
    answers: list[tuple[str, str]]


def make_parts(
    model: lm.ModelConfig,
    sampling: lm.SamplingConfig,
    tokens: int,
    optimizer: optax.GradientTransformation,
    settings: ppo.PPOConfig,
) -> Parts:
    """Binds the recipe to a model."""
    critic = None if model.value_head else False
    whole = lm.make_actor(model, tokens, critic=critic, sampling=sampling, early_exit=True)
    actor = functools.partial(lm.trainable.make_actor, whole)
    halves = lambda frozen: ppo.make_collect_and_learn(actor(frozen), optimizer, settings)
    return Parts(
        jax.jit(lambda frozen, *args: actor(frozen).sample(*args)),
        jax.jit(lambda frozen, *args: halves(frozen)[0](*args)),
        jax.jit(lambda frozen, *args: halves(frozen)[1](*args), donate_argnums=1),
    )


def learn(
    run,
    config: Any,
    setup: Setup,
    seed: int,
    trained: Any,
    frozen: Any,
    problems: Sequence[Problem],
    evaluate: Callable[[Any], Judgement] | None = None,
    watch: Callable[[Any, Any], dict[str, Any]] | None = None,
) -> Any:
    """The iterations of one seed, from where a kill left them; returns what was trained.

    Logged are also `evaluate(trained)`, every so many iterations and at the end, and at each of them
    `watch(trained before it, and after)`.
    """
    processes.check_divides(responses=setup.prompts * setup.group)
    asked = setup.asker.prompts(problems)
    count = setup.prompts if setup.settings.group_size > 1 else setup.prompts * setup.group

    def iterate(state, key):
        key_rows, key_sample, key_learn = jax.random.split(key, 3)
        rows = np.asarray(jax.random.choice(key_rows, len(problems), (count,), replace=count > len(problems)))
        samples = setup.parts.collect(frozen, state, key_sample, rows_of(asked, rows))
        own = [problems[i] for i in np.repeat(rows, setup.settings.group_size).tolist()]
        own += [problems[i] for i in rows.tolist()] if setup.settings.greedy_baseline else []
        mine = [own[i] for i in sharding.own_numbers(samples.tokens).tolist()]
        scores = np.asarray(scores_of(setup, sharding.own_rows(samples), mine), np.float32)
        scores = sharding.of_rows(scores, samples.tokens)
        before = jax.tree.map(jnp.copy, state.params["policy"]) if watch else None
        state, metrics = setup.parts.learn(frozen, state, key_learn, samples, scores)
        numbers = {name: getattr(metrics, name) for name in ("reward", "kl", "entropy", "grad_norm")}
        numbers |= watch(before, state.params["policy"]) if watch else {}
        due = (done := int(state.iteration)) % config.evaluate_every == 0 or done == config.iterations
        if evaluate and due:
            judged = evaluate(state.params["policy"])
            numbers |= {"right": judged.one, "right_of_any": judged.any}
        return state, [numbers]

    start = jax.jit(lambda params: ppo.init(params, setup.optimizer, setup.settings))({"policy": trained})
    options = {"key": jax.random.key(seed), "every": config.evaluate_every}
    state = supervised.run_resumable(run, f"seed {seed}", iterate, start, config.iterations, 1, **options)
    return state.params["policy"]


def judge(key: jax.Array, setup: Setup, frozen: Any, problems: Sequence[Problem], trained: Any) -> Judgement:
    """Asks each problem as often as a group is large, in batches as large as an iteration's."""
    asked, found, answers = setup.asker.prompts(problems), [], []
    for start in range(0, len(problems), setup.prompts):
        rows = np.repeat(np.arange(start, start + setup.prompts) % len(problems), setup.group)
        key_batch = jax.random.fold_in(key, start)
        samples = setup.parts.sample(frozen, key_batch, {"policy": trained}, rows_of(asked, rows))
        samples = processes.everywhere(samples)
        own = [problems[i] for i in rows.tolist()]
        scores = scores_of(setup, samples, own).reshape(setup.prompts, setup.group)
        found.append(scores[: len(problems) - start])
        answers.append((own[0].question, texts_of(setup, samples)[0]))
    scores = np.concatenate(found)
    return Judgement(float(np.nanmean(scores)), float(np.nanmean(np.nanmax(scores, axis=1))), answers)


def scores_of(setup: Setup, samples: lm.Samples, problems: Sequence[Problem]) -> np.ndarray:
    """The rewards of responses by their texts, `[B]`."""
    return rewards_lib.total(setup.rewards, texts_of(setup, samples), problems)


def texts_of(setup: Setup, samples: lm.Samples) -> list[str]:
    """The texts of responses."""
    host = jax.device_get(samples)
    length = host.response_mask.shape[1]
    return setup.asker.answers(host.tokens[:, -length:], host.response_mask)


def rows_of(prompts: lm.Prompts, rows: np.ndarray) -> lm.Prompts:
    """Some of the prompts, on the device."""
    return jax.tree.map(lambda x: jnp.asarray(x[rows]), prompts)
