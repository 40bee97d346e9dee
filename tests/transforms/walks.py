"""Params on their way through an optimizer, one update after another."""

import optax


def walk(tx, params, gradients, **extra_args):
    """The params after each update, and the last state."""
    state, path = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state
