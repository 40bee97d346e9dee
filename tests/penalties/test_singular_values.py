"""Penalties on singular values: laws, routes, and derivatives where the SVD has none."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm.penalties import base
from proxlm.penalties.coordinatewise import convex as norms
from proxlm.penalties.groups import penalties as groups
from proxlm.penalties.singular_values import _functions, sets
from proxlm.penalties.singular_values import norms as singular_norms
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, Case, compiled, in_numpy


def on_values(function):
    """The same on matrices, in NumPy and float64: h ↦ (X ↦ U h(σ) Vᵀ)."""

    def apply(x, *numbers):
        left, values, right = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
        return (left * function(values, *numbers)) @ right

    return apply


def sum_ball(values, radius):
    """Projection of positive numbers on Σ ≤ r, by bisection."""
    low, high = 0.0, values.max()
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.maximum(values - middle, 0).sum() > radius:
            low = middle
        else:
            high = middle
    return values if values.sum() <= radius else np.maximum(values - high, 0)


def half_thresholds(values, strength):
    """The best of zero and the roots w² of w³ - |x| w + λ/2, as NumPy finds them."""

    def best(value):
        roots = np.roots([1.0, 0.0, -value, 0.5 * strength])
        roots = roots[np.isreal(roots)].real
        points = np.concatenate([[0.0], roots[roots > 0] ** 2])
        return points[np.argmin(0.5 * (points - value) ** 2 + strength * np.sqrt(points))]

    return np.array([best(value) for value in values])


soft = on_values(lambda values, t: np.maximum(values - t, 0))
clip = on_values(np.minimum)
on_sum_ball = on_values(sum_ball)
off_sum_ball = on_values(lambda values, t: values - sum_ball(values, t))

CASES = {
    "nuclear": Case(singular_norms.nuclear, dual_prox=lambda y, s: clip(y, 0.7)),
    "nuclear_qr": Case(lambda s: singular_norms.nuclear(s, method="qr"), dual_prox=lambda y, s: clip(y, 0.7)),
    "nuclear_gram": Case(
        lambda s: singular_norms.nuclear(s, method="gram"), dual_prox=lambda y, s: clip(y, 0.7)
    ),
    "nuclear_transposed": Case(
        lambda s: singular_norms.nuclear(s, rows=1, columns=0), dual_prox=lambda y, s: clip(y, 0.7)
    ),
    "nuclear_of_each_column": Case(lambda s: singular_norms.nuclear(s, rows=0, columns=())),
    "spectral_norm": Case(singular_norms.spectral_norm, dual_prox=lambda y, s: on_sum_ball(y, 0.7)),
    "spectral_of_l1": Case(
        lambda s: singular_norms.spectral(norms.l1(s)), dual_prox=lambda y, s: clip(y, 0.7)
    ),
    "schatten_two": Case(
        lambda s: singular_norms.schatten(s, p=2), metric=True, pointwise=lambda z, s: 0.5 * s * z**2
    ),
    "schatten_half": Case(lambda s: singular_norms.schatten(s, p=1 / 2), convex=False),
    "schatten_two_thirds": Case(lambda s: singular_norms.schatten(s, p=2 / 3), convex=False),
    "rank": Case(singular_norms.rank, convex=False),
    "nuclear_ball": Case(
        lambda s: sets.nuclear_ball(1.5), is_set=True, dual_prox=lambda y, s: off_sum_ball(y, 1.5 * s)
    ),
    "spectral_ball": Case(
        lambda s: sets.spectral_ball(0.9), is_set=True, dual_prox=lambda y, s: soft(y, 0.9 * s)
    ),
    "rank_ball": Case(lambda s: sets.rank_ball(2), convex=False, is_set=True),
    "stiefel": Case(lambda s: sets.stiefel(), convex=False, is_set=True),
}
SHRINKING = {
    "nuclear": (lambda method: singular_norms.nuclear(0.7, method=method), lambda x: soft(x, 0.35)),
    "spectral_norm": (
        lambda method: singular_norms.spectral_norm(2.0, method=method),
        lambda x: off_sum_ball(x, 1.0),
    ),
    "schatten_half": (
        lambda method: singular_norms.schatten(0.7, 1 / 2, method=method),
        on_values(lambda values: half_thresholds(values, 0.35)),
    ),
    "rank": (
        lambda method: singular_norms.rank(1.0, method=method),
        on_values(lambda values: np.where(values > 1.0, values, 0.0)),
    ),
    "nuclear_ball": (lambda method: sets.nuclear_ball(1.5, method=method), lambda x: on_sum_ball(x, 1.5)),
    "spectral_ball": (lambda method: sets.spectral_ball(0.9, method=method), lambda x: clip(x, 0.9)),
    "rank_ball": (
        lambda method: sets.rank_ball(2, method=method),
        on_values(lambda values: np.where(np.arange(len(values)) < 2, values, 0.0)),
    ),
}
STRENGTHS = {"nuclear": singular_norms.nuclear, "spectral_norm": singular_norms.spectral_norm}

# A norm, one that is no sum over singular values, a nonconvex one, and sets that scale, cut and complete.
KINDS = ("nuclear", "spectral_norm", "schatten_half", "nuclear_ball", "rank_ball", "stiefel")
marks = lambda name: [] if name in KINDS else [pytest.mark.slow]
every_case = pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in CASES])
slow_route = lambda method: pytest.param(method, marks=[pytest.mark.slow] if method == "qr" else [])
every_route = pytest.mark.parametrize("method", [slow_route(name) for name in _functions.ROUTES])


def bits(x):
    return np.asarray(x).view(np.uint32)


def orthogonal(seed, size):
    return np.linalg.qr(normal(seed, (size, size)))[0]


def of_values(seed, shape, values):
    """A matrix with these singular values, in the precision that is on."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in shape)
    return np.asarray((left[:, : len(values)] * values) @ right[: len(values)], jnp.result_type(float))


