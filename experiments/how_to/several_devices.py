"""Your own loop on every device there is: three lines of `proxlm.sharding` are all that is added.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m experiments.how_to.several_devices
"""

import jax
import jax.numpy as jnp
import optax

from proxlm import lm, losses, sharding, training


def main(axes="data=-1", steps=20):
    """The losses, the same on any number of devices, and where a kernel lies."""
    config = lm.ModelConfig(vocab_size=64, num_layers=2, width=32, num_heads=4)
    optimizer = optax.adam(1e-2)
    tokens = jnp.arange(16 * 9).reshape(16, 9) % 7  # 16 rows, to be divided

    def loss(params, tokens):
        return jnp.mean(losses.next_token(lm.apply(params, tokens[:, :-1], config), tokens[:, 1:]))

    step = training.make_step(loss, optimizer)
    mesh = sharding.make_mesh(axes)
    with jax.set_mesh(mesh):
        state = sharding.put(training.init(lm.init(jax.random.key(0), config), optimizer), mesh)
        run = jax.jit(lambda state: jax.lax.scan(lambda state, _: step(state, tokens), state, length=steps))
        state, metrics = run(state)
    return metrics.loss, state.params["blocks"]["mlp"]["down"]["kernel"].sharding.spec


if __name__ == "__main__":
    print(*main())
