"""Penalties on the singular values of matrices; shared arguments as in `proxlm.penalties`."""

import math

from proxlm import _validation
from proxlm.penalties import base
from proxlm.penalties.coordinatewise import convex, powers
from proxlm.penalties.singular_values import _functions, _matrices

__all__ = ["nuclear", "rank", "schatten", "spectral", "spectral_norm"]

POWERS = {1: convex.l1, 1 / 2: powers.l_half, 2 / 3: powers.l_two_thirds}


def spectral(
    penalty: base.Penalty, rows: _matrices.Axis = -2, columns: _matrices.Axis = -1, method: str = "svd"
) -> base.Penalty:
    """Makes a penalty on matrices of one on vectors: g(X) = f(σ(X)).

    prox_tg(X) = U diag(prox_tf(σ)) Vᵀ, where X = U diag(σ) Vᵀ. A leaf is a stack of matrices: rows
    and columns name the axes that make one of them, together where they are several, and the
    other axes count them. A kernel of attention heads [layers, inputs, heads, size] is a matrix a
    layer with rows=1, columns=(2, 3), and one a head with rows=1, columns=3.

    There are three routes. "svd" is accurate to rounding and works for every f. The others compute
    X V diag(h(σ)/σ) Vᵀ, h(σ) the prox on σ, and want 0 ≤ h(σ) ≤ σ, as every convex f gives. "qr"
    takes the SVD of the triangular factor only: as accurate, and with many more rows than columns
    (or the reverse) twice as fast. "gram" takes V from the eigenvectors of XᵀX, which squares the
    condition number: directions with σ below √ε σ_max, ε the rounding, are told apart no more, and
    the result errs by up to √ε σ_max (3e-4 σ_max in float32). It is as good as the others if h
    sets to 0 what is below a few per cent of σ_max, or treats all of that alike. `value` goes by the
    SVD. On a GPU "gram" is both faster and better: with 1024 x 512 random numbers in float32 and a
    threshold of 0.2 σ_max, 6 ms and an error of 1e-6 of the result on an H100, where JAX's SVD
    takes 21 ms and errs by 2e-4 (jax 0.11.2, n=3). Derivatives are finite and exact at repeated
    and at zero singular values, where those through jnp.linalg.svd are NaN.

    A matrix with NaN or infinity becomes NaN, alone. The rank of a result is the number of nonzero
    h(σ), up to rounding: in float32, count singular values above 1e-5 of the largest.

    Args:
      penalty: f, on an array [q]; the same for permuted numbers and for changed signs. Its own
        numbers may be traced.
      method: "svd", "qr" or "gram".

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: as f. Separable: no. Metric: no. Cost: an SVD a matrix, O(m n min(m, n)).

    Source: Lewis 1995 (unitarily invariant functions); Parikh & Boyd 2014, section 6.7.

    >>> import jax.numpy as jnp
    >>> nuclear_norm = spectral(convex.l1(1.0))
    >>> x = jnp.array([[0.0, 3.0], [-0.5, 0.0]])
    >>> nuclear_norm.prox(x, 1.0).tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    >>> float(nuclear_norm.value(x))
    3.5
    """
    base.require_penalty("spectral", penalty=penalty)
    made = _matrices.matrixwise("spectral", lambda: penalty, {}, rows, columns, method)
    return made.described("spectral", penalty, rows=rows, columns=columns, method=method)


def nuclear(
    strength: base.Strength = 1.0,
    rows: _matrices.Axis = -2,
    columns: _matrices.Axis = -1,
    method: str = "svd",
) -> base.Penalty:
    """Nuclear norm, the sum of singular values: g(X) = λ Σ_i σ_i(X).

    prox_tg shortens each singular value by t λ, to 0 if it is less: the rank falls. It has no residual, which
    would cost a second SVD: solvers measure their error by the subgradient that the prox took.

    Args:
      method: with "gram" the result errs by about min(t λ, ε σ_max²/(t λ)), its derivative by
        min(1, ε σ_max²/(t λ)²) of its size.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: yes. Separable: no. Metric: no. Cost: an SVD a matrix.

    Source: Cai, Candès & Shen 2010 (singular value thresholding).

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[0.0, 3.0], [-0.5, 0.0]])
    >>> jax.jit(nuclear(0.5).prox)(x, 2.0).tolist()
    [[0.0, 2.0], [0.0, 0.0]]
    >>> float(nuclear(2.0).value(x))
    7.0
    """
    return _of_strength("nuclear", convex.l1, strength, rows, columns, method)