def corners():
    """Matrices at which jnp.linalg.svd has no derivative, and one at which it has, [5, *SHAPE]."""
    spectra = [(2.0, 1.1, 0.3), (2.0, 2.0, 1.0), (2.0, 0.0, 0.0), (2.0, 2.0, 0.0), (0.0, 0.0, 0.0)]
    return np.stack([of_values(i, SHAPE, np.array(s)) for i, s in enumerate(spectra)])


def differences(function, x, step=1e-6):
    """The Jacobian by central differences, [x.size, x.size]."""
    moves = step * np.eye(x.size).reshape(-1, *x.shape)
    ahead, behind = jax.vmap(function)(x[None] + moves), jax.vmap(function)(x[None] - moves)
    return ((ahead - behind) / (2 * step)).reshape(x.size, -1).T


marks = lambda name, method, shape: (
    [] if shape == SHAPE and (method == "svd" or name == "nuclear") else [pytest.mark.slow]
)
ROUTES = [(n, m, s) for n in SHRINKING for m in _functions.ROUTES for s in (SHAPE, SHAPE[::-1])]


@pytest.mark.parametrize(("name", "method", "shape"), [pytest.param(*r, marks=marks(*r)) for r in ROUTES])
def test_every_route_agrees_with_numpy(name, method, shape):
    make, expected = SHRINKING[name]
    x = normal(0, shape)
    np.testing.assert_allclose(compiled(make(method)).prox(x, 0.5), expected(x), atol=3e-6)


@in_numpy
def values_of(x):
    """Of the norms at strength 0.5, of a wide matrix and of one of its rank-one parts."""
    norms = singular_norms
    on_x = [norms.nuclear, norms.spectral_norm, lambda s: norms.schatten(s, math.inf), norms.rank]
    on_x = [make(0.5).value(x) for make in (*on_x, lambda s: norms.schatten(s, 2))]
    return [*on_x, norms.rank(0.5).value(x[:, :1] * x[:1])]


def test_values_are_those_of_numpy():
    x = normal(1, (3, 5))
    values = np.linalg.svd(x, compute_uv=False)
    expected = [
        0.5 * values.sum(),
        0.5 * values[0],
        0.5 * values[0],
        1.5,
        0.25 * np.square(values).sum(),
        0.5,
    ]
    np.testing.assert_allclose(values_of(x), expected, rtol=1e-6)


@pytest.mark.parametrize("pair", [("nuclear", "spectral_ball"), ("spectral_norm", "nuclear_ball")])
def test_norms_and_balls_of_their_duals_add_up_to_the_matrix(pair):
    norm = compiled(getattr(singular_norms, pair[0])(0.7))
    ball = compiled(getattr(sets, pair[1])(0.7))
    for step_size in (0.2, 1.5):
        x = 2.0 * normal(2, SHAPE)
        both = norm.prox(x, step_size) + step_size * ball.prox(x / step_size, 1.0)
        np.testing.assert_allclose(both, x, atol=3e-6)


