"""GRPO on a Haiku transformer block, as in `nnx_model`. `python -m experiments.how_to.haiku_model`"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from proxlm import lm, policy
from proxlm.policy import ppo, recipes


def forward(tokens, mask):
    x = hk.Embed(8, 16)(tokens)
    visible = jnp.tril(jnp.ones((1, 1, *tokens.shape[1:] * 2), bool)) & mask[:, None, None, :]
    attention = hk.MultiHeadAttention(2, 8, w_init=hk.initializers.VarianceScaling(), model_size=16)
    return hk.Linear(8)(x + attention(x, x, x, visible))


def main(iterations=40):
    model = hk.without_apply_rng(hk.transform(forward))
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))
    actor = policy.actor_from_logits(model.apply, num_tokens=4)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (8, 1), 0, 8))
    policy.check_actor(actor, params, prompts(jax.random.key(0)))
    reward = lambda samples: jnp.mean(samples.tokens[:, 1:] == samples.tokens[:, :1], axis=1)
    config, optimizer = recipes.make("dr_grpo", kl=None, num_epochs=2), optax.adam(0.02)
    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    state = ppo.init(params, optimizer, config)
    return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), iterations))[1].reward


if __name__ == "__main__":
    print(*main().round(2).tolist())
