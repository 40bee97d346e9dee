"""Run on two devices by `test_links_sharded`: links whose params and state are spread over both."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.arrays import normal
from tests.transforms.links import LINKS

SPREAD = jax.sharding.PartitionSpec("rows")


def follow(tx, params, gradients, extra_args):
    """The params and the state after three updates."""
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params, state


def main(names):
    """Raises where a link on two devices goes another way, or gathers its params."""
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, SPREAD)
    params = {"w": normal(0, (4, 6))}
    gradients = [{"w": normal(seed, (4, 6))} for seed in range(1, 4)]
    for name in names:
        link = LINKS[name]
        alone, _ = follow(link.make(0.1), params, gradients, link.extra_args)
        there = jax.device_put((params, gradients), spread)
        both, state = follow(link.make(0.1), *there, link.extra_args)
        np.testing.assert_allclose(both["w"], alone["w"], atol=1e-6, err_msg=name)
        assert both["w"].sharding.is_equivalent_to(spread, 2), f"{name}: {both['w'].sharding}"
        for leaf in jax.tree.leaves(state):
            if jnp.shape(leaf) == (4, 6):
                assert leaf.sharding.is_equivalent_to(spread, 2), f"{name}: {leaf.sharding}"


if __name__ == "__main__":
    assert len(jax.devices()) == 2
    main(sys.argv[1:])
