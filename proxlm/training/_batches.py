"""Batches for a loop that is traced once: one batch, or a pure function of the step."""

from collections.abc import Callable, Iterator

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation

Batches = Callable[[jax.Array], chex.ArrayTree] | chex.ArrayTree

_REMEDY = (
    "The loop is traced once, so that Python code of yours runs once and not at every step. Stack the "
    "batches and give `lambda step: jax.tree.map(lambda x: x[step], stacked)`, or loop over the loader "
    "yourself: `step = jax.jit(training.make_step(loss_fn, optimizer))`, then `for batch in loader: "
    "state, metrics = step(state, batch)`."
)


def as_function(batches: Batches) -> Callable[[jax.Array], chex.ArrayTree]:
    """Returns `batch(step)`; one batch becomes the function that always returns it.

    Args:
      batches: a pure function from the step, int32 [], to a pytree of arrays; or, when it is not
        callable, one such pytree.

    >>> as_function(jnp.arange(3))(7).tolist()
    [0, 1, 2]
    """
    if not callable(batches):
        _check_leaves(batches)
        return lambda _: batches

    def checked(step):
        batch = batches(step)
        _check_leaves(batch)
        return batch

    if not _validation.is_pure(checked, jnp.zeros((), jnp.int32)):
        expected = "a pure function of the step: called twice it gave two batches"
        raise _validation.invalid("batches", batches, expected, _REMEDY, "fit")
    return batches


def _check_leaves(batch):
    if isinstance(batch, Iterator):
        raise _validation.invalid(
            "batches", batch, "one batch or a function of the step, not an iterator", _REMEDY, "fit"
        )
    for leaf in jax.tree.leaves(batch):
        if not isinstance(leaf, _validation.NUMBERS):
            kind = "one batch, a pytree of arrays, or a function of the step to one"
            raise _validation.invalid("batches", leaf, kind, _REMEDY, "fit")
