"""Supervised learning of the right answers to the problems that reinforcement learning would ask."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.support.reinforce.prompting import Asker
from experiments.support.reinforce.tasks import Problem
from experiments.support.run import supervised
from experiments.support.sparse_rl import judging
from proxlm import lm, training


def learn(
    run,
    config: Any,
    asker: Asker,
    optimizer: optax.GradientTransformation,
    seed: int,
    trained: Any,
    frozen: Any,
    problems: Sequence[Problem],
    watch: Callable[[Any, Any], dict[str, Any]],
) -> Any:
    """As `reinforce.learning.learn`: the same problems in the same iterations, each with its answer."""
    asked = judging.questions(asker, problems)
    model, batch_size = asker.model.config, config.prompts
    place = np.arange(asked.tokens.shape[1])
    inside = (place >= asked.first[:, None]) & (place <= (asked.first + asked.size)[:, None])
    tokens, mask, of_answer = map(jnp.asarray, (asked.tokens, asked.mask, inside))

    def loss_fn(trained, batch):
        frozen, rows = batch
        shared = {"start": asked.shared, "group_size": batch_size}
        params = lm.trainable.join(trained, frozen)
        scores = lm.score(params, tokens[rows], model, mask=mask[rows], **shared)
        return -jnp.mean(scores.log_probs, where=of_answer[rows][:, asked.shared :])

    step = jax.jit(training.make_step(loss_fn, optimizer), donate_argnums=0)

    def iterate(state, key):
        rows = jax.random.choice(jax.random.split(key, 3)[0], len(problems), (batch_size,), replace=False)
        before = jax.tree.map(jnp.copy, state.params)
        state, metrics = step(state, (frozen, rows))
        return state, [{"loss": metrics.loss} | watch(before, state.params)]

    start = training.init(jax.tree.map(jnp.copy, trained), optimizer)
    options = {"key": jax.random.key(seed), "every": config.iterations}
    return supervised.run_resumable(
        run, f"seed {seed}", iterate, start, config.iterations, 1, **options
    ).params
