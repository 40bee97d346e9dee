"""Sets of matrices given by their singular values; shared arguments as in `proxlm.penalties`.

A prox here is the projection, whatever the step size. A matrix comes back bit for bit where no
singular value would move by more than the rounding of an SVD, so that projecting twice is projecting
once: 16 ε σ_max, and 4 ε σ_max for `rank_ball`, where ε is the rounding of the leaf's dtype.
"""

import jax.numpy as jnp

from proxlm import _validation
from proxlm.penalties import _indicator, base
from proxlm.penalties.singular_values import _functions, _matrices

__all__ = ["nuclear_ball", "rank_ball", "spectral_ball", "stiefel"]

# Errors of a singular value that an SVD makes, in units of ε σ_max; those that are cut off err by less.
ROUNDING, ROUNDING_OF_RANK = 16.0, 4.0


def nuclear_ball(
    radius: base.Strength = 1.0,
    rows: _matrices.Axis = -2,
    columns: _matrices.Axis = -1,
    method: str = "svd",
    tolerance: float | None = None,
) -> base.Penalty:
    """Ball of the nuclear norm: g(X) = 0 where Σ_i σ_i(X) ≤ r, else +∞.

    The projection shortens each singular value by the same θ, to 0 if it is less, such that they
    add up to r.

    Args:
      tolerance: for `value`, how far beyond r the sum may be, as a fraction of r.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: yes. Separable: no. Metric: no. Cost: an SVD a matrix.

    Source: Duchi et al. 2008 for σ.

    >>> x = jnp.array([[0.0, 3.0], [-2.0, 0.0]])
    >>> nuclear_ball(2.0).prox(x, 1.0).tolist()
    [[0.0, 1.5], [-0.5, 0.0]]
    >>> [float(nuclear_ball(r).value(x)) for r in (2.0, 5.0)]
    [inf, 0.0]
    """

    def vector(radius, tolerance):
        def project(values, step_size):
            del step_size
            cut = _functions.level(values, radius)
            return jnp.where(values > cut, values - cut, 0.0)

        far = lambda values: jnp.sum(values) / radius - 1.0
        return base.Penalty(lambda values: _indicator.indicator(far(values), tolerance), project)

    _validation.tree_positive("nuclear_ball", radius=radius)
    return _set("nuclear_ball", vector, {"radius": radius}, (rows, columns), method, tolerance)


def spectral_ball(
    radius: base.Strength = 1.0,
    rows: _matrices.Axis = -2,
    columns: _matrices.Axis = -1,
    method: str = "svd",
    tolerance: float | None = None,
) -> base.Penalty:
    """Ball of the spectral norm: g(X) = 0 where σ_max(X) ≤ r, else +∞.

    The projection replaces singular values above r by r. A layer with such a kernel stretches no
    input by more than r.

    Args:
      tolerance: for `value`, how far beyond r σ_max may be, as a fraction of r.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: yes. Separable: no. Metric: no. Cost: an SVD a matrix.

    Source: Parikh & Boyd 2014, section 6.7.

    >>> x = jnp.array([[0.0, 3.0], [-0.5, 0.0]])
    >>> spectral_ball(1.0).prox(x, 1.0).tolist()
    [[0.0, 1.0], [-0.5, 0.0]]
    >>> [float(spectral_ball(r).value(x)) for r in (1.0, 3.0)]
    [inf, 0.0]
    """

    def vector(radius, tolerance):
        far = lambda values: jnp.max(values) / radius - 1.0
        return base.Penalty(
            lambda values: _indicator.indicator(far(values), tolerance),
            lambda values, step_size: jnp.where(values > radius, radius, values),
        )

    _validation.tree_positive("spectral_ball", radius=radius)
    return _set("spectral_ball", vector, {"radius": radius}, (rows, columns), method, tolerance)


