"""GRPO on a Flax NNX model, which learns to say the prompt again. `python -m experiments.how_to.nnx_model`"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from proxlm import lm, policy
from proxlm.policy import ppo, recipes


class Model(nnx.Module):
    def __init__(self, vocab, width, rngs):
        self.embed = nnx.Embed(vocab, width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.head = nnx.Linear(width, vocab, rngs=rngs)

    def __call__(self, tokens, mask):
        x = self.embed(tokens)
        visible = nnx.make_causal_mask(tokens, dtype=bool) & mask[:, None, None, :]
        return self.head(x + self.attention(x, mask=visible))


def main(iterations=40):
    graph, params = nnx.split(Model(8, 16, nnx.Rngs(0)))
    actor = policy.actor_from_logits(lambda p, tokens, mask: nnx.merge(graph, p)(tokens, mask), num_tokens=4)
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (8, 1), 0, 8))
    policy.check_actor(actor, params, prompts(jax.random.key(0)))
    reward = lambda samples: jnp.mean(samples.tokens[:, 1:] == samples.tokens[:, :1], axis=1)
    config, optimizer = recipes.make("dr_grpo", kl=None, num_epochs=2), optax.adam(0.02)
    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    state = ppo.init(params, optimizer, config)
    return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), iterations))[1].reward


if __name__ == "__main__":
    print(*main().round(2).tolist())
