"""PPO with a value head on plain JAX arrays, as in `nnx_model`. `python -m experiments.how_to.plain_jax`"""

import jax
import jax.numpy as jnp
import optax

from proxlm import lm, policy
from proxlm.policy import ppo, recipes


def logits_and_values(params, tokens, mask):
    heard = jnp.cumsum(jnp.where(mask[:, :, None], params["embedding"][tokens], 0.0), axis=1)
    hidden = jnp.tanh(heard @ params["hidden"])
    return hidden @ params["head"], hidden @ params["value"]


def main(iterations=80):
    shapes = {"embedding": (8, 16), "hidden": (16, 32), "head": (32, 8), "value": (32,)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {name: 0.3 * jax.random.normal(k, shapes[name]) for name, k in zip(shapes, keys, strict=True)}
    actor = policy.actor_from_logits(logits_and_values, num_tokens=4)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (64, 1), 0, 8))
    policy.check_actor(actor, params, prompts(jax.random.key(0)))
    reward = lambda samples: jnp.mean(samples.tokens[:, 1:] == samples.tokens[:, :1], axis=1)
    config, optimizer = recipes.make("ppo", kl=None), optax.adam(0.01)
    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    state = ppo.init(params, optimizer, config)
    return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), iterations))[1].reward


if __name__ == "__main__":
    print(*main().round(2).tolist())
