"""Heads of a Flax NNX model removed whole by a group lasso. `python -m experiments.how_to.nnx_heads`"""

import jax
import jax.numpy as jnp
from flax import nnx

import proxlm
from proxlm import penalties, training
from proxlm.penalties import grouping

HEADS = {"query/kernel": 1, "key/kernel": 1, "value/kernel": 1, "out/kernel": 0}  # the axis that counts them


class Model(nnx.Module):
    def __init__(self, width, num_heads, rngs):
        self.attention = nnx.MultiHeadAttention(num_heads, width, use_bias=False, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attention(x)


def main(steps=400, strength=0.001):
    """The norm of each head; the data come from a model that has two of the eight."""
    graph, params = nnx.split(Model(16, 8, nnx.Rngs(0)))
    teacher = nnx.merge(*nnx.split(Model(16, 2, nnx.Rngs(1))))
    x = jax.random.normal(jax.random.key(2), (64, 6, 16))
    y = teacher(x)
    loss = lambda params, _: jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)
    optimizer = proxlm.proximal_adam(0.01, penalties.group_lasso(strength, grouping.linked(HEADS)))
    step = training.make_step(loss, optimizer)
    state, _ = jax.lax.scan(step, training.init(params, optimizer), jnp.arange(steps))
    return jnp.sqrt(jnp.sum(state.params["attention"]["value"]["kernel"][...] ** 2, axis=(0, 2)))


if __name__ == "__main__":
    print(*main().round(2).tolist())
