"""Params on their way through an optimizer, one update after another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def walk(tx, params, gradients, **extra_args):
    """The params after each update, and the last state: one program, its results in NumPy."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run(params, gradients):
        (_, state), path = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return path, state

    gradients = gradients if hasattr(gradients, "shape") else jax.tree.map(_stack, *gradients)
    path, state = jax.tree.map(_in_numpy, run(params, gradients))
    length = len(jax.tree.leaves(gradients)[0])
    return [jax.tree.map(lambda leaf: leaf[i], path) for i in range(length)], state  # noqa: B023


def _stack(*leaves):
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return (jnp if traced else np).stack(leaves)


def _in_numpy(leaf):
    keep = isinstance(leaf, jax.core.Tracer) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if keep else np.asarray(leaf)
