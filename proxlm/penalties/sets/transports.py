"""Transport plans and doubly stochastic matrices; shared arguments as in `proxlm.penalties`."""

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _indicator, _trees, base

__all__ = ["birkhoff", "transport"]

MOST_STEPS = 200


def transport(
    row_sums: base.Strength, column_sums: base.Strength, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of transport plans: g(X) = 0 if X ≥ 0 with rows that sum to a and columns to b, else +inf.

    prox(X)_ij = max(X_ij - α_i - β_j, 0). α and β minimise a piecewise quadratic function, by Newton's method
    with a line search.

    Convex: yes. Separable: by leaves. Metric: no. Cost: some ten solutions of m + n equations.

    Args:
      row_sums: a > 0, [m], or a tree of these.
      column_sums: b > 0, [n], of the same total.
      tolerance: how far sums and signs may be off, relative to the largest of a and b.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf is no matrix [m, n].

    Source: Blondel, Seguy & Rolet 2018; Li, Sun & Toh 2020 for Newton's method.

    >>> project = jax.jit(transport(jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])).prox)
    >>> project(jnp.eye(2), 1.0).round(3).tolist()
    [[0.25, 0.25], [0.0, 0.5]]
    """
    made = _transport("transport", row_sums, column_sums, tolerance)
    return made.described("transport", row_sums=row_sums, column_sums=column_sums, tolerance=tolerance)


def birkhoff(tolerance: float | None = None) -> base.Penalty:
    """Indicator of doubly stochastic matrices: g(X) = 0 if X ≥ 0 and rows and columns sum to 1, else +inf.

    Convex: yes. Separable: by leaves. Metric: no. Cost: as of `transport`.

    Args:
      tolerance: how far sums and signs may be off.

    Raises:
      ValueError: if the tolerance is negative; and, on use, if a leaf is no square matrix.

    Source: Birkhoff 1946; as `transport`.

    >>> jax.jit(birkhoff().prox)(jnp.array([[3.0, 0.0], [0.0, 0.0]]), 1.0).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return _transport("birkhoff", 1.0, 1.0, tolerance).described("birkhoff", tolerance=tolerance)


def _transport(name, row_sums, column_sums, tolerance):
    for argument, sums in (("row_sums", row_sums), ("column_sums", column_sums)):
        _validation.tree_positive(name, **{argument: sums})
        _validation.tree_finite(name, **{argument: sums})
    known = [_validation.known(name, "", sums) for sums in (row_sums, column_sums)]
    for rows, columns in zip(*known, strict=False):
        totals = float(np.sum(rows)), float(np.sum(columns))
        if rows.ndim and columns.ndim and abs(totals[0] - totals[1]) > 1e-3 * totals[0]:
            raise _validation.invalid(
                "column_sums", totals[1], f"of total {totals[0]}", "Rescale them.", name
            )

    def slot(axis):
        def shape(path, leaf):
            if leaf.ndim == 2 and (name == "transport" or leaf.shape[0] == leaf.shape[1]):
                return (leaf.shape[axis],)
            expected = "[m, n]" if name == "transport" else "[n, n]"
            raise _validation.invalid(f"the shape at {_trees.place(path)}", leaf.shape, expected, "", name)

        return shape

    def project(x, step_size, row_sums, column_sums):
        return _project(x, *_filled(x, row_sums, column_sums))

    def violation(x, row_sums, column_sums):
        rows, columns = _filled(x, row_sums, column_sums)
        off = jnp.max(jnp.abs(jnp.sum(x, 1) - rows)), jnp.max(jnp.abs(jnp.sum(x, 0) - columns)), jnp.max(-x)
        return jnp.max(jnp.stack(off)) / jnp.maximum(jnp.max(rows), jnp.max(columns))

    parameters = {"row_sums": (row_sums, slot(0)), "column_sums": (column_sums, slot(1))}
    project = _indicator.keep_inside(violation, project)
    return _indicator.constraint(name, violation, project, parameters, tolerance)


def _filled(x, row_sums, column_sums):
    rows, columns = (
        jnp.broadcast_to(s, (size,)) for s, size in zip((row_sums, column_sums), x.shape, strict=True)
    )
    return rows, columns * (jnp.sum(rows) / jnp.sum(columns))


def _project(x, rows, columns):
    """X and its derivative by a last step of Newton's method at the minimiser (α, β)."""
    m, n = x.shape
    held = jax.lax.stop_gradient((x, rows, columns))
    plan = lambda x, u: jnp.maximum(x - u[:m, None] - u[None, m:], 0.0)
    slope = lambda x, rows, columns, u: jnp.concatenate(
        [rows - jnp.sum(plan(x, u), axis=1), columns - jnp.sum(plan(x, u), axis=0)]
    )
    cost = lambda u: (
        0.5 * jnp.sum(jnp.square(plan(held[0], u))) + jnp.sum(u * jnp.concatenate([held[1], held[2]]))
    )

    def hessian(live):
        live = live.astype(x.dtype)
        counts = jnp.diag(jnp.concatenate([jnp.sum(live, axis=1), jnp.sum(live, axis=0)]))
        return counts.at[:m, m:].set(live).at[m:, :m].set(live.T)

    def advance(state):
        count, u, gradient = state
        ridge = 1e-3 * jnp.minimum(1.0, jnp.max(jnp.abs(gradient))) + 30 * eps * (m + n)
        system = hessian(plan(held[0], u) > 0) + ridge * jnp.eye(m + n, dtype=x.dtype)
        way = jnp.linalg.solve(system, gradient)
        fall, start = jnp.sum(way * gradient), cost(u)
        enough = lambda t: cost(u - t * way) <= start - 1e-4 * t * fall + 4 * eps * jnp.abs(start)
        t = jax.lax.while_loop(lambda t: ~enough(t) & (t > 1e-6), lambda t: 0.5 * t, jnp.ones_like(start))
        return count + 1, u - t * way, slope(*held, u - t * way)

    eps, u = jnp.finfo(x.dtype).eps, jnp.zeros_like(x, shape=m + n)
    rounding = 8 * eps * (jnp.max(jnp.abs(held[0])) + jnp.max(held[1]))
    going = lambda state: (state[0] < MOST_STEPS) & (jnp.max(jnp.abs(state[2])) > rounding)
    _, u, _ = jax.lax.while_loop(going, advance, (0, u, slope(*held, u)))
    # Where the live entries fall into several blocks, the prices of a block are known up to a number, and
    # others may be 0 up to rounding. A NaN is live, and spoils the result.
    live = ~(plan(held[0], u) <= 4 * rounding)
    inverse = jnp.linalg.pinv(hessian(live), rtol=1e-4 / (m + n), hermitian=True)
    return jnp.where(live, plan(x, u - inverse @ slope(jnp.where(live, x, held[0]), rows, columns, u)), 0.0)
