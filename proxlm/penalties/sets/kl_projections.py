"""Projections in the geometry of the KL divergence: the nearest p to x by Σ_i p_i log(p_i/x_i) - p_i + x_i.

They take log x, which may be unnormalised log-probabilities, and are no penalties: their geometry is not
that of a step x - t∇f(x). On the simplex alone the projection is the softmax, and on a box the same as `box`.

- `kl_box_section`: bounds and a sum, so also the simplex with caps
- `kl_transport`: rows and columns of given sums, by Sinkhorn's iteration
"""

import chex
import jax
import jax.numpy as jnp

from proxlm import _validation

__all__ = ["kl_box_section", "kl_transport"]


def kl_box_section(
    log_x: chex.Array, total: chex.Numeric = 1.0, lower: chex.Numeric = 0.0, upper: chex.Numeric = jnp.inf
) -> jax.Array:
    """The KL projection on l ≤ p ≤ u, Σ_i p_i = s: p_i = min(max(τ x_i, l_i), u_i).

    The τ that gives the sum is found by bisection, then from the entries inside their bounds, through which
    derivatives go.

    Args:
      log_x: [n].
      total: s > 0, which the bounds must allow.
      lower: l ≥ 0, one number or [n].
      upper: u ≥ l, likewise.

    Raises:
      ValueError: if an argument is invalid.

    Source: Krichene, Krichene & Bayen 2015.

    >>> kl_box_section(jnp.log(jnp.array([8.0, 1.0, 1.0])), upper=0.5).tolist()
    [0.5, 0.25, 0.25]
    """
    _validation.arrays("kl_box_section", log_x=log_x)
    _validation.tree_positive("kl_box_section", total=total)
    _validation.tree_at_least(0, "kl_box_section", lower=lower, upper=upper)
    z = jax.nn.log_softmax(log_x)
    lower, upper = jnp.broadcast_to(lower, z.shape), jnp.broadcast_to(upper, z.shape)
    at = lambda shift: jnp.clip(jnp.exp(z + shift), lower, upper)

    def halve(_, ends):
        middle = 0.5 * (ends[0] + ends[1])
        enough = jnp.sum(at(middle)) >= total
        return jnp.where(enough, ends[0], middle), jnp.where(enough, middle, ends[1])

    least = jnp.min(z, where=jnp.isfinite(z), initial=0.0)
    ends = jnp.log(jnp.finfo(z.dtype).tiny) - jnp.max(z), jnp.log(total) - least
    held = jax.lax.stop_gradient
    shift = held(jax.lax.fori_loop(0, jnp.finfo(z.dtype).nmant + 12, halve, ends)[1])
    moved = jnp.exp(z + shift)
    free = held((moved > lower) & (moved < upper))
    fixed = jnp.where(free, 0.0, jnp.clip(moved, lower, upper))
    share = jnp.where(free, moved, 0.0)
    rest = total - jnp.sum(fixed)
    return jnp.where(free, rest * share / jnp.maximum(jnp.sum(share), jnp.finfo(z.dtype).tiny), fixed)


def kl_transport(
    log_x: chex.Array,
    row_sums: chex.Array,
    column_sums: chex.Array,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> jax.Array:
    """The KL projection on plans with rows that sum to a and columns to b: P_ij = exp(α_i + β_j) X_ij.

    With log X = -C/ε it is the transport plan of least cost C under an entropy of weight ε. Sums of ones make
    it doubly stochastic.

    Args:
      log_x: [m, n].
      row_sums: a > 0, [m].
      column_sums: b > 0, [n], of the same total.
      tolerance: how far sums of rows may be off, relative to the largest; those of columns are exact.
      max_iterations: after which the plan is returned as it is.

    Raises:
      ValueError: if an argument is invalid.

    Source: Sinkhorn & Knopp 1967; Cuturi 2013.

    >>> half = jnp.array([0.5, 0.5])
    >>> plan = kl_transport(jnp.log(jnp.array([[4.0, 1.0], [1.0, 4.0]])), half, half)
    >>> round(plan[0, 0].item(), 3), round(plan[0, 1].item(), 3)
    (0.4, 0.1)
    """
    _validation.arrays("kl_transport", log_x=log_x)
    _validation.tree_positive("kl_transport", row_sums=row_sums, column_sums=column_sums, tolerance=tolerance)
    _validation.to_int(1, "kl_transport", max_iterations=max_iterations)
    if log_x.shape != (*jnp.shape(row_sums), *jnp.shape(column_sums)):
        shapes = jnp.shape(row_sums), jnp.shape(column_sums)
        raise _validation.invalid("log_x.shape", log_x.shape, f"of the sums {shapes}", "", "kl_transport")
    rows, columns = jnp.log(row_sums), jnp.log(column_sums)
    onto = lambda goal, x, axis: goal - jax.nn.logsumexp(x, axis=axis)

    def sweep(carry):
        _, beta, _, count = carry
        alpha = onto(rows, log_x + beta[None], 1)
        off = jnp.abs(jnp.exp(rows - alpha + carry[0]) - row_sums)
        beta = onto(columns, log_x + alpha[:, None], 0)
        return alpha, beta, jnp.max(off) / jnp.max(row_sums), count + 1

    unfinished = lambda carry: (carry[2] > tolerance) & (carry[3] < max_iterations)
    start = jnp.zeros_like(rows), jnp.zeros_like(columns), jnp.asarray(jnp.inf, log_x.dtype), jnp.int32(0)
    alpha, beta, _, _ = jax.lax.while_loop(unfinished, sweep, start)
    return jnp.exp(log_x + alpha[:, None] + beta[None])
