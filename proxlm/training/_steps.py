"""One supervised training step, shaped as a `lax.scan` body.

The step takes a loss and an Optax transformation, so it knows neither the model nor the penalties.
A run is `jax.lax.scan(step, state, batches)`; a sweep is `jax.vmap` of that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation, sharding


class TrainState(NamedTuple):
    """Params, the optimizer's state and the number of steps taken so far, int32 []."""

    params: Any
    opt_state: optax.OptState
    step: jax.Array


class StepMetrics(NamedTuple):
    """The loss L, the norm ‖∇L‖₂ before the chain, and aux, at the params a step began with."""

    loss: jax.Array
    grad_norm: jax.Array
    aux: chex.ArrayTree


def init(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Starts training: the params as given, the optimizer's first state, step 0.

    Raises:
      ValueError: `optimizer` is not an Optax transformation.

    >>> state = init({"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> int(state.step)
    0
    """
    _validation.an_optimizer("init", optimizer=optimizer)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_step(
    loss_fn: Callable[[Any, Any], jax.Array | tuple[jax.Array, chex.ArrayTree]],
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    microbatches: int = 1,
) -> Callable[[TrainState, chex.ArrayTree], tuple[TrainState, StepMetrics]]:
    """Builds `step(state, batch) -> (state, metrics)`, the body of a `lax.scan` over batches.

    One step is θ ← θ + optimizer(∇L(θ, batch)). The chain is also given the loss, as Optax's extra
    argument `value`, for links that follow it (`optax.contrib.reduce_on_plateau`).

    With `microbatches` = n the batch [B, ...] is cut into n pieces of B/n rows that are seen one
    after another, which divides the memory of the activations by n; the gradient is the mean
    (1/n) Σᵢ ∇L(θ, pieceᵢ). It is the whole batch's gradient when L is a mean with the same
    denominator in each piece. A mean over a mask has not: divide by a constant there, as B·T.

    Args:
      loss_fn: maps (params, batch) to a scalar loss, or to (loss, aux) with `has_aux`.
      optimizer: an Optax transformation, with extra arguments or without.
      has_aux: whether `loss_fn` returns a pair; aux becomes its mean over the pieces.
      microbatches: the number of pieces n; divides the leading axis of each leaf of the batch.

    Returns:
      The step. Its metrics are a `StepMetrics`, whose aux is {} without `has_aux`.

    Raises:
      ValueError: `loss_fn` is not a function, `optimizer` not an Optax transformation or
        `microbatches` not an integer ≥ 1; from the step, if it does not divide the
        batch, or the batch has no rows.

    >>> step = make_step(lambda w, x: jnp.mean((w - x) ** 2), optax.sgd(0.25))
    >>> state, metrics = jax.lax.scan(step, init(jnp.zeros(()), optax.sgd(0.25)), jnp.ones((3, 4)))
    >>> metrics.loss.tolist()
    [1.0, 0.25, 0.0625]
    """
    _validation.a_function("make_step", loss_fn=loss_fn)
    _validation.an_optimizer("make_step", optimizer=optimizer)
    _validation.to_int(1, "make_step", "1 takes the batch whole.", microbatches=microbatches)
    optimizer = optax.with_extra_args_support(optimizer)
    evaluate = _evaluation(loss_fn, has_aux)

    def step(state: TrainState, batch: chex.ArrayTree) -> tuple[TrainState, StepMetrics]:
        _check_rows(batch)
        batch = sharding.rows(batch, name="the batch" if microbatches == 1 else None)
        if microbatches == 1:
            loss, grads, aux = evaluate(state.params, batch)
        else:
            pieces = sharding.pieces(_cut(batch, microbatches), "a micro-batch")
            loss, grads, aux = _accumulate(evaluate, state.params, pieces)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        # behind the barrier, or XLA shares g² with Adam's moment and writes it out: 0.195 for 0.142 CPU s
        norm = optax.tree.norm(_widened(jax.lax.optimization_barrier(grads)))
        metrics = StepMetrics(loss, norm, aux)
        return TrainState(params, opt_state, state.step + 1), metrics

    return sharding.automatic(step)


def _evaluation(loss_fn, has_aux):
    """Returns a function (params, batch) -> (loss, gradients, aux) for either form of loss."""

    def loss_and_aux(params, batch):
        return loss_fn(params, batch) if has_aux else (loss_fn(params, batch), {})

    def evaluate(params, batch):
        (loss, aux), grads = jax.value_and_grad(loss_and_aux, has_aux=True)(params, batch)
        return loss, grads, aux

    return evaluate


def _accumulate(evaluate, params, pieces):
    """Means of loss, gradients and aux over the pieces, with one of them in memory at a time."""

    def add(total, piece):
        loss, grads, aux = evaluate(params, piece)
        return jax.tree.map(jnp.add, total, _widened(grads)), (loss, aux)

    zeros = jax.tree.map(jnp.zeros_like, _widened(params))
    total, (losses, auxes) = jax.lax.scan(add, zeros, pieces)
    grads = jax.tree.map(lambda t, p: (t / len(losses)).astype(p.dtype), total, params)
    return jnp.mean(losses), grads, jax.tree.map(lambda a: jnp.mean(a, axis=0), auxes)


def _widened(tree):
    """In float32 at least: a sum kept in bfloat16 stops growing once its terms are 1/256 of it."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def _check_rows(batch):
    """Raises ValueError for a batch without rows, whose mean loss would be NaN."""
    shapes = {_name(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(batch)}
    empty = [name for name, shape in shapes.items() if shape[:1] == (0,)]
    if empty and len(empty) == len(shapes):
        remedy = "Leave empty batches out."
        raise _validation.invalid(empty[0], shapes[empty[0]], "an array with rows", remedy, "step")


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/") or "batch"


def _cut(batch, microbatches):
    """Reshapes each leaf of the batch from [B, ...] to [microbatches, B / microbatches, ...]."""

    def cut(path, leaf):
        if jnp.ndim(leaf) == 0 or leaf.shape[0] % microbatches:
            expected = f"a divisor of the rows of {_name(path)}, of shape {jnp.shape(leaf)}"
            raise _validation.invalid("microbatches", microbatches, expected, function="step")
        return leaf.reshape((microbatches, leaf.shape[0] // microbatches, *leaf.shape[1:]))

    return jax.tree_util.tree_map_with_path(cut, batch)