@every_case
def test_rotations_pass_through(name):
    if name == "nuclear_of_each_column":
        pytest.skip("its columns are matrices of their own, which a rotation on the right mixes")
    penalty, x = compiled(CASES[name].make(0.7)), normal(3, SHAPE)
    left, right = orthogonal(4, 4), orthogonal(5, 3)
    turned = penalty.prox(left @ x @ right, 0.5)
    np.testing.assert_allclose(turned, left @ penalty.prox(x, 0.5) @ right, atol=5e-6)
    spoilt = np.where(np.eye(4, 3, -1) * [[0, 1, 0]], np.float32(np.nan), x)
    assert np.isnan(penalty.value(spoilt))


@pytest.mark.parametrize("vector", [norms.l1(0.7), groups.group_lasso(0.7)])
def test_on_a_diagonal_matrix_it_is_the_penalty_on_the_diagonal(vector):
    diagonal = np.array([-2.0, 0.2, 1.5], np.float32)
    spectral, vector = compiled(singular_norms.spectral(vector)), compiled(vector)
    moved = spectral.prox(np.diag(diagonal), 0.5)
    np.testing.assert_allclose(moved, np.diag(vector.prox(diagonal, 0.5)), atol=1e-6)
    value = spectral.value(np.diag(diagonal))
    assert value == pytest.approx(float(vector.value(diagonal)), rel=1e-6)


def test_the_squared_norm_needs_no_singular_values():
    x = normal(6, SHAPE)
    long_way = compiled(singular_norms.spectral(norms.squared_l2(0.7))).prox(x, 0.5)
    np.testing.assert_allclose(long_way, singular_norms.schatten(0.7, 2).prox(x, 0.5), atol=1e-6)
    assert "svd" not in str(jax.make_jaxpr(singular_norms.schatten(0.7, 2).prox)(x, 0.5))


def test_matrices_of_one_column_are_groups():
    x = normal(7, SHAPE)
    group_lasso = compiled(groups.group_lasso(0.7, axis=0, weight="none"))
    columns = compiled(singular_norms.nuclear(0.7, rows=0, columns=()))
    np.testing.assert_allclose(columns.prox(x, 0.5), group_lasso.prox(x, 0.5), atol=1e-6)
    assert columns.value(x) == pytest.approx(float(group_lasso.value(x)), rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "to_matrices", "shape"),
    [
        (1, (2, 3), "ldhk->ldhk", (2, 4, 6)),
        pytest.param((1, 2), -1, "ldhk->ldhk", (2, 8, 3), marks=pytest.mark.slow),
        ((2, -3), 3, "ldhk->lhdk", (2, 8, 3)),
        pytest.param(1, 3, "ldhk->lhdk", (4, 4, 3), marks=pytest.mark.slow),
        (-1, 0, "ldhk->dhkl", (8, 3, 2)),
        pytest.param((0, 1), (2, 3), "ldhk->ldhk", (1, 8, 6), marks=pytest.mark.slow),
    ],
)
def test_rows_and_columns_of_several_axes_are_a_reshape(rows, columns, to_matrices, shape):
    x = normal(8, (2, 4, 2, 3))
    penalty = compiled(singular_norms.nuclear(0.7, rows=rows, columns=columns))
    matrices = np.einsum(to_matrices, x).reshape(shape)
    plain = np.stack([soft(matrix, 0.35) for matrix in matrices])
    expected = plain.reshape(np.einsum(to_matrices, x).shape)
    back = "->".join(reversed(to_matrices.split("->")))
    np.testing.assert_allclose(penalty.prox(x, 0.5), np.einsum(back, expected), atol=2e-6)
    total = 0.7 * np.linalg.svd(matrices, compute_uv=False).sum()
    assert penalty.value(x) == pytest.approx(float(total), rel=1e-6)


def test_strengths_may_differ_between_matrices_and_leaves():
    x = {"a": normal(9, (2, *SHAPE)), "b": normal(10, SHAPE)}
    strength = {"a": np.float32([0.2, 1.4]).reshape(2, 1, 1), "b": 0.0}
    moved = compiled(singular_norms.nuclear(strength)).prox(x, 0.5)
    for i, number in enumerate((0.2, 1.4)):
        np.testing.assert_allclose(moved["a"][i], soft(x["a"][i], 0.5 * number), atol=2e-6)
    np.testing.assert_array_equal(moved["b"], x["b"])
    with pytest.raises(ValueError, match=r"strength at a must be of a shape .*\(2, 1, 1\), got shape \(2,\)"):
        singular_norms.nuclear({"a": jnp.ones(2), "b": 1.0}).prox(x, 0.5)


