"""A proximal step around a whole optimizer, in Euclidean geometry or in the optimizer's own."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm.penalties import _trees, _validation, base
from proxlm.penalties.compose import calculus
from proxlm.transforms import _arguments, _states, _updates, preconditioners
from proxlm.transforms.proximal_links import proximal_update


class ProximalState(NamedTuple):
    """State of `proximal` and of the optimizers made with it.

    Attributes:
      count: the updates that the inner optimizer has emitted, int32.
      step_sum: the sum of their learning rates since the last prox.
      anchor: the params at `init`, or None without an anchor.
      inner_state: the state of the inner optimizer.
    """

    count: jax.Array
    step_sum: jax.Array
    anchor: Any
    inner_state: optax.OptState


class Rule(NamedTuple):
    """How a prox follows its optimizer; the arguments of `proximal` go by the same names."""

    penalty: base.Penalty
    learning_rate: optax.ScalarOrSchedule
    metric: preconditioners.Metric | None = None
    floor: chex.Numeric = 0.0
    cap: chex.Numeric = jnp.inf
    every: int = 1
    anchored: bool = False


def proximal(
    inner: optax.GradientTransformation | optax.MultiSteps,
    penalty: base.Penalty,
    learning_rate: optax.ScalarOrSchedule,
    *,
    metric: preconditioners.Metric | str | None = None,
    floor: chex.Numeric = 0.0,
    cap: chex.Numeric = jnp.inf,
    every: int = 1,
    anchored: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Follows an optimizer with a prox: x ↦ prox_tg(x + u), u the inner update.

    Without a metric t is the learning rate η, and this is `optax.chain(inner, apply_prox(...))`
    that cannot be misordered. After plain SGD it solves min f + g; after a preconditioner it is
    decoupled, as AdamW's decay is, and solves another problem. With the metric of a preconditioner
    that divides by D, u = -η m/D, it solves min f + g: t is η/D, weight by weight.

    Where the floor or the cap makes t smaller than η/D, the gradient's step is shortened to the
    same -t m, so that fixed points stay right; there it is no longer the inner optimizer's step.
    By default neither binds, and strength 0 is the inner optimizer. A weight that has never had a
    gradient (the row of an unseen token, a dead expert) has no D yet: it takes t = η,
    the decoupled one, and not η/ε, which would kill it at once. D is poorly known in the first
    steps, from gradients that may be near 0 by chance: begin with a warm-up.

    A `floor` costs another pass over each leaf, for its rms. Muon, Shampoo and their like
    precondition by matrices: they have the decoupled form only.

    Around `optax.MultiSteps` the prox runs when an update is emitted and at no other time:
    `proximal(optax.MultiSteps(inner, k), ...)`. `optax.MultiSteps(proximal(inner, ...), k)` gives
    the same at the price of a prox at every mini-step. Put `optax.apply_if_finite` and
    `optax.inject_hyperparams` around the whole, not inside.

    Args:
      inner: the optimizer, its learning rate included.
      penalty: g; its strengths may be traced.
      learning_rate: η, the one that inner has: a number, a traced scalar or a schedule, which is
        read at the number of earlier updates. `optax.trace` and its like make steps 1/(1 - μ)
        times as long, and so they should be given; `proximal_sgd` does it for you.
      metric: how D is read from the state of inner, as in `adam_metric(b2=0.95)`; by name, such as
        "adam", with Optax's own defaults; None for the decoupled form. The state is found by its
        type under chains, masks, partitions and wrappers.
      floor: least D in units of the rms of D over the leaf; see `penalties.step_sizes`.
      cap: largest t.
      every: apply the prox at each `every`-th update only, with t from the sum of the learning
        rates since the last time and D as it then is, which costs no tree in the state.
      anchored: measure g from the params seen by `init`, kept in the state.

    Returns:
      The transformation. Extra arguments go to inner.

    Raises:
      ValueError: on construction, for arguments that are none; on init, if the metric's state is
        not found or the penalty has no prox in a metric, if inner has a prox already, ends before
        a learning rate, or shows another one; on update, without params.

    Source: Yun, Lozano & Yang 2021 (ProxGen); Loshchilov & Hutter 2019 (decoupling).

    >>> from proxlm import penalties
    >>> tx = proximal(optax.adam(0.5), penalties.l1(1.0), 0.5, metric="adam")
    >>> x = jnp.array([3.0, 0.5])
    >>> updates, state = tx.update(jnp.array([2.0, 4.0]), tx.init(x), x)
    >>> optax.apply_updates(x, updates).round(4).tolist()
    [2.25, 0.0]
    """
    _arguments.require_step("proximal", penalty, learning_rate, every)
    _validation.require_nonnegative("proximal", "floor", floor)
    _validation.require_positive("proximal", "cap", cap)
    rule = Rule(penalty, learning_rate, _metric_of(metric), floor, cap, every, anchored)

    def require(inner_state):
        _states.require_sound("proximal", inner_state)
        _states.require_rate("proximal", inner_state, learning_rate)

    return follow(inner, rule, require)


