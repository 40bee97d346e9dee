"""CartPole by `make_step`: a row is an episode, a token an action. `python -m experiments.how_to.cartpole`"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from proxlm import lm
from proxlm.policy import ppo, recipes


class Episodes(NamedTuple):
    tokens: jax.Array  # [B, 200], pushes to the left (0) or right (1)
    log_probs: jax.Array
    response_mask: jax.Array  # until the pole has fallen
    ended: jax.Array  # it has; the others are cut, and bootstrapped
    observations: jax.Array  # [B, 201, 4]: place, speed, angle, its speed


class Actor(NamedTuple):
    sample: Any
    score: Any
    reference: Any
    final_values: Any
    greedy: Any = None


def move(state, push):
    _, speed, angle, turn = jnp.moveaxis(state, -1, 0)
    pull = (20.0 * push - 10.0 + 0.05 * turn**2 * jnp.sin(angle)) / 1.1
    swing = (9.8 * jnp.sin(angle) - jnp.cos(angle) * pull) / (2 / 3 - 0.05 / 1.1 * jnp.cos(angle) ** 2)
    change = jnp.stack([speed, pull - 0.05 / 1.1 * swing * jnp.cos(angle), turn, swing], -1)
    return state + 0.02 * change


def heads(params, observations):
    hidden = jnp.tanh(jnp.tanh(observations @ params["in"]) @ params["hidden"])
    return jax.nn.log_softmax(hidden @ params["out"]), hidden @ params["value"]


def sample(key, params, prompts):
    def step(carry, key):
        state, fallen = carry
        log_probs = heads(params, state)[0]
        push = jax.random.categorical(key, log_probs)
        new = move(state, push)
        now = fallen | (jnp.abs(new[:, 0]) > 2.4) | (jnp.abs(new[:, 2]) > 0.2095)
        picked = jnp.take_along_axis(log_probs, push[:, None], 1)[:, 0]
        return (jnp.where(fallen[:, None], state, new), now), (push, picked, ~fallen, state)

    start = jax.random.uniform(key, (len(prompts.tokens), 4), minval=-0.05, maxval=0.05)
    keys = jax.random.split(jax.random.fold_in(key, 1), 200)
    (last, fallen), rows = jax.lax.scan(step, (start, start[:, 0] > 9), keys)
    pushes, log_probs, mask, states = (x.swapaxes(0, 1) for x in rows)
    return Episodes(pushes, log_probs, mask, fallen, jnp.concatenate([states, last[:, None]], 1))


def score(params, episodes, full=False):
    log_probs, values = heads(params, episodes.observations[:, :-1])
    picked = jnp.take_along_axis(log_probs, episodes.tokens[:, :, None], 2)[:, :, 0]
    return lm.Scores(picked, -jnp.sum(jnp.exp(log_probs) * log_probs, -1), values)


def main(iterations=80, seed=2):
    shapes = {"in": (4, 64), "hidden": (64, 64), "out": (64, 2), "value": (64,)}
    scales, keys = (0.5, 0.12, 0.01, 0.01), jax.random.split(jax.random.key(0), 4)
    params = {n: s * jax.random.normal(k, shapes[n]) for n, s, k in zip(shapes, scales, keys, strict=True)}
    actor = Actor(sample, score, score, lambda p, rows: heads(p, rows.observations[:, -1])[1])
    config = recipes.make("ppo", kl=None, discount=0.99, bootstrap=True, value_clip=None, value_coef=0.5)
    rate = optax.linear_schedule(3e-3, 0.0, iterations * config.num_epochs * config.num_minibatches)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate))
    prompts = lambda key: lm.Prompts(jnp.zeros((32, 1), jnp.int32))
    reward = lambda episodes: episodes.response_mask * 1.0  # 1 a step: the reward is the length
    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    state = ppo.init(params, optimizer, config)
    return jax.lax.scan(step, state, jax.random.split(jax.random.key(seed), iterations))[1].reward


if __name__ == "__main__":
    print(*main().round(1).tolist())
