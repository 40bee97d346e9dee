"""Training to convergence as one pure function: loss, gradient, proximal update, until a check says stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.training import _batches, _early_stopping, _steps

CONVERGED, EXHAUSTED, NOT_FINITE, STALLED = 0, 1, 2, 3
REASONS = (
    "converged: no weight moves by more than the tolerance",
    "stopped after the last step: allow more of them, or a larger tolerance",
    "stopped where the params or the loss were not finite: give a smaller learning rate, or clip the"
    " gradient; the params are the last finite ones",
    "stopped by the held-out loss, which had not improved for as long as the patience allows",
)


class FitHistory(NamedTuple):
    """Measurements of every check, `[checks, ...]`; NaN (0 for integers) after the last one made.

    Attributes:
      loss: the mean loss of the steps since the check before.
      held_out_loss: of the params after these steps; NaN without a held-out loss.
      recorded: record(params) after these steps, or ().
    """

    loss: jax.Array
    held_out_loss: jax.Array
    recorded: chex.ArrayTree


class FitResult(NamedTuple):
    """The params that a fit returns, their losses, and why it stopped.

    Attributes:
      params: the best by the held-out loss; where there is none, the last that were finite at a
        check (those that the fit began with, if none were).
      loss: the mean of the last `every` steps, each at the params it began with.
      held_out_loss: of `params`; NaN without one.
      state: the last `TrainState`, finite or not; its `step` is the number of steps taken.
      best_step: after which step `params` were found.
      change: the largest move of a weight in one of the last `every` steps; NaN without tolerance.
      status: 0 converged, 1 out of steps, 2 not finite, 3 stalled; `reason` says it in words.
      history: the measurements of every check.
    """

    params: Any
    loss: jax.Array
    held_out_loss: jax.Array
    state: _steps.TrainState
    best_step: jax.Array
    change: jax.Array
    status: jax.Array
    history: FitHistory

    @property
    def steps(self) -> jax.Array:
        """The number of steps taken."""
        return self.state.step

    @property
    def converged(self) -> jax.Array:
        """Whether no weight moved by more than the tolerance."""
        return self.status == CONVERGED

    @property
    def reason(self) -> str:
        """The reason for stopping, in words; needs a result outside of jit."""
        return REASONS[int(self.status)]


class _Carry(NamedTuple):
    """The loop's carry from check to check."""

    state: _steps.TrainState
    finite: optax.Params  # the params of the last check at which they were finite
    best: _early_stopping.BestParams | None
    change: jax.Array
    status: jax.Array
    checks: jax.Array
    history: FitHistory


def fit(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: optax.Params,
    optimizer: optax.GradientTransformation,
    batches: _batches.Batches,
    *,
    steps: int,
    every: int = 1,
    tolerance: chex.Numeric | None = None,
    held_out: Callable[[optax.Params], jax.Array] | None = None,
    patience: int | None = None,
    margin: chex.Numeric = 0.0,
    record: Callable[[optax.Params], chex.ArrayTree] = lambda params: (),
) -> FitResult:
    """Minimises a loss by any Optax chain, until it has converged or its steps are used up.

    From the given params it repeats: the loss L(θ, batch), its gradient, the chain's update with
    the proximal step that may end it, θ ← θ + optimizer(∇L). After every so many steps it checks:
      - converged: in each of these steps, max_i |Δθ_i| ≤ tolerance. A proximal chain stands still
        at a minimum of L + g, where ∇L need not vanish; a learning rate that ends at zero stands
        still anywhere, and noisy batches nowhere while the rate is above it.
      - stalled: the last `patience` checks found no held-out loss below the best.
      - not finite: a weight is NaN or infinite, or the loss is NaN. The params of the check before
        are kept.

    May be jitted, and vmapped over whatever loss, params, chain and batches hold: lanes that have
    stopped keep their result while others go on. Without tolerance and patience the loop has a
    fixed length, and gradients flow back through it.

    Args:
      loss_fn: maps (params, batch) to a scalar loss.
      params: a pytree of arrays to begin with.
      optimizer: an Optax transformation, with extra arguments or without.
      batches: a pure function from the step, int32 [], to its batch, traced and not called at each
        step; or, when it is not callable, one batch that each step sees.
      steps: at most so many, static.
      every: steps between checks, static; divides `steps`. For a chain that updates at each k-th
        step alone, or whose rate starts at zero, take more steps than it stands still.
      tolerance: the largest move of a weight at convergence, ≥ 0; None does not look for it.
      held_out: maps params to a scalar; the params it likes best are returned.
      patience: checks without a better held-out loss after which to stop, static; None for all.
      margin: by how much a held-out loss has to be lower to be better.
      record: maps params to a pytree of arrays, recorded at each check in `history.recorded`.

    Raises:
      ValueError: `steps`, `every` or `patience` is not a positive integer, `every` does not divide
        `steps`, a tolerance or margin is negative, a patience has no held-out loss to judge by, or
        `batches` is an iterator or gives something else when called again.

    >>> goal = jnp.array([3.0, -1.0])
    >>> loss_fn = lambda w, rows: jnp.mean(jnp.square(rows @ (w - goal)))
    >>> found = fit(loss_fn, jnp.zeros(2), optax.sgd(0.3), jnp.eye(2), steps=500, tolerance=1e-6)
    >>> found.params.round(4).tolist(), int(found.steps), found.reason
    ([3.0, -1.0], 40, 'converged: no weight moves by more than the tolerance')
    """
    _require(loss_fn, optimizer, steps, every, tolerance, held_out, patience, margin)
    step = _steps.make_step(loss_fn, optimizer)
    batch_of = _batches.as_function(batches)

    def move(state, _):
        new, metrics = step(state, batch_of(state.step))
        change = jnp.nan if tolerance is None else _largest_move(state.params, new.params)
        return new, (metrics.loss, change)

    def check(carry):
        state, (losses, changes) = jax.lax.scan(move, carry.state, length=every)
        change = jnp.max(changes).astype(jnp.float32)
        held_out_loss = jnp.asarray(jnp.nan if held_out is None else held_out(state.params))
        best = carry.best
        if best is not None:
            best = _early_stopping.update_best_params(best, state.params, held_out_loss, state.step, margin)
        seen = FitHistory(jnp.mean(losses), held_out_loss, record(state.params))
        history = jax.tree.map(lambda h, s: h.at[carry.checks].set(s), carry.history, seen)
        is_finite = _is_finite(state.params) & ~jnp.isnan(seen.loss)
        finite = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), state.params, carry.finite)
        status = jnp.where(is_finite, _judge(change, tolerance, best, patience), NOT_FINITE)
        return _Carry(state, finite, best, change, status, carry.checks + 1, history)

    count = steps // every
    first = _begin(params, optimizer, held_out, record, count)
    if tolerance is None and patience is None:
        last = jax.lax.fori_loop(0, count, lambda _, carry: check(carry), first)
    else:
        unfinished = lambda carry: (carry.status == EXHAUSTED) & (carry.checks < count)
        last = jax.lax.while_loop(unfinished, check, first)
    return _report(last)


