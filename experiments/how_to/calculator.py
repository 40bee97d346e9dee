"""Products by a calculator: a tool between two turns. `python -m experiments.how_to.calculator`"""

import jax
import jax.numpy as jnp
import optax

from proxlm import lm
from proxlm.policy import ppo, recipes

CALL = 10  # "=", after the digits 0 to 9


def calculator(turn, samples):
    """The two digits of the prompt's product, where the policy has asked for them."""
    asked = jnp.any((turn.tokens == CALL) & turn.mask, axis=1, keepdims=True)
    product = samples.tokens[:, 0] * samples.tokens[:, 1]
    return lm.Prompts(jnp.stack([product // 10, product % 10], axis=1), asked & jnp.ones((1, 2), bool))


def right(samples):
    """The share of the digits of the last turn, or of the only one, that are those of the product."""
    product = samples.tokens[:, :1] * samples.tokens[:, 1:2]
    digits = jnp.concatenate([product // 10, product % 10], axis=1)
    last = jnp.where(samples.mask[:, -2:], samples.tokens[:, -2:], samples.tokens[:, 2:4])
    return jnp.mean(last == digits, axis=1)


def main(iterations=300, seed=0, tool=calculator):
    config = lm.ModelConfig(vocab_size=11, num_layers=2, width=32, num_heads=4)
    turns = None if tool is None else lm.Turns(tool, num_outputs=2)
    actor = lm.make_actor(config, 2, critic=False, sampling=lm.SamplingConfig(stop_token=CALL), turns=turns)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (32, 2), 0, 10))
    settings = recipes.make("dr_grpo", kl=None, num_epochs=2, num_minibatches=2)
    optimizer = optax.adam(3e-3)
    step = ppo.make_step(actor, right, prompts, optimizer, settings)
    state = ppo.init(actor.init(jax.random.key(seed)), optimizer, settings)
    keys = jax.random.split(jax.random.key(seed + 1), iterations)
    state, metrics = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
    tasks = lm.Prompts(jnp.stack(jnp.indices((10, 10)).reshape(2, 100), axis=1))
    return metrics.reward, jnp.mean(right(actor.greedy(state.params, tasks)) == 1)


if __name__ == "__main__":
    for seed in range(3):
        print(seed, *(f"{100 * main(seed=seed, tool=tool)[1]:.0f} %" for tool in (calculator, None)))
