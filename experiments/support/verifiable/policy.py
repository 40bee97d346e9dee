"""A policy for the problems of `tasks`: demonstrations, reward and evaluation."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.support.verifiable import tasks
from proxlm import lm

SAMPLING = lm.SamplingConfig(stop_token=tasks.END)


def make_model(num_layers: int, width: int) -> lm.ModelConfig:
    """A transformer with a value head, which recipes without a critic leave alone."""
    shape: dict[str, Any] = {
        "num_layers": num_layers,
        "width": width,
        "num_heads": 4,
        "hidden_width": 2 * width,
    }
    return lm.ModelConfig(tasks.VOCAB_SIZE, max_length=tasks.PROMPT + tasks.ANSWER, value_head=True, **shape)


def make_actor(model: lm.ModelConfig) -> lm.Actor:
    """The policy, sampled at temperature 1 up to END."""
    return lm.make_actor(model, tasks.ANSWER, sampling=SAMPLING)


def demonstrations(key: jax.Array, count: int, slips: float) -> tuple[jax.Array, jax.Array]:
    """Answered problems `[count, T]`, a share with a slip, and the columns that are learnt."""
    key_problems, key_slips, key_places = jax.random.split(key, 3)
    prompt, answer = jax.vmap(tasks.draw)(jax.random.split(key_problems, count))
    wrong = jax.vmap(tasks.slip)(jax.random.split(key_places, count), answer)
    slipped = jax.random.bernoulli(key_slips, slips, (count, 1))
    tokens = jnp.concatenate([prompt, jnp.where(slipped, wrong, answer)], axis=1)
    return tokens, answer != tasks.BLANK


def imitation_loss(params, batch, model):
    """Nats per token of the demonstrated answers."""
    tokens, mask = batch
    scores = lm.score(params, tokens, model, start=tasks.PROMPT)
    return -jnp.sum(jnp.where(mask, scores.log_probs, 0.0)) / jnp.sum(mask)


def reward(samples) -> jax.Array:
    """1 for a right answer, 0 for any other."""
    return jax.vmap(tasks.right)(samples.tokens).astype(jnp.float32)


def make_judge(model: lm.ModelConfig):
    """`judge(key, params, start, prompts)`: share of right answers by task, KL to start, length."""
    actor = make_actor(model)

    def judge(key, params, start, prompts):
        policy = {"policy": params}
        samples = actor.sample(key, policy, lm.Prompts(prompts))
        task = tasks.task_of(samples.tokens)[:, None] == jnp.arange(len(tasks.TASKS))
        right = lambda samples: jnp.sum(task * reward(samples)[:, None], axis=0) / jnp.sum(task, axis=0)
        reference = actor.reference({"policy": start}, samples).log_probs
        mask = samples.response_mask
        kl = jnp.sum(jnp.where(mask, samples.log_probs - reference, 0.0), axis=1)
        return {
            "right": right(samples),
            "greedy": right(actor.greedy(policy, lm.Prompts(prompts))),  # pyright: ignore[reportOptionalCall]
            "kl": jnp.mean(kl),
            "length": jnp.mean(jnp.sum(mask, axis=1)),
        }

    return judge


def least_kl(model: lm.ModelConfig, params, problems) -> jax.Array:
    """The KL to params of the nearest policy that is always right: the mean of -log P(right)."""
    rows, valid = jax.vmap(tasks.all_right)(problems)
    prompts = jnp.broadcast_to(problems.prompt[:, None], rows.shape)
    tokens = jnp.concatenate([prompts, rows], axis=2).reshape(-1, tasks.PROMPT + rows.shape[2])
    scores = lm.score(params, tokens, model, start=tasks.PROMPT, sampling=SAMPLING).log_probs.reshape(
        rows.shape
    )
    log_probs = jnp.sum(jnp.where(rows != tasks.BLANK, scores, 0.0), axis=2)
    return -jnp.mean(jax.nn.logsumexp(jnp.where(valid, log_probs, -jnp.inf), axis=1))