@every_route
def test_what_is_not_finite_stays_in_its_matrix(method, variant):
    x = normal(11, (3, *SHAPE))
    x[0, 1, 2], x[1, 0, 0] = np.nan, np.inf
    penalty = singular_norms.nuclear(0.7, method=method)

    def all_of(x):
        moved, pull = jax.vjp(lambda x: penalty.prox(x, 0.5), x)
        return moved, penalty.value(x), pull(jnp.ones_like(moved).at[:2].set(0.0))[0]

    moved, value, slope = jax.tree.map(np.asarray, variant(all_of)(x))
    assert np.all(np.isnan(moved[:2])) and np.isnan(value) and np.all(np.isfinite(slope))
    np.testing.assert_allclose(moved[2], soft(x[2], 0.35), atol=2e-6)


@every_route
def test_routes_keep_bits_and_zeros(method, variant):
    x = np.float32([1e-25, 1e-3, 1.0, 1e20])[:, None] * normal(13, SHAPE)
    make = lambda strength: singular_norms.nuclear(strength, method=method)
    prox = variant(lambda x, strength: make(strength).prox(x, 0.5))
    for matrix in (x, np.zeros(SHAPE, np.float32), -np.ones(SHAPE, np.float32)):
        np.testing.assert_array_equal(bits(prox(matrix, 0.0)), bits(matrix))
        np.testing.assert_array_equal(bits(prox(matrix, 1e30)), 0)
    thin = np.float32([[3.0], [-0.0], [-4.0]])
    np.testing.assert_array_equal(bits(prox(thin, 0.7))[1], 0)
    np.testing.assert_array_equal(bits(prox(thin.T, 0.7))[:, 1], 0)


@every_route
def test_routes_know_no_scale(method):
    x, prox = normal(15, SHAPE), jax.jit(lambda x, s: singular_norms.nuclear(s, method=method).prox(x, 0.5))
    for scale in np.float32([1e-12, 1e-6, 1e6, 1e12]):
        moved = prox(scale * x, 0.7 * scale)
        np.testing.assert_allclose(moved, scale * np.asarray(prox(x, 0.7)), atol=3e-6 * scale)


def test_the_gram_route_is_as_accurate_as_it_says():
    x = of_values(16, (96, 64), np.geomspace(1.0, 1e-6, 64)).astype(jnp.float32)
    routes = {m: compiled(singular_norms.nuclear(1.0, method=m)) for m in _functions.ROUTES}
    rounding = float(jnp.finfo(jnp.float32).eps)
    for threshold in (1e-1, 1e-2, 1e-4, 1e-6):
        expected = soft(x, threshold)
        error = {m: np.linalg.norm(route.prox(x, threshold) - expected, 2) for m, route in routes.items()}
        assert max(error["svd"], error["qr"]) < 2e-6
        assert error["gram"] < 2e-6 + 2 * min(threshold, rounding / threshold)


def test_the_gram_route_sees_small_singular_values_below_a_gap():
    values = np.concatenate([np.linspace(1.0, 0.5, 8), np.linspace(2e-4, 1e-5, 24)])
    x = of_values(17, (96, 32), values).astype(jnp.float32)
    moved = compiled(singular_norms.nuclear(3e-4, method="gram")).prox(x, 1.0)
    assert np.linalg.norm(moved - soft(x, 3e-4), 2) < 2e-6
    assert np.linalg.matrix_rank(moved, tol=1e-5) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("rank_ball", "stiefel")])
def test_jacobian_is_that_of_finite_differences_where_svd_has_none(name):
    with jax.enable_x64(True):
        x = corners()
        prox = lambda x: CASES[name].make(0.7).prox(x, 0.6)
        size = math.prod(SHAPE)
        jacobian = jax.jit(jax.vmap(jax.jacrev(prox)))(x).reshape(-1, size, size)
        expected = jax.jit(jax.vmap(lambda x: differences(prox, x)))(x)
        forwards = jax.jacfwd(prox)(x[3]).reshape(size, size)
        np.testing.assert_allclose(jacobian, expected, atol=2e-7)
        np.testing.assert_allclose(forwards, jacobian[3], atol=1e-12)
        np.testing.assert_allclose(jacobian, jacobian.transpose(0, 2, 1), atol=1e-9)
        if CASES[name].convex:
            spectrum = np.linalg.eigvalsh(jacobian)
            assert -1e-9 < spectrum.min() and spectrum.max() < 1 + 1e-9


