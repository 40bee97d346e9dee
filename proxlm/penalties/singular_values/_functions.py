"""Functions of the singular values of one matrix, with derivatives that stay finite.

X = U diag(σ) Vᵀ ↦ U diag(h(σ)) Vᵀ is differentiable wherever h is, even where U and V are not:
at repeated singular values and at zeros. So the factors are never differentiated here. The
derivative of the whole map is written down by divided differences of h, whose limits are taken
where singular values meet (Lewis & Sendov 2005, Twice differentiable spectral functions; Ding,
Sun, Sun & Toh 2018, Spectral operators of matrices).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from proxlm.penalties import base


class Factors(NamedTuple):
    """A decomposition of a matrix [p, q] with p ≥ q: U [p, q], σ [q], V [q, q].

    U is None where a route does not form it. That of "gram" is X V diag(1/σ), whose columns have
    length 1 but are not orthogonal where σ is all rounding.

    >>> Factors(None, jnp.ones(2), jnp.eye(2)).left is None
    True
    """

    left: jax.Array | None
    values: jax.Array
    right: jax.Array


def singular_values(x: jax.Array) -> jax.Array:
    """Gives σ of a matrix [m, n], descending, [min(m, n)]; all NaN where x is not finite.

    The derivative is u_iᵀ dX v_i, so that of a symmetric function of σ is right at ties as well.

    >>> singular_values(jnp.array([[0.0, 3.0, 0.0], [-4.0, 0.0, 0.0]])).tolist()
    [4.0, 3.0]
    """
    finite = jnp.all(jnp.isfinite(x))
    values = jnp.linalg.svd(jnp.where(finite, x, 0.0), compute_uv=False)
    return jnp.where(finite, values, jnp.nan)


def apply(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, method: str = "svd", slack: float = 0.0
) -> jax.Array:
    """Applies h to the singular values of a matrix: U diag(σ) Vᵀ ↦ U diag(h(σ)) Vᵀ.

    Where h moves no singular value the bits of x come back, and where all become 0 the result is
    +0 throughout. A matrix with NaN or infinity becomes NaN. The derivative is that of the whole
    map; h may close over traced numbers, whose derivatives are taken too.

    Args:
      function: h, from σ [q] to as many numbers; the same for permuted σ, permuted. Differentiable forwards.
      x: the matrix [m, n], in at least float32, not empty.
      slack: x comes back as it is if no singular value moves by more than slack · ε σ_max, ε the rounding of
        the dtype of x.

    >>> apply(lambda s: jnp.minimum(s, 1.0), jnp.array([[0.0, 3.0], [-0.5, 0.0]])).tolist()
    [[0.0, 1.0], [-0.5, 0.0]]
    """
    if x.shape[0] < x.shape[1]:
        return apply(function, x.T, method, slack).T
    finite = jnp.all(jnp.isfinite(x))
    held = jax.lax.stop_gradient(jnp.where(finite, x, 0.0))
    factors = ROUTES[method](held)
    values = factors.values
    moved = function(values)
    computed = _compose(held, factors, moved)
    computed = base.keep_bits(computed == 0, jnp.zeros_like(x), computed)
    rounding = jnp.finfo(x.dtype).eps * jnp.max(values)
    unmoved = jnp.max(jnp.abs(moved - values)) <= slack * rounding
    computed = base.keep_bits(unmoved, x, computed)
    slopes = jax.lax.stop_gradient(jax.jacfwd(function)(values))
    return jnp.where(finite, _with_tangent(computed, x, factors, moved, slopes), jnp.nan)


def level(values: jax.Array, excess: chex.Numeric) -> jax.Array:
    """Gives θ ≥ 0 with Σ_i max(σ_i - θ, 0) = s; 0 where Σ_i σ_i ≤ s.

    θ is the largest (σ_1 + ... + σ_k - s)/k of descending σ, so no search is needed.

    >>> float(level(jnp.array([2.0, 3.0, 0.5]), 2.0))
    1.5
    """
    descending = jnp.sort(values, descending=True)
    counts = jnp.arange(1, values.size + 1, dtype=values.dtype)
    return jnp.maximum(jnp.max((jnp.cumsum(descending) - excess) / counts), 0.0)


def largest(strength: chex.Numeric) -> base.Penalty:
    """The largest of σ, times λ, as a penalty on σ.

    >>> largest(2.0).prox(jnp.array([3.0, 2.0]), 1.0).tolist()
    [1.5, 1.5]
    """

    def prox(values, step_size):
        cut = level(values, base.pull(step_size, strength))
        return jnp.where(values > cut, cut, values)

    return base.Penalty(lambda values: base.times(strength, jnp.max(values)), prox)


def count(strength: chex.Numeric, tolerance: chex.Numeric) -> base.Penalty:
    """The number of σ above a share of the largest, times λ, as a penalty on σ.

    >>> float(count(1.5, 1e-5).value(jnp.array([3.0, 2.0, 1e-7])))
    3.0
    """

    def value(values):
        largest = jnp.max(values)
        number = jnp.sum(values > tolerance * largest, dtype=values.dtype)
        return base.times(strength, jnp.where(jnp.isnan(largest), jnp.nan, number))

    def prox(values, step_size):
        threshold = jnp.sqrt(jax.lax.stop_gradient(2.0 * base.pull(step_size, strength)))
        return jnp.where(values > threshold, values, 0.0)

    return base.Penalty(value, prox)


def _svd(x):
    left, values, right = jnp.linalg.svd(x, full_matrices=False)
    return Factors(left, _lift(values), right.T)


def _qr(x):
    # R has the σ and V of x. Neither Q nor U is formed, which for a tall x is most of the work.
    return _svd(jnp.linalg.qr(x, mode="r"))._replace(left=None)


def _gram(x):
    # A power of two changes no bit, and keeps squares away from overflow.
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x)))
    scale = jnp.ldexp(jnp.ones((), x.dtype), jnp.clip(-exponent, -100, 100))
    _, right = jnp.linalg.eigh(_dot((scale * x).T, scale * x), symmetrize_input=False)
    # |X v| is σ to the second order in the error of v, and the root of an eigenvalue is not: at
    # small σ it is all rounding.
    left, values = _unit_columns(_dot(scale * x, right))
    return Factors(left, _lift(values / scale), right)


ROUTES = {"svd": _svd, "qr": _qr, "gram": _gram}


def _lift(values):
    # The least positive number that keeps all its digits stands for 0: h(σ)/σ is then its own
    # limit, and h needs no derivative at 0.
    info = jnp.finfo(values.dtype)
    return jnp.maximum(values, info.tiny / info.eps)


def _unit_columns(image):
    norms = jnp.sqrt(jnp.sum(jnp.square(image), axis=0))
    return image / jnp.where(norms > 0, norms, 1.0)[None, :], norms


def _compose(x, factors, moved):
    right = factors.right
    if factors.left is not None:
        return _dot(factors.left * moved[None, :], right.T)
    return _dot(x, _dot(right * (moved / factors.values)[None, :], right.T))


@jax.custom_jvp
def _with_tangent(computed, x, factors, moved, slopes):
    """Gives `computed`, whose tangent is its own plus the one that the tangent of x brings."""
    del x, factors, moved, slopes
    return computed


@_with_tangent.defjvp
def _with_tangent_jvp(primals, tangents):
    computed, x, factors, moved, slopes = primals
    left, values, right = factors
    if left is None:
        left, _ = _unit_columns(_dot(jnp.where(jnp.all(jnp.isfinite(x)), x, 0.0), right))
    # Where σ_i is all rounding, so is u_i. It does no harm: row i of the core is then 0, and what
    # leaves the span of the other u comes by the last term.
    along = _dot(tangents[1], right)
    inside = _dot(left.T, along)
    stretch = (moved / values)[None, :]
    core = _differential(inside, values, moved, slopes) - inside * stretch
    return computed, tangents[0] + _dot(_dot(left, core) + along * stretch, right.T)


def _differential(inside, values, moved, slopes):
    """The derivative of h at diag(σ) along Uᵀ dX V, [q, q]."""
    symmetric, skew = 0.5 * (inside + inside.T), 0.5 * (inside - inside.T)
    gap = values[:, None] - values[None, :]
    larger = jnp.maximum(values[:, None], values[None, :])
    # Rounding errs by ε σ/gap, the limit by gap/σ: at √ε both do equally well.
    close = jnp.abs(gap) <= jnp.sqrt(jnp.finfo(values.dtype).eps) * larger
    own = jnp.diagonal(slopes)
    limit = 0.5 * (own[:, None] + own[None, :] - slopes - slopes.T)
    quotient = (moved[:, None] - moved[None, :]) / jnp.where(close, 1.0, gap)
    rise = jnp.where(close, limit, quotient)
    turn = (moved[:, None] + moved[None, :]) / (values[:, None] + values[None, :])
    # On the diagonal rise is 0: there the σ themselves change.
    along = _dot(slopes, jnp.diagonal(inside))
    return rise * symmetric + turn * skew + jnp.diag(along)


def _dot(a, b):
    # Accelerators would otherwise round the factors to fewer bits.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
