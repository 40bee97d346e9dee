"""The problem that solvers see: min f(x) + g(x) over plain vectors."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import flatten_util

from proxlm import _validation
from proxlm.penalties import base
from proxlm.solvers._linear_loss import LinearLoss


class Point(NamedTuple):
    """A point, and what is known there.

    Attributes:
      x: [n].
      smooth: f(x).
      gradient: ∇f(x), [n].
      total: f(x) + g(x); f(x) where the penalty has no value.
      gap: an element of ∇f(x) + ∂g(x), [n]; infinite where none is known, and of no size where the penalty
        tells the nearest to 0 by its residual.
    """

    x: jax.Array
    smooth: jax.Array
    gradient: jax.Array
    total: jax.Array
    gap: jax.Array


@dataclasses.dataclass(frozen=True)
class Backtracking:
    """Settings of the search for a step size.

    Attributes:
      factor: by which a step that is refused is shortened, in (0, 1).
      limit: of tries in one iteration.

    Raises:
      ValueError: if an argument is invalid.

    >>> Backtracking(factor=0.8).limit
    60
    """

    factor: float = 0.5
    limit: int = 60

    def __post_init__(self) -> None:
        """Validates the settings."""
        _validation.positive("Backtracking", factor=self.factor)
        _validation.within(0.0, 1.0, "Backtracking", factor=self.factor)
        _validation.integer(1, "Backtracking", limit=self.limit)


class Objective(NamedTuple):
    """The static half of a problem.

    Attributes:
      fun: (params, *args) ↦ f, with aux and gradient as the flags say.
      penalty: g.
      backtracking: None for a constant step.
      has_aux: whether f comes as (f, aux).
      value_and_grad: whether fun gives (f, ∇f).
    """

    fun: Callable
    penalty: base.Penalty
    backtracking: Backtracking | None = None
    has_aux: bool = False
    value_and_grad: bool = False


class Linear(NamedTuple):
    """The structure of a linear model, on vectors.

    Attributes:
      predict: x ↦ η, [n].
      at: (x, η) ↦ Point, for half of the work.
      restrict: (x, η, chosen [k]) ↦ the objective and Problem in these coordinates alone, their values, and
        z ↦ what they add to η.
    """

    predict: Callable[[jax.Array], jax.Array]
    at: Callable[[jax.Array, jax.Array], Point]
    restrict: Callable[[jax.Array, jax.Array, jax.Array], tuple]


class Problem(NamedTuple):
    """f and g on vectors of the params' widest dtype.

    Attributes:
      at: x ↦ Point.
      step: (Point, t) ↦ prox_tg(x - t∇f(x)), t divided by the metric.
      moved: (Point, t) ↦ the Point after such a step, with its gap.
      measured: (Point, t) ↦ the same Point, with a gap.
      error: Point ↦ how far -∇f(x) is from ∂g(x), the largest entry.
      descent: Point ↦ the steepest descent in f + g that starts smoothly, [n]; None where the
        penalty has no residual.
      kinks: where f + g cannot cross 0 smoothly, bool [n]; None where the penalty has no residual.
      unravel: back to the structure of the params.
      metric: D, [n] or 1: lengths are Σ D_i x_i².
      largest: step size.
      backtracking: None for a constant step.
      linear: the structure of a `LinearLoss`; None for other functions.
      hessian: a model of that of f, [n, n], which may be of few digits; None where it is unknown.
    """

    at: Callable[[jax.Array], Point]
    step: Callable[[Point, jax.Array], jax.Array]
    moved: Callable[[Point, jax.Array], Point]
    measured: Callable[[Point, jax.Array], Point]
    error: Callable[[Point], jax.Array]
    descent: Callable[[Point], jax.Array] | None
    kinks: jax.Array | None
    unravel: Callable[[jax.Array], Any]
    metric: Any
    largest: Any
    backtracking: Backtracking | None
    linear: Linear | None
    hessian: jax.Array | None = None


def flatten(
    objective: Objective, params: Any, args: tuple = (), metric: Any = None, largest: Any = jnp.inf
) -> tuple[Problem, jax.Array]:
    """Turns a problem on trees into one on vectors.

    Returns:
      `(Problem, x)`, x the params as a vector.

    >>> from proxlm import penalties
    >>> fun = lambda x: 0.5 * jnp.sum(jnp.square(x - 1.0))
    >>> problem, x = flatten(Objective(fun, penalties.l1(0.25)), jnp.zeros(2))
    >>> problem.error(problem.at(x)).item()
    0.75
    """
    penalty = objective.penalty
    x, unravel = flatten_util.ravel_pytree(params)
    ravel = lambda tree: flatten_util.ravel_pytree(tree)[0].astype(x.dtype)
    differentiate = _value_and_gradient(objective, args)
    weights = 1.0 if metric is None else ravel(metric)
    residual = penalty.residual

    def point(x, smooth, gradient):
        total = smooth if penalty.value is None else smooth + penalty.value(unravel(x))
        gap = jnp.full(x.shape if residual is None else 0, jnp.inf, x.dtype)
        return Point(x, smooth.astype(x.dtype), gradient, total.astype(x.dtype), gap)

    def at(x):
        (smooth, _), gradient = differentiate(unravel(x))
        return point(x, smooth, ravel(gradient))

    def step(point, t):
        sizes = t if metric is None else t / weights
        moved = point.x - sizes * point.gradient
        return ravel(penalty.prox(unravel(moved), sizes if metric is None else unravel(sizes)))

    if residual is not None:
        descent = lambda point: ravel(residual(unravel(point.x), unravel(-point.gradient)))
        error = lambda point: jnp.max(jnp.abs(descent(point)), initial=0.0)
        moved, measured = lambda point, t: at(step(point, t)), lambda point, t: point
        at_zero = lambda v: ravel(residual(unravel(jnp.zeros_like(x)), unravel(v)))
        small = jnp.full_like(x, jnp.finfo(x.dtype).tiny ** 0.5)
        kinks = (at_zero(small) == 0) | (at_zero(-small) == 0)
    else:
        descent, kinks, error = None, None, lambda point: jnp.max(jnp.abs(point.gap), initial=0.0)
        # What a prox made is where D(x - x⁺)/t - ∇f(x) is a subgradient of g.
        drop = lambda old, new, t: weights * (old.x - new) / t
        measured = lambda point, t: point._replace(gap=drop(point, step(point, t), t))

        def moved(point, t):
            new = at(step(point, t))
            return new._replace(gap=drop(point, new.x, t) - point.gradient + new.gradient)

    functions = at, step, moved, measured, error, descent, kinks, unravel
    weighted = None if metric is None else weights
    linear = _linear(objective, args, x, unravel, point, weighted, largest)
    return Problem(*functions, weights, largest, objective.backtracking, linear), x


def _linear(objective, args, x, unravel, point, metric, largest):
    if not isinstance(objective.fun, LinearLoss):
        return None
    fun, (features, *rest) = objective.fun, args
    predict = lambda x: fun.predict(unravel(x), features)
    transposed = jax.linear_transpose(predict, x)

    def at(x, eta):
        smooth, slopes = jax.value_and_grad(fun.mean)(eta, *rest)
        return point(x, smooth, transposed(slopes)[0])

    def restrict(x, eta, chosen):
        columns, matrix = fun.columns(features, chosen)
        penalty, z = _on_chosen(objective.penalty, x, unravel, chosen), x[chosen]
        part = objective._replace(fun=lambda new: fun.mean(eta + columns(new - z), *rest), penalty=penalty)
        problem = flatten(part, z, (), None if metric is None else metric[chosen], largest)[0]
        return part, problem._replace(hessian=fun.hessian(matrix, eta, *rest)), z, columns

    return Linear(predict, at, restrict)


def _on_chosen(penalty, x, unravel, chosen):
    """The penalty as a function of some coordinates of x."""
    spread = lambda numbers, rest: unravel(rest.at[chosen].set(numbers))
    pick = lambda tree: flatten_util.ravel_pytree(tree)[0][chosen]
    step = lambda t: t if jnp.ndim(t) == 0 else spread(t, jnp.ones_like(x))
    value, residual = penalty.value, penalty.residual
    return base.Penalty(
        value and (lambda z: value(spread(z, x))),
        lambda z, t: pick(penalty.prox(spread(z, x), step(t))),
        residual and (lambda z, v: pick(residual(spread(z, x), spread(v, jnp.zeros_like(x))))),
    )


def aux(objective: Objective, params: Any, args: tuple) -> Any:
    """The aux of f; None without `has_aux`.

    >>> fun = lambda x: (jnp.sum(x), {"size": x.size})
    >>> aux(Objective(fun, None, has_aux=True), jnp.zeros(2), ())
    {'size': 2}
    """
    if not objective.has_aux:
        return None
    out = objective.fun(params, *args)
    return (out[0] if objective.value_and_grad else out)[1]


def _value_and_gradient(objective, args):
    """Params ↦ ((f, aux), ∇f)."""

    def checked(out):
        value, aux = out if objective.has_aux else (out, None)
        if jnp.shape(value) != ():
            remedy = "Sum or average it; with has_aux=True it gives (value, aux)."
            raise _validation.invalid("fun(params).shape", jnp.shape(value), "(), one number", remedy)
        return jnp.asarray(value), aux

    if objective.value_and_grad:

        def given(params):
            out, gradient = objective.fun(params, *args)
            return checked(out), gradient

        return given
    return jax.value_and_grad(lambda params: checked(objective.fun(params, *args)), has_aux=True)