@pytest.mark.parametrize(
    "shape", [(4, 3), *(pytest.param(s, marks=pytest.mark.slow) for s in [(3, 4), (3, 3)])]
)
def test_jacobian_of_the_polar_factor_is_that_of_finite_differences(shape):
    with jax.enable_x64(True):
        x = of_values(18, shape, np.array([2.0, 2.0, 0.5]))
        prox = lambda x: sets.stiefel().prox(x, 1.0)
        jacobian, expected = jax.jit(lambda x: (jax.jacfwd(prox)(x), differences(prox, x)))(x)
        np.testing.assert_allclose(jacobian.reshape(x.size, -1), expected, atol=1e-8)


def test_jacobian_of_the_best_low_rank_matrix_is_that_of_finite_differences():
    with jax.enable_x64(True):
        x = of_values(19, SHAPE, np.array([2.0, 1.0, 1.0 - 1e-3]))
        prox = lambda x: sets.rank_ball(1).prox(x, 1.0)
        jacobian, expected = jax.jit(lambda x: (jax.jacfwd(prox)(x), differences(prox, x)))(x)
        np.testing.assert_allclose(jacobian.reshape(x.size, -1), expected, atol=1e-8)


@every_route
def test_the_derivative_at_the_identity_is_known(method):
    # Through jnp.linalg.svd it is NaN, there and at rank 1.
    direction = normal(20, (3, 3))
    prox = lambda x: singular_norms.nuclear(0.5, method=method).prox(x, 0.5)
    slope = jax.jit(lambda x, v: jax.jvp(prox, (x,), (v,))[1])(np.eye(3, dtype=np.float32), direction)
    symmetric, skew = 0.5 * (direction + direction.T), 0.5 * (direction - direction.T)
    np.testing.assert_allclose(slope, symmetric + 0.75 * skew, atol=1e-5)
    outer = np.outer(normal(21, (3,)), normal(22, (3,)))
    x = np.stack([outer, np.zeros((3, 3), np.float32), np.float32(1e-25) * outer])
    slopes = lambda x, t: jax.jacrev(singular_norms.nuclear(0.5, method=method).prox)(x, t)
    slopes = jax.jit(jax.vmap(slopes, (0, None)))
    for step_size in (0.0, 0.5):
        assert np.all(np.isfinite(slopes(x, step_size)))


@every_route
def test_singular_values_that_tie_up_to_rounding_make_no_noise(method):
    x = np.stack([of_values(i, SHAPE, np.array([1.7, 1.7, 1.7])) for i in range(20)])
    penalty = singular_norms.spectral(norms.squared_l2(0.7), method=method)
    slopes = jax.jit(jax.vmap(lambda x: jax.jacrev(penalty.prox)(x, 1.0)))(x.astype(jnp.float32))
    expected = np.broadcast_to(np.eye(12) / 1.7, (20, 12, 12))
    np.testing.assert_allclose(slopes.reshape(20, 12, 12), expected, atol=1e-5)


@every_route
def test_the_derivative_of_every_route_is_right_at_low_rank(method):
    values = np.concatenate([np.linspace(1.0, 0.5, 8), np.zeros(24)])
    x, direction = of_values(33, (96, 32), values).astype(jnp.float32), normal(34, (96, 32))
    slope = lambda x, v: jax.jvp(
        lambda x: singular_norms.nuclear(0.1, method=method).prox(x, 1.0), (x,), (v,)
    )
    step = 1e-5 * np.asarray(direction, np.float64)
    expected = (soft(np.asarray(x) + step, 0.1) - soft(np.asarray(x) - step, 0.1)) / 2e-5
    np.testing.assert_allclose(jax.jit(slope)(x, direction)[1], expected, atol=3e-5)


@pytest.mark.parametrize("make", STRENGTHS.values(), ids=STRENGTHS.keys())
def test_the_derivative_at_strength_zero_is_the_identity_at_ties_too(make):
    slopes_at = jax.jit(lambda x: jax.jacrev(lambda x: make(0.0).prox(x, 0.5))(x).reshape(12, 12))
    for x in (np.eye(*SHAPE, dtype=np.float32), np.zeros(SHAPE, np.float32), normal(35, SHAPE)):
        slopes = slopes_at(x)
        np.testing.assert_allclose(slopes, np.eye(12), atol=2e-6)


@pytest.mark.slow
@every_case
def test_derivatives_at_corners_are_finite_in_float32(name):
    penalty, x = CASES[name].make(0.7), corners().astype(jnp.float32)
    both = lambda x: (jax.jacrev(penalty.prox)(x, 0.5), jax.grad(penalty.value)(x))
    slopes, grads = jax.jit(jax.vmap(both))(x)
    assert np.all(np.isfinite(slopes))
    assert np.all(np.isfinite(grads))


