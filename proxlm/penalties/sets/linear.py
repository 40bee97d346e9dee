"""Sets of linear equations and inequalities on a whole leaf; shared arguments as in `proxlm.penalties`."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation
from proxlm.penalties import _indicator, _slots, _trees, base
from proxlm.penalties.sets import _least_distance

__all__ = ["affine_set", "box_section", "polyhedron"]


def affine_set(matrix: base.Strength, offset: base.Strength, tolerance: float | None = None) -> base.Penalty:
    """Indicator of the solutions of linear equations: g(x) = 0 if A x = b, else +inf.

    prox(x) = x - A⁺(A x - b), x all numbers of a leaf in their order. Rows of A may depend on one another.

    Convex: yes. Separable: by leaves. Metric: no. Cost: a solution of m equations, m the rows of A.

    Args:
      matrix: A [m, n], or a tree of these in the structure of x. May be traced.
      offset: b [m], likewise.
      tolerance: how far A x may be from b, relative to |A||x| + |b|, row by row.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf has not n numbers.

    Source: Parikh & Boyd 2014, section 6.2.1.

    >>> project = jax.jit(affine_set(jnp.ones((1, 3)), jnp.zeros(1)).prox)
    >>> project(jnp.array([1.0, 2.0, 6.0]), 1.0).tolist()
    [-2.0, -1.0, 3.0]
    """
    made = _polyhedron(
        "affine_set", matrix, offset, lambda matrix: jnp.ones(matrix.shape[0], bool), tolerance
    )
    return made.described("affine_set", matrix=matrix, offset=offset, tolerance=tolerance)


def polyhedron(
    matrix: base.Strength, offset: base.Strength, equations: int = 0, tolerance: float | None = None
) -> base.Penalty:
    """Indicator of a polyhedron: g(x) = 0 if A x = b in the first rows and A x ≤ b in the others, else +inf.

    The prox is the nearest point x - Aᵀλ. λ, of least |Aᵀλ - x|²/2 + ⟨b, λ⟩ with λ ≥ 0 for the inequalities,
    is found by block principal pivoting, a solution of m equations a step.

    Convex: yes. Separable: by leaves. Metric: no. Cost: some ten solutions of m equations, m the rows of A.

    Args:
      matrix: A [m, n], as for `affine_set`.
      offset: b [m].
      equations: how many of the first rows are equations, static.
      tolerance: as for `affine_set`.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf has not n numbers.

    Source: Portugal, Júdice & Vicente 1994.

    >>> project = jax.jit(polyhedron(jnp.array([[1.0, 1.0], [-1.0, 0.0]]), jnp.array([1.0, 0.0])).prox)
    >>> project(jnp.array([-1.0, 3.0]), 1.0).round(3).tolist()
    [0.0, 1.0]
    """
    equations = _validation.to_int(0, "polyhedron", equations=equations)
    equal = lambda matrix: jnp.arange(matrix.shape[0]) < equations
    made = _polyhedron("polyhedron", matrix, offset, equal, tolerance)
    given = {"matrix": matrix, "offset": offset, "equations": equations, "tolerance": tolerance}
    return made.described("polyhedron", **given)


def box_section(
    weights: base.Strength,
    total: base.Strength,
    lower: base.Strength = 0.0,
    upper: base.Strength = 1.0,
    tolerance: float | None = None,
) -> base.Penalty:
    """Indicator of the section of a box by a hyperplane: 0 if l ≤ x ≤ u and Σ_i w_i x_i = c, else +inf.

    prox(x)_i = min(max(x_i - τ w_i, l_i), u_i), with the τ at which the sum is c, found by a search
    among the places where it bends.

    Convex: yes. Separable: by leaves. Metric: no. Cost: a sort.

    Args:
      weights: w, one number or one for each coordinate, of any sign.
      total: c, which the box must allow.
      lower: l, finite, one number or one for each coordinate.
      upper: u ≥ l, finite, likewise.
      tolerance: how far the bounds and the sum may be missed, relative to Σ |w_i| max(|l_i|, |u_i|).

    Raises:
      ValueError: if an argument is not numeric or not finite.

    Source: Pardalos & Kovoor 1990 (the continuous quadratic knapsack problem).

    >>> jax.jit(box_section(jnp.array([1.0, 2.0]), 2.0).prox)(jnp.array([3.0, 0.75]), 1.0).tolist()
    [1.0, 0.5]
    """
    given = {"weights": weights, "total": total, "lower": lower, "upper": upper}
    _validation.tree_finite("box_section", weights=weights, total=total)
    _validation.tree_finite("box_section", lower=lower, upper=upper)

    def project(x, step_size, weights, total, lower, upper):
        fill = lambda a: jnp.broadcast_to(a, x.shape).ravel()
        moved = _least_distance.section(x.ravel(), fill(weights), total, fill(lower), fill(upper))
        return moved.reshape(x.shape)

    def violation(x, weights, total, lower, upper):
        size = jnp.sum(
            jnp.broadcast_to(jnp.abs(weights) * jnp.maximum(jnp.abs(lower), jnp.abs(upper)), x.shape)
        )
        off = jnp.abs(jnp.sum(weights * x) - total) / jnp.maximum(size, 1e-30)
        bounds = jnp.maximum(lower - x, x - upper) / jnp.maximum(upper - lower, 1e-30)
        return jnp.maximum(off, jnp.max(bounds))

    parameters = {key: (numbers, _slots.coordinates) for key, numbers in given.items()}
    parameters["total"] = total, _slots.one_number
    made = _indicator.constraint(
        "box_section", violation, _indicator.keep_inside(violation, project), parameters, tolerance
    )
    return made.described("box_section", **given, tolerance=tolerance)


def _polyhedron(name, matrix, offset, equal, tolerance):
    _validation.tree_finite(name, matrix=matrix, offset=offset)
    for leaf in jax.tree.leaves(matrix):
        if np.ndim(leaf) != 2:
            raise _validation.invalid("matrix.shape", np.shape(leaf), "[m, n]", "", name)
    leaves = jax.tree.leaves(matrix)

    def slot(path, leaf):
        size = math.prod(leaf.shape)
        fits = [np.shape(a) for a in leaves if np.shape(a)[1] == size]
        if not fits:
            shapes = ", ".join(str(np.shape(a)) for a in leaves)
            expected = f"[m, {size}] for the leaf at {_trees.place(path)}"
            raise _validation.invalid("matrix.shape", _validation.Verbatim(shapes), expected, "", name)
        return fits[0]

    def project(x, step_size, matrix, offset):
        moved = _least_distance.polyhedron(x.ravel(), matrix, offset, equal(matrix))
        return moved.reshape(x.shape)

    def violation(x, matrix, offset):
        over = jnp.matmul(matrix, x.ravel(), precision=jax.lax.Precision.HIGHEST) - offset
        size = jnp.matmul(jnp.abs(matrix), jnp.abs(x.ravel())) + jnp.abs(offset)
        over = jnp.where(equal(matrix), jnp.abs(over), over)
        return jnp.max(over / jnp.maximum(size, 1e-30), initial=0.0)

    rows = lambda path, leaf: slot(path, leaf)[:1]
    parameters = {"matrix": (matrix, slot), "offset": (offset, rows)}
    project = _indicator.keep_inside(violation, project)
    return _indicator.constraint(name, violation, project, parameters, tolerance)