def follow(
    inner: optax.GradientTransformation | optax.MultiSteps, rule: Rule, require=lambda state: None
) -> optax.GradientTransformationExtraArgs:
    """What `proximal` returns, by a rule that is taken at its word.

    >>> from proxlm import penalties
    >>> tx = follow(optax.sgd(1.0), Rule(penalties.l1(1.0), 0.5))
    >>> tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))[0].tolist()
    [-0.5]
    """
    inner = _as_transformation(inner)

    def init(params):
        inner_state = inner.init(params)
        require(inner_state)
        if rule.metric is not None:
            _states.require_readable(rule.metric, inner_state)
            jax.eval_shape(lambda x: rule.penalty.prox(x, _trees.widen("proximal", x)), params)
        # A copy, so that the params may be donated.
        anchor = jax.tree.map(jnp.array, params) if rule.anchored else None
        return ProximalState(jnp.zeros([], jnp.int32), jnp.zeros([]), anchor, inner_state)

    def update(updates, state, params=None, **extra_args):
        _arguments.require_params(params)
        moved, after = inner.update(updates, state.inner_state, params, **extra_args)
        emitted = _has_emitted(state.inner_state, after)
        rate = _updates.rate_at(rule.learning_rate, state.count)
        step_sum = state.step_sum + jnp.where(emitted, rate, 0.0)
        count = jnp.where(emitted, optax.safe_increment(state.count), state.count)
        read = functools.partial(_read, rule, state.inner_state, after, params, updates)

        def move():
            step_size, shortened = read(moved, rate, step_sum)
            goal = calculus.translate(rule.penalty, state.anchor) if rule.anchored else rule.penalty
            return proximal_update(goal, shortened, params, step_size), jnp.zeros_like(step_sum)

        def wait():
            return _trees.narrow(read(moved, rate, step_sum)[1], params), step_sum

        always = emitted is True and isinstance(rule.every, int) and rule.every == 1
        due = jnp.logical_and(emitted, count % rule.every == 0)
        result, step_sum = move() if always else jax.lax.cond(due, move, wait)
        return result, ProximalState(count, step_sum, state.anchor, after)

    return optax.GradientTransformationExtraArgs(init, update)


def _read(rule, before, after, params, gradients, moved, rate, step_sum):
    """The step sizes, and the inner update shortened where these are bounded."""
    if rule.metric is None:
        return step_sum, moved
    divisor = _states.diagonal(rule.metric, before, after, params, gradients)
    divisor = _trees.widen("proximal", divisor)
    if preconditioners.unbounded(rule.floor, rule.cap):
        return jax.tree.map(functools.partial(_free, step_sum), divisor), moved
    bounded = functools.partial(_bounded, rule.floor, rule.cap)
    # Lazy steps are as many equal ones, so that floor and cap mean the same.
    mean = functools.partial(bounded, step_sum / rule.every)
    total = jax.tree.map(lambda d: rule.every * mean(d), divisor)
    shorten = lambda u, d: _shorten(u, bounded(rate, d), _free(rate, d))
    return total, jax.tree.map(shorten, _trees.widen("proximal", moved), divisor)


def _free(rate, divisor):
    return rate.astype(divisor.dtype) / jnp.abs(divisor)


def _bounded(floor, cap, rate, divisor):
    seen = divisor > 0
    # D is the root of what the state holds, so that its square is in range.
    known = jnp.where(seen, divisor, 0.0)
    rms = jnp.sqrt(jnp.tensordot(known, known, divisor.ndim, precision="highest") / divisor.size)
    bounded = jnp.where(seen, jnp.maximum(divisor, floor * rms), -divisor)
    return jnp.minimum(rate / bounded, cap).astype(divisor.dtype)


def _shorten(update, size, free):
    """-t m for -(η/D) m where t < η/D; elsewhere the update as it is."""
    bound = size < free
    return jnp.where(bound, size / jnp.where(bound, free, 1.0) * update, update)


def _metric_of(metric):
    if isinstance(metric, str) and metric in _states.METRICS:
        return _states.METRICS[metric]()
    if metric is None or isinstance(metric, preconditioners.Metric):
        return metric
    raise ValueError(
        f"proximal: metric must be a Metric, as adam_metric() makes one, None, or one of "
        f"{', '.join(_states.METRICS)}; got {metric!r}."
    )


def _as_transformation(inner):
    if isinstance(inner, optax.MultiSteps):
        # Its own gradient_transformation() would lose the extra arguments.
        return optax.GradientTransformationExtraArgs(inner.init, inner.update)
    if isinstance(inner, optax.GradientTransformation):
        return optax.with_extra_args_support(inner)
    raise ValueError(
        f"proximal: inner must be an optax.GradientTransformation, got {inner!r}. Give the "
        "optimizer itself, as in optax.adam(1e-3)."
    )


def _has_emitted(before, after):
    """True, or whether the one MultiSteps inside has just emitted an update."""
    old, new = (_states.find(state, optax.MultiStepsState) for state in (before, after))
    if len(old) > 1:
        raise ValueError(
            f"proximal: inner holds {len(old)} MultiSteps, which may emit at different times. "
            "Put one around them all."
        )
    return old[0].gradient_step != new[0].gradient_step if old else True