@pytest.mark.parametrize("make", STRENGTHS.values(), ids=STRENGTHS.keys())
@pytest.mark.parametrize(
    "method", ["svd", *(pytest.param(m, marks=pytest.mark.slow) for m in ("qr", "gram"))]
)
def test_derivatives_by_strength_and_step_size_are_those_of_finite_differences(make, method):
    with jax.enable_x64(True):
        x, weights = corners()[1], np.random.default_rng(0).normal(size=SHAPE)
        score = lambda numbers: jnp.sum(
            weights * make(numbers[0], method=method).prox(numbers[2] * x, numbers[1])
        )
        numbers = np.array([0.7, 0.6, 1.0])
        slope = jax.jit(jax.grad(score))(numbers)
        moves = 1e-6 * np.concatenate([np.eye(3), -np.eye(3)])
        scores = jax.jit(lambda rows: jax.lax.map(score, rows))(numbers + moves)
        np.testing.assert_allclose(slope, (scores[:3] - scores[3:]) / 2e-6, atol=1e-8)


def test_the_derivative_by_a_radius_reaches_it_through_spectral():
    x = np.diag(np.array([3.0, 2.0, 0.2], np.float32))
    ball = lambda radius: jnp.trace(sets.spectral_ball(radius).prox(x, 1.0))
    assert jax.jit(jax.grad(ball))(1.0) == pytest.approx(2.0)
    closed_over = lambda s: jnp.trace(singular_norms.spectral(norms.l1(s)).prox(x, 0.5))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(closed_over)))(np.ones(2, np.float32)), -1.0, rtol=1e-6
    )


def test_a_sweep_over_strengths_takes_one_svd():
    sweep = jax.vmap(lambda s: singular_norms.nuclear(s).prox(normal(23, SHAPE), 0.5))
    strengths = jnp.array([0.0, 0.3, 2.0])
    one = jax.jit(lambda s: singular_norms.nuclear(s).prox(normal(23, SHAPE), 0.5))
    looped = [one(s) for s in (0.0, 0.3, 2.0)]
    np.testing.assert_allclose(jax.jit(sweep)(strengths), np.stack(looped), atol=1e-6)
    equations = [line for line in str(jax.make_jaxpr(sweep)(strengths)).split("\n") if "svd" in line]
    assert equations and all("[3,4,3]" not in line and "[3,1,4,3]" not in line for line in equations)


def test_the_gradient_of_the_nuclear_norm_is_the_polar_factor():
    x = normal(24, SHAPE)
    value_and_gradient = jax.jit(jax.value_and_grad(singular_norms.nuclear(2.0).value))
    np.testing.assert_allclose(
        value_and_gradient(x)[1], 2.0 * compiled(sets.stiefel()).prox(x, 1.0), atol=2e-6
    )
    for corner in corners().astype(jnp.float32):
        value, gradient = value_and_gradient(corner)
        assert np.linalg.norm(gradient, 2) < 2.0 + 1e-5
        assert np.sum(gradient * corner) == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3)])
def test_stiefel_gives_the_nearest_orthonormal_matrix(shape):
    x = normal(25, shape)
    stiefel = compiled(sets.stiefel())
    nearest = stiefel.prox(x, 1.0)
    small = nearest if shape[0] >= shape[1] else nearest.T
    np.testing.assert_allclose(small.T @ small, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(bits(stiefel.prox(nearest, 1.0)), bits(nearest))
    assert stiefel.value(nearest) == 0
    assert stiefel.value(1.003 * nearest) == np.inf
    assert stiefel.value((1.003 * nearest).astype(jnp.bfloat16)) == 0
    others = stiefel.prox(x[None] + 0.3 * normal(26, (50, *shape)), 1.0)
    distances = np.sum(np.square(others - x[None]), axis=(1, 2))
    assert np.min(distances) > np.sum(np.square(nearest - x)) - 1e-5


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].is_set])
def test_a_projection_is_inside_and_stays(name):
    project = compiled(CASES[name].make(1.0))
    for step_size in (0.0, 3.0):
        moved = project.prox(3.0 * normal(27, (5, *SHAPE)), step_size)
        assert project.value(moved) == 0
        np.testing.assert_array_equal(bits(project.prox(moved, 1.0)), bits(moved))
    half = project.prox(3 * normal(27, (5, *SHAPE)).astype(jnp.bfloat16), 1.0)
    assert project.value(half) == 0


