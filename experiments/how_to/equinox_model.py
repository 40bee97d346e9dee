"""GRPO on an Equinox GRU with a cache, as in `nnx_model`. `python -m experiments.how_to.equinox_model`"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from proxlm import lm, policy
from proxlm.policy import ppo, recipes


def main(iterations=40, vocab=8, width=16):
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.GRUCell(vocab, width, key=keys[0]), eqx.nn.Linear(width, vocab, key=keys[1])
    params, static = eqx.partition(model, eqx.is_array)

    def step(params, token, states):
        cell, head = eqx.combine(params, static)
        states = jax.vmap(cell)(jax.nn.one_hot(token, vocab), states)
        return jax.vmap(head)(states), states

    def run(params, tokens, mask):
        one = lambda states, token: step(params, token, states)[::-1]
        states, logits = jax.lax.scan(one, jnp.zeros((len(tokens), width)), tokens.T)
        return logits.swapaxes(0, 1), states

    first = lambda *data: (lambda logits, states: (logits[:, -1], states))(*run(*data[:3]))  # pyright: ignore
    actor = policy.actor_from_logits(lambda *data: run(*data)[0], num_tokens=4, init_cache=first, step=step)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (8, 1), 0, vocab))
    policy.check_actor(actor, params, prompts(jax.random.key(0)), padding=False)  # all of one length
    reward = lambda samples: jnp.mean(samples.tokens[:, 1:] == samples.tokens[:, :1], axis=1)
    config, optimizer = recipes.make("dr_grpo", kl=None, num_epochs=2), optax.adam(0.02)
    update = ppo.make_step(actor, reward, prompts, optimizer, config)
    state = ppo.init(params, optimizer, config)
    return jax.lax.scan(update, state, jax.random.split(jax.random.key(1), iterations))[1].reward


if __name__ == "__main__":
    print(*main().round(2).tolist())