def rank_ball(
    r: int,
    rows: _matrices.Axis = -2,
    columns: _matrices.Axis = -1,
    method: str = "svd",
    tolerance: float | None = None,
) -> base.Penalty:
    """Matrices of rank at most r: g(X) = 0 where σ_{r+1}(X) = 0, else +∞.

    The projection keeps the r largest singular values and sets the others to 0. Where σ_r = σ_{r+1}
    there are several nearest matrices, and one of them is returned. In float32 the distance from X is the
    least up to 1e-7 σ_max, and σ_{r+1} of the result is 0 up to 1e-7 σ_max.

    Args:
      r: the rank, a Python integer ≥ 0.
      method: "gram" wants σ_r well above 3e-4 σ_max in float32.
      tolerance: for `value`, how large σ_{r+1} may be, as a fraction of σ_max.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: no. Separable: no. Metric: no. Cost: an SVD a matrix.

    Source: Eckart & Young 1936.

    >>> x = jnp.array([[0.0, 3.0], [-2.0, 0.0]])
    >>> rank_ball(1).prox(x, 1.0).tolist()
    [[0.0, 3.0], [0.0, 0.0]]
    >>> [float(rank_ball(r).value(x)) for r in (1, 2)]
    [inf, 0.0]
    """
    r = _validation.to_int(0, "rank_ball", r=r)

    def value(values, tolerance):
        # A zero matrix is of rank 0; NaN stays NaN.
        largest = jnp.max(values)
        rest = jnp.sum(jnp.where(_ranks(values) == r, values, 0.0))
        return _indicator.indicator(rest / jnp.where(largest == 0, 1.0, largest), tolerance)

    def project(values, step_size):
        del step_size
        return jnp.where(_ranks(values) < r, values, 0.0)

    vector = lambda tolerance: base.Penalty(lambda values: value(values, tolerance), project)
    made = _set("rank_ball", vector, {}, (rows, columns), method, tolerance, ROUNDING_OF_RANK)
    return made.described("rank_ball", r=r, rows=rows, columns=columns, method=method, tolerance=tolerance)


def stiefel(
    rows: _matrices.Axis = -2, columns: _matrices.Axis = -1, tolerance: float | None = None
) -> base.Penalty:
    """Matrices with orthonormal columns, or rows where those are fewer: g(X) = 0 there, else +∞.

    The projection is U Vᵀ, the orthogonal factor of the polar decomposition: all singular values
    become 1. Of a matrix without full rank it is one of several nearest ones. In float32 the singular
    values of the result are 1 up to 2e-6, and the result itself is right up to ε σ_max/σ_min.

    Args:
      tolerance: for `value`, how far from 1 a singular value may be.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: no. Separable: no. Metric: no. Cost: an SVD a matrix.

    Source: Fan & Hoffman 1955; Higham 1986.

    >>> x = jnp.array([[0.0, 3.0], [-2.0, 0.0]])
    >>> stiefel().prox(x, 1.0).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    >>> [float(stiefel().value(y)) for y in (x, jnp.eye(3, 2))]
    [inf, 0.0]
    """
    far = lambda values: jnp.max(jnp.abs(values - 1.0))
    vector = lambda tolerance: base.Penalty(
        lambda values: _indicator.indicator(far(values), tolerance),
        lambda values, step_size: jnp.ones_like(values),
    )
    made = _set("stiefel", vector, {}, (rows, columns), "svd", tolerance)
    return made.described("stiefel", rows=rows, columns=columns, tolerance=tolerance)


def _ranks(values):
    """The place of each number in descending order; ties get different places."""
    return jnp.argsort(jnp.argsort(-values))


def _set(name, vector, parameters, axes, method, tolerance, rounding=ROUNDING):
    rows, columns = axes

    def make(tolerance):
        extended = {**parameters, "tolerance": tolerance}
        return _matrices.matrixwise(name, vector, extended, rows, columns, method, rounding)

    settings = {"rows": rows, "columns": columns, "method": method, "tolerance": tolerance}
    return _matrices.tolerant(name, make, tolerance).described(name, **parameters, **settings)
