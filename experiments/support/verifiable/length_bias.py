"""Effect of the aggregation of a loss on the length of answers that earn nothing by length.

An answer is a digit, as many blanks as the policy likes, and END. A digit below 5 is right, but
the digit is not learnt: its column is masked, like an observation, so half the answers stay wrong.
The blanks earn nothing. An estimator without bias leaves them alone; the mean over each sequence
(GRPO) divides praise and blame by the length, so the policy learns to be brief when right and to go
on when wrong (Liu et al. 2025).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from experiments.support.models import language_model
from experiments.support.run import policy_training
from experiments.support.verifiable import tasks
from proxlm import lm, training
from proxlm.policy import recipes

ANSWER = 12  # tokens at most
LEARNING_RATE = 5e-4
MOST_BLANKS = 8  # of a demonstration: one is drawn for each length up to here
END, BLANK = tasks.END, tasks.BLANK
MODEL = lm.ModelConfig(
    tasks.VOCAB_SIZE,
    num_layers=1,
    width=32,
    num_heads=2,
    hidden_width=64,
    max_length=tasks.PROMPT + ANSWER,
    value_head=True,
)
WHOLE = lm.make_actor(MODEL, ANSWER, sampling=lm.SamplingConfig(stop_token=END))
# the recipes as they are, but for their KL: it would hold back what is to be seen
VARIANTS = {
    "grpo": recipes.make("grpo", kl_coef=0.0),
    "dr_grpo": recipes.make("dr_grpo"),
    "dapo, no price": recipes.make("dapo", length_penalty=None),
    "dapo": recipes.make("dapo"),
    "dr_grpo, END or -1": recipes.make("dr_grpo", missing_eos_penalty=1.0),
}


def draw(key: jax.Array, count: int) -> jax.Array:
    """Prompts `[count, PROMPT]`: five digits after the token of a task."""
    digits = jax.random.randint(key, (count, tasks.PROMPT), 0, 10)
    return digits.at[:, 0].set(tasks.FIRST_TASK)


def sample(key, params, prompts):
    """Answers whose first token is judged but not learnt, as an observation would be."""
    samples = WHOLE.sample(key, params, prompts)
    return samples._replace(response_mask=samples.response_mask.at[:, 0].set(False))


ACTOR = WHOLE._replace(sample=sample)


def reward(samples) -> jax.Array:
    """1 where the first token of the answer is a digit below 5, 0 elsewhere."""
    return (samples.tokens[:, tasks.PROMPT] < 5).astype(jnp.float32)


def watch(samples, rewards) -> dict[str, jax.Array]:
    """Mean lengths of right and wrong answers, and the share that ended."""
    lengths = jnp.sum(samples.response_mask, axis=1)
    mean = lambda weights: jnp.sum(lengths * weights) / jnp.maximum(jnp.sum(weights), 1.0)
    return {"right": mean(rewards), "wrong": mean(1.0 - rewards), "ended": jnp.mean(samples.ended)}


def imitate(key: jax.Array, steps: int, batch: int = 64):
    """A policy that says any digit, then 0 to 8 blanks, all as likely, then END."""
    key_init, key_steps = jax.random.split(key)

    def loss(params, key):
        key_prompts, key_digits, key_blanks = jax.random.split(key, 3)
        digit = jax.random.randint(key_digits, (batch, 1), 0, 10)
        blanks = jax.random.randint(key_blanks, (batch, 1), 0, MOST_BLANKS + 1)
        rest = jnp.where(jnp.arange(ANSWER - 1)[None] < blanks, BLANK, END)
        tokens = jnp.concatenate([draw(key_prompts, batch), digit, rest], axis=1)
        log_probs = lm.score(params, tokens, MODEL, start=tasks.PROMPT).log_probs
        mask = jnp.arange(ANSWER)[None] <= blanks + 1
        return -jnp.sum(jnp.where(mask, log_probs, 0.0)) / jnp.sum(mask)

    rate = language_model.ramp(5e-3, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    state = training.init(lm.init(key_init, MODEL), optimizer)
    step = training.make_step(loss, optimizer)
    return jax.lax.scan(step, state, jax.random.split(key_steps, steps))[0].params


def learn(keys, params, name: str, iterations: int, batch: int):
    """Lengths over the iterations of one variant, `[seeds, iterations]` by kind of answer."""
    settings = dataclasses.replace(VARIANTS[name], num_epochs=1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE, eps=1e-5))

    def one(key):
        key_prompts, key_learn = jax.random.split(key)
        return policy_training.learn(
            key_learn,
            params,
            draw(key_prompts, 4096),
            actor=ACTOR,
            reward=reward,
            optimizer=optimizer,
            settings=settings,
            iterations=iterations,
            batch=batch,
            watch=watch,
        )[2]

    return policy_training.each(one, keys)