def test_the_threshold_of_the_rank_is_that_of_l0():
    x, rank = np.diag(np.float32([2.0, 1.1, 0.9])), compiled(singular_norms.rank(1.0))
    np.testing.assert_allclose(rank.prox(x, 0.5), np.diag(np.float32([2, 1.1, 0])))
    at_threshold = rank.prox(np.diag(np.float32([2.0, 1.0, 0.0])), 0.5)
    np.testing.assert_allclose(at_threshold, np.diag([2.0, 0.0, 0.0]))
    assert float(jax.jit(jax.grad(lambda s: jnp.sum(singular_norms.rank(s).prox(x, 0.5))))(0.0)) == 0


QUICK = [(0, "svd"), (2, "svd"), (2, "gram"), (4, "svd")]


@pytest.mark.parametrize(
    ("r", "method"),
    [
        pytest.param(r, method, marks=[] if (r, method) in QUICK else [pytest.mark.slow])
        for r in range(5)
        for method in _functions.ROUTES
    ],
)
def test_the_rank_is_at_most_r_at_ties_too(method, r):
    penalty = compiled(sets.rank_ball(r, method=method))
    for x in (np.eye(*SHAPE, dtype=np.float32), normal(28, SHAPE), np.zeros(SHAPE, np.float32)):
        moved = penalty.prox(x, 1.0)
        assert np.linalg.matrix_rank(moved, tol=1e-5) == min(r, np.linalg.matrix_rank(x))
        assert penalty.value(moved) == 0
    assert penalty.value(np.eye(*SHAPE, dtype=np.float32)) == (0 if r >= 3 else np.inf)


def test_the_rank_of_a_result_is_the_number_of_values_above_the_threshold():
    x = of_values(29, (48, 32), np.geomspace(1.0, 1e-3, 32)).astype(jnp.float32)
    for method in _functions.ROUTES:
        route = compiled(singular_norms.nuclear(1.0, method=method))
        for threshold in (0.3, 0.05, 0.012):
            moved = route.prox(x, threshold)
            values = np.linalg.svd(np.asarray(moved, np.float64), compute_uv=False)
            expected = (np.geomspace(1.0, 1e-3, 32) > threshold + 1e-5).sum()
            assert (values > 1e-5 * values[0]).sum() == expected


def test_half_precision_is_the_float32_result_rounded():
    nuclear = compiled(singular_norms.nuclear(0.7))
    for dtype in (jnp.bfloat16, jnp.float16):
        x = normal(30, SHAPE).astype(dtype)
        moved = nuclear.prox(x, 0.3)
        assert moved.dtype == dtype and jax.eval_shape(nuclear.value, x).dtype == jnp.float32
        expected = nuclear.prox(x.astype(jnp.float32), 0.3)
        np.testing.assert_array_equal(moved, expected.astype(dtype))


@every_route
def test_double_precision_is_kept(method):
    with jax.enable_x64(True):
        x = of_values(31, SHAPE, np.array([2.0, 1.1, 0.3]))
        moved = compiled(singular_norms.nuclear(0.7, method=method)).prox(x, 0.5)
        assert moved.dtype == jnp.float64
        np.testing.assert_allclose(moved, soft(x, 0.35), atol=1e-14)


@every_case
def test_empty_matrices_pass(name):
    penalty, shapes = CASES[name].make(0.7), [(0, 3), (3, 0), (0, 4, 3), (2, 0, 3)]
    empty = [np.zeros(shape, np.float32) for shape in shapes[: 2 if name == "nuclear_transposed" else 4]]
    of = lambda x: (penalty.prox(x, 0.5), penalty.value(x), jax.grad(penalty.value)(x))
    for leaf, (moved, value, slope) in zip(
        empty, jax.jit(lambda given: [of(x) for x in given])(empty), strict=True
    ):
        assert moved.shape == slope.shape == leaf.shape and float(value) == 0


def test_a_tree_is_its_leaves_and_holes_are_passed_over():
    x = {"a": normal(32, SHAPE), "b": [normal(33, (2, 2)), None, optax.MaskedNode()]}
    penalty = compiled(singular_norms.nuclear(0.7))
    moved = penalty.prox(x, 0.5)
    assert jax.tree.structure(moved) == jax.tree.structure(x)
    np.testing.assert_allclose(moved["b"][0], penalty.prox(x["b"][0], 0.5), atol=1e-6)
    total = penalty.value(x["a"]) + penalty.value(x["b"][0])
    assert penalty.value(x) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize("leaf", [2.0, jnp.ones(3)])