def spectral_norm(
    strength: base.Strength = 1.0,
    rows: _matrices.Axis = -2,
    columns: _matrices.Axis = -1,
    method: str = "svd",
) -> base.Penalty:
    """Largest singular value: g(X) = λ σ_max(X).

    prox_tg cuts the singular values off at the level θ where what is cut, Σ_i max(σ_i - θ, 0), is
    t λ; all become 0 where their sum is not more than t λ. That is X less its projection on the
    ball of nuclear norm t λ.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: yes. Separable: no. Metric: no. Cost: an SVD a matrix.

    Source: Parikh & Boyd 2014, sections 6.5.2 and 6.7.2.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0, 3.0], [-2.0, 0.0]])
    >>> spectral_norm(2.0).prox(x, 1.0).tolist()
    [[0.0, 1.5], [-1.5, 0.0]]
    >>> float(spectral_norm(2.0).value(x))
    6.0
    """
    return _of_strength("spectral_norm", _functions.largest, strength, rows, columns, method)


def rank(
    strength: base.Strength = 1.0,
    rows: _matrices.Axis = -2,
    columns: _matrices.Axis = -1,
    method: str = "svd",
    tolerance: float | None = None,
) -> base.Penalty:
    """Rank of a matrix: g(X) = λ · #{i : σ_i(X) ≠ 0}.

    prox_tg keeps the singular values above √(2 t λ) as they are and sets the others to 0.

    Args:
      method: "gram" wants √(2 t λ) well above 3e-4 σ_max in float32.
      tolerance: for `value`, singular values up to this times σ_max count as 0.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: no. Separable: no. Metric: no. Cost: an SVD a matrix.

    Source: Eckart & Young 1936; the threshold is that of l0 on σ.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0, 3.0], [-0.5, 0.0]])
    >>> rank(1.0).prox(x, 2.0).tolist()
    [[0.0, 3.0], [0.0, 0.0]]
    >>> float(rank(1.5).value(x))
    3.0
    """
    _validation.tree_at_least(0, "rank", strength=strength)

    def make(tolerance):
        parameters = {"strength": strength, "tolerance": tolerance}
        return _matrices.matrixwise("rank", _functions.count, parameters, rows, columns, method)

    settings = {"rows": rows, "columns": columns, "method": method, "tolerance": tolerance}
    return _matrices.tolerant("rank", make, tolerance).described("rank", strength=strength, **settings)


def schatten(
    strength: base.Strength = 1.0,
    p: float = 1,
    rows: _matrices.Axis = -2,
    columns: _matrices.Axis = -1,
    method: str = "svd",
) -> base.Penalty:
    """Power of a Schatten norm: g(X) = λ Σ_i σ_i(X)ᵖ for p ≤ 1.

    prox_tg is that of Σ |σ_i|ᵖ on the singular values: p < 1 sets small ones to 0 and takes less
    from large ones than the nuclear norm does. p=2 is ½ λ Σ_i σ_i², that is `squared_l2`,
    without an SVD; p=∞ is `spectral_norm`.

    Args:
      p: 1/2, 2/3, 1 (the nuclear norm), 2 or math.inf.

    Raises:
      ValueError: if an argument is invalid; and, on use, if a leaf does not have these axes.

    Convex: for p ≥ 1. Separable: for p = 2. Metric: for p = 2. Cost: an SVD a matrix, but p = 2.

    Source: Nie, Huang & Ding 2012 (p < 1); Xu et al. 2012 for the half on σ.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[0.0, 3.0], [-0.5, 0.0]])
    >>> [float(schatten(2.0, p).value(x)) for p in (1, 2, math.inf)]
    [7.0, 9.25, 6.0]
    >>> jax.jit(schatten(2.0, 1 / 2).prox)(jnp.array([[0.0, 4.25], [-0.5, 0.0]]), 0.5).tolist()
    [[0.0, 4.0], [0.0, 0.0]]
    """
    if p == 2:
        return convex.squared_l2(strength).described("schatten", strength=strength, p=p)
    if p != math.inf and p not in POWERS:
        raise _validation.invalid("p", p, f"one of {[*POWERS, 2, math.inf]}", "", "schatten")
    vector = _functions.largest if p == math.inf else POWERS[p]
    made = _of_strength("schatten", vector, strength, rows, columns, method)
    return made.described("schatten", strength=strength, p=p, rows=rows, columns=columns, method=method)


def _of_strength(name, vector, strength, rows, columns, method):
    _validation.tree_at_least(0, name, strength=strength)
    return _matrices.matrixwise(name, vector, {"strength": strength}, rows, columns, method)
