"""The tests' JAX moves numbers without a compiler as it does with one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def everything_moved(x):
    row = jax.lax.dynamic_slice_in_dim
    return {
        "made": (jnp.zeros(3), jnp.full((2, 2), 7, jnp.bfloat16), jnp.array([1, 2]), jnp.asarray(1.5)),
        "cut": (x[0], x[-1, 1:], x[:, ::2], row(x, 7, 1), row(x, jnp.int32(-1), 1), jnp.squeeze(x[:1], 0)),
        "laid out": (
            x[:, None],
            x.T,
            jnp.swapaxes(x, 1, 2),
            x.reshape(-1),
            x.reshape(4, 6),
            jnp.stack([x, x]),
        ),
        "cast": (x.astype(bool), x.astype(jnp.bfloat16), x.astype(jnp.int32), x.astype(jnp.float32)),
        "keys": jax.random.key_data(jax.random.split(jax.random.key(0), 3)[1]),
    }


@pytest.mark.parametrize("dtype", ["float32", "bool", "bfloat16"])
def test_eager_moves_are_those_of_a_program(dtype):
    x = jnp.asarray(np.linspace(-3.0, 3.0, 24).reshape(2, 3, 4), dtype)
    eager, compiled = everything_moved(x), jax.jit(everything_moved)(x)
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        assert one.aval == other.aval and one.committed == other.committed
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
