"""Heads of an Equinox model removed whole by a group lasso. `python -m experiments.how_to.equinox_heads`"""

import equinox as eqx
import jax
import jax.numpy as jnp

import proxlm
from proxlm import penalties, training
from proxlm.penalties import grouping

HEADS = 8
GROUPS = grouping.linked(
    {f"{name}_proj/weight": grouping.heads(HEADS, axis=0) for name in ("query", "key", "value")}
    | {"output_proj/weight": grouping.heads(HEADS, axis=1)}
)


def main(steps=400, strength=3e-4):
    """The norm of each head; the data come from a model that has two of the eight."""
    keys = jax.random.split(jax.random.key(0), 3)
    params, static = eqx.partition(eqx.nn.MultiheadAttention(HEADS, 16, key=keys[0]), eqx.is_array)
    teacher = eqx.nn.MultiheadAttention(2, 16, key=keys[1])
    x = jax.random.normal(keys[2], (64, 6, 16))
    apply = lambda model: jax.vmap(lambda row: model(row, row, row))(x)
    y = apply(teacher)
    loss = lambda params, _: jnp.mean((apply(eqx.combine(params, static)) - y) ** 2)
    optimizer = proxlm.proximal_adam(0.01, penalties.group_lasso(strength, GROUPS))
    step = training.make_step(loss, optimizer)
    state, _ = jax.lax.scan(step, training.init(params, optimizer), jnp.arange(steps))
    return jnp.linalg.norm(state.params.value_proj.weight.reshape(HEADS, -1), axis=1)


if __name__ == "__main__":
    print(*main().round(2).tolist())