@pytest.mark.parametrize("name", ["nuclear", "spectral_of_l1", "rank_ball", "stiefel"])
def test_a_leaf_without_these_axes_is_refused_with_its_path(name, leaf):
    x, penalty = {"norm": {"scale": leaf}}, CASES[name].make(0.7)
    with pytest.raises(
        ValueError, match=r"rows and columns must be different .* at norm/scale.*penalties\.masked"
    ):
        penalty.prox(x, 0.1)
    with pytest.raises(ValueError, match="at norm/scale"):
        penalty.value(x)


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), ((0, 1), -1), (0, 2), (-3, 1)])
def test_axes_that_meet_or_are_not_there_are_refused(rows, columns):
    with pytest.raises(ValueError, match=r"nuclear: rows and columns must be different axes"):
        singular_norms.nuclear(rows=rows, columns=columns).prox(jnp.ones(SHAPE), 0.1)


def test_nonsense_is_refused():
    refused = [
        (lambda: singular_norms.nuclear(-1.0), r"nuclear: strength must be"),
        (lambda: singular_norms.nuclear(float("nan")), r"nuclear: strength must be"),
        (lambda: singular_norms.rank("1"), r"rank: strength must be"),
        (lambda: singular_norms.nuclear(rows=None), r"nuclear: rows must be"),
        (lambda: singular_norms.nuclear(columns=0.5), r"nuclear: columns must be an integer"),
        (lambda: singular_norms.nuclear(method="eigh"), r"nuclear: method must be one of .*gram"),
        (lambda: singular_norms.spectral(norms.l1), r"spectral: penalty must be a Penalty"),
        (lambda: singular_norms.schatten(1.0, p=3), r"schatten: p must be one of"),
        (lambda: sets.nuclear_ball(0.0), r"nuclear_ball: radius must be a number > 0"),
        (lambda: sets.spectral_ball(-1.0), r"spectral_ball: radius must be a number > 0"),
        (lambda: sets.rank_ball(1.5), r"rank_ball: r must be an integer"),
        (lambda: sets.rank_ball(-1), r"rank_ball: r must be an integer"),
        (lambda: sets.stiefel(tolerance=-1.0), r"stiefel: tolerance must be"),
        (lambda: singular_norms.nuclear().prox(jnp.ones(SHAPE), -0.1), r"step_size must be a number ≥ 0"),
        (
            lambda: singular_norms.nuclear().prox(jnp.ones(SHAPE), jnp.ones(SHAPE)),
            r"nuclear: step_size .*one number",
        ),
        (lambda: singular_norms.nuclear().value(jnp.ones(SHAPE, int)), r"nuclear: x must be a real"),
    ]
    for attempt, message in refused:
        with pytest.raises(ValueError, match=message):
            attempt()


def test_any_symmetric_penalty_will_do():
    def capped(strength):  # λ Σ min(|z|, 1), by hand
        value = lambda z: strength * jnp.sum(jnp.minimum(jnp.abs(z), 1.0))
        prox = lambda z, t: jnp.where(z > 1 + t * strength / 2, z, jnp.maximum(z - t * strength, 0))
        return base.Penalty(value, prox)

    x, penalty = np.float32([[0.0, 3.0], [-0.5, 0.0]]), compiled(singular_norms.spectral(capped(0.5)))
    np.testing.assert_allclose(penalty.prox(x, 0.5), [[0.0, 3.0], [-0.25, 0.0]], atol=1e-6)
    assert penalty.value(x) == 0.75


def test_sets_are_as_accurate_as_the_dtype_of_the_leaf():
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    for dtype, small in ((jnp.float32, 1e-6), (jnp.float64, 1e-6), (jnp.float64, 1e-14)):
        with jax.enable_x64(dtype == jnp.float64):
            x = jnp.asarray(turn @ np.diag([1.0, small]), dtype)
            moved = compiled(sets.rank_ball(1)).prox(x, 1.0)
            left = np.linalg.svd(np.asarray(moved, np.float64), compute_uv=False)
            assert left[1] < 0.2 * small and left[0] == pytest.approx(1.0, rel=1e-6)
    with jax.enable_x64(True):
        outside = np.diag([1.0 + 1e-6, 0.5])
        for ball, radius in ((sets.spectral_ball, 1.0), (sets.nuclear_ball, 1.5)):
            values = np.linalg.svd(compiled(ball(radius)).prox(outside, 1.0), compute_uv=False)
            assert max(values[0] - 1.0, 0.0) < 1e-6 and values[0] < 1.0 + 9e-7
        nearly = compiled(sets.stiefel()).prox(np.diag([1.0 + 1e-6, 1.0]), 1.0)
        np.testing.assert_allclose(np.linalg.svd(nearly, compute_uv=False), 1.0, atol=1e-14)
