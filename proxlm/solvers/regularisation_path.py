"""Solutions for many strengths: the strength at which a path starts, and the path itself."""

from collections.abc import Callable
from typing import Any, Unpack

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import base
from proxlm.solvers import _problem
from proxlm.solvers.solver import Options, Solution, Solver, proximal_gradient

__all__ = ["path", "strength_max"]


@_validation.typed
def strength_max(
    fun: Callable,
    params: chex.ArrayTree,
    make_penalty: Callable[[chex.Numeric], base.Penalty],
    *args: Any,
    has_aux: bool = False,
) -> jax.Array:
    """The smallest strength λ for which 0 solves min f + g_λ.

    0 is a solution where prox_g(-∇f(0)) = 0; the strength is found by doubling and bisection, to
    the precision of the dtype. For `l1` it is max |∇f(0)|.

    Args:
      params: for their structure.
      make_penalty: strength ↦ penalty, such that 0 is a solution if the strength is large enough.

    Returns:
      A scalar; +inf if no strength up to 2⁶⁰ suffices, as for `squared_l2`.

    Raises:
      ValueError: if `make_penalty` is no function.

    >>> from proxlm import penalties
    >>> fun = lambda x: 0.5 * jnp.sum(jnp.square(x - jnp.array([3.0, 0.5])))
    >>> strength_max(fun, jnp.zeros(2), penalties.l1).item()
    3.0
    """
    _validation.a_function(
        "strength_max", "Give penalties.l1, not penalties.l1(0.1).", make_penalty=make_penalty
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    start, x = _problem.flatten(_problem.Objective(fun, make_penalty(0.0), has_aux=has_aux), zeros, args)
    downhill = -start.at(x).gradient

    def suffices(strength):
        moved = make_penalty(strength).prox(start.unravel(downhill), 1.0)
        return jnp.all(jnp.array([jnp.all(leaf == 0) for leaf in jax.tree.leaves(moved)]))

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = suffices(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    powers = jnp.exp2(jnp.arange(-60, 61, dtype=x.dtype))
    enough = jax.lax.map(suffices, powers)
    high = powers[jnp.argmax(enough)]
    _, high = jax.lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 2, halve, (0.5 * high, high))
    return jnp.where(jnp.any(enough), high, jnp.inf)


@_validation.typed
def path(
    fun: Callable,
    params: chex.ArrayTree,
    make_penalty: Callable[[chex.Numeric], base.Penalty],
    strengths: jax.Array,
    *args: Any,
    **options: Unpack[Options],
) -> Solution:
    """A regularisation path: the solution for each strength, started from that of the last.

    Args:
      params: where to start the first.
      strengths: [K], best in decreasing order.
      *args: data, for `fun`.
      **options: of `Solver`.

    Returns:
      A `Solution` whose leaves are stacked, [K, ...].

    Raises:
      ValueError: if the strengths are not a vector of numbers ≥ 0, or `make_penalty` is no function.

    Source: Friedman, Hastie & Tibshirani 2010 (warm starts).

    >>> from proxlm import penalties
    >>> fun = lambda x: 0.5 * jnp.sum(jnp.square(x - jnp.array([3.0, 0.5])))
    >>> path(fun, jnp.zeros(2), penalties.l1, jnp.array([3.0, 2.0, 0.25])).params.tolist()
    [[0.0, 0.0], [1.0, 0.0], [2.75, 0.25]]
    """
    _validation.a_function("path", "Give penalties.l1, not penalties.l1(0.1).", make_penalty=make_penalty)
    _validation.tree_at_least(0, "path", strengths=strengths)
    if jnp.ndim(strengths) != 1:
        remedy = "For one strength call proximal_gradient."
        raise _validation.invalid("strengths.shape", jnp.shape(strengths), "[K], a vector", remedy, "path")

    def advance(carry, strength):
        start, options["step_size"] = carry
        solution = proximal_gradient(fun, start, make_penalty(strength), *args, **options)
        return (solution.params, solution.step_size), solution

    first = Solver(fun, make_penalty(strengths[0]), **options).init(params, *args)
    return jax.lax.scan(advance, (params, first.moving.step_size), strengths)[1]