def _begin(params, optimizer, held_out, record, count):
    """The carry before the first check, its history still empty."""
    # A Python number becomes an array of a type that no step changes.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
    empty = lambda leaf: jnp.full(
        (count, *leaf.shape), jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0, leaf.dtype
    )
    nothing = jnp.full((count,), jnp.nan, float)
    history = FitHistory(nothing, nothing, jax.tree.map(empty, jax.eval_shape(record, params)))
    best = None if held_out is None else _early_stopping.init_best_params(params)
    status, checks = jnp.full((), EXHAUSTED, jnp.int32), jnp.zeros((), jnp.int32)
    nan = jnp.full((), jnp.nan, jnp.float32)
    return _Carry(_steps.init(params, optimizer), params, best, nan, status, checks, history)


def _is_finite(params):
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _judge(change, tolerance, best, patience):
    """The status of finite params: stalled, converged, or to be continued."""
    status = jnp.full((), EXHAUSTED, jnp.int32)
    if patience is not None:
        status = jnp.where(best.waited >= patience, STALLED, status)
    if tolerance is not None:
        status = jnp.where(change <= tolerance, CONVERGED, status)
    return status


def _report(carry):
    """A `FitResult` from the last carry."""
    state, best = carry.state, carry.best
    nan = jnp.full((), jnp.nan, jnp.float32)
    params, held_out_loss, best_step = (carry.finite, nan, state.step) if best is None else best[:3]
    loss = carry.history.loss[carry.checks - 1]
    return FitResult(params, loss, held_out_loss, state, best_step, carry.change, carry.status, carry.history)


def _largest_move(old, new):
    """max_i |new_i − old_i| over all leaves, in float32; NaN where one is."""
    move = lambda a, b: jnp.max(jnp.abs(b - a), initial=0.0).astype(jnp.float32)
    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(move, old, new))))


def _require(loss_fn, optimizer, steps, every, tolerance, held_out, patience, margin):
    """Raises ValueError for arguments that no loop could follow."""
    _validation.a_function("fit", loss_fn=loss_fn)
    _validation.an_optimizer("fit", optimizer=optimizer)
    if held_out is not None:
        _validation.a_function("fit", held_out=held_out)
    _validation.to_int(1, "fit", steps=steps)
    _validation.to_int(1, "fit", every=every)
    _validation.integer(1, "fit", patience=patience)
    if steps % every:
        expected = f"a divisor of steps={steps}"
        raise _validation.invalid("every", every, expected, "The last step is then checked too.", "fit")
    _validation.at_least(0, "fit", tolerance=tolerance, margin=margin)
    _validation.scalar("fit", tolerance=tolerance, margin=margin)
    if patience is not None and held_out is None:
        remedy = "It waits for a better one: give a function of the params, or leave patience out."
        raise _validation.invalid("held_out", held_out, f"given with patience={patience}", remedy, "fit")
    if held_out is None and _validation.is_known(margin) and margin:
        remedy = "It compares losses that are held out: give a function of the params, or leave it out."
        raise _validation.invalid("margin", margin, "0 without held_out", remedy, "fit")
