"""The problem that solvers see: min f(x) + g(x) over plain vectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import flatten_util

from proxlm import _validation
from proxlm.penalties import base


class Point(NamedTuple):
    """A point, and what is known there.

    Attributes:
      x: [n].
      smooth: f(x).
      gradient: ∇f(x), [n].
      total: f(x) + g(x).
      aux: what f gives besides its value, or None.
    """

    x: jax.Array
    smooth: jax.Array
    gradient: jax.Array
    total: jax.Array
    aux: Any


class Problem(NamedTuple):
    """f and g on vectors of the params' widest dtype.

    Attributes:
      at: x ↦ Point.
      prox: (x, t) ↦ prox_tg(x).
      error: (Point, t) ↦ how far -∇f(x) is from ∂g(x), the largest entry.
      descent: Point ↦ the steepest descent in f + g that starts smoothly, [n]; None where the
        penalty has no residual.
      unravel: back to the structure of the params.
    """

    at: Callable[[jax.Array], Point]
    prox: Callable[[jax.Array, jax.Array], jax.Array]
    error: Callable[[Point, jax.Array], jax.Array]
    descent: Callable[[Point], jax.Array] | None
    unravel: Callable[[jax.Array], Any]


def flatten(fun: Callable, params: Any, penalty: base.Penalty, has_aux: bool) -> tuple:
    """Turns a problem on trees into one on vectors.

    Returns:
      `(Problem, x)`, x the params as a vector.

    >>> from proxlm import penalties
    >>> fun = lambda x: 0.5 * jnp.sum(jnp.square(x - 1.0))
    >>> problem, x = flatten(fun, jnp.zeros(2), penalties.l1(0.25), has_aux=False)
    >>> problem.error(problem.at(x), 1.0).item()
    0.75
    """
    x, unravel = flatten_util.ravel_pytree(params)
    ravel = lambda tree: flatten_util.ravel_pytree(tree)[0]

    def smooth_part(x):
        out = fun(unravel(x))
        value = out[0] if has_aux else out
        if jnp.shape(value) != ():
            remedy = "Sum or average it; with has_aux=True it gives (value, aux)."
            raise _validation.invalid("fun(params).shape", jnp.shape(value), "(), one number", remedy)
        return out

    differentiate = jax.value_and_grad(smooth_part, has_aux=has_aux)

    def at(x):
        out, gradient = differentiate(x)
        smooth, aux = out if has_aux else (out, None)
        return Point(x, smooth, gradient, smooth + penalty.value(unravel(x)), aux)

    prox = lambda x, t: ravel(penalty.prox(unravel(x), t))
    residual = penalty.residual
    if residual is None:
        # |x - prox(x - t∇f)|/t tends to the distance as t does to 0.
        error = lambda point, t: jnp.max(
            jnp.abs(point.x - prox(point.x - t * point.gradient, t)) / t, initial=0.0
        )
        return Problem(at, prox, error, None, unravel), x
    descent = lambda point: ravel(residual(unravel(point.x), unravel(-point.gradient)))
    error = lambda point, t: jnp.max(jnp.abs(descent(point)), initial=0.0)
    return Problem(at, prox, error, descent, unravel), x
