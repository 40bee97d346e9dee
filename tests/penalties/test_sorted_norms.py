"""The linf norm, the sorted l1 norm, and isotonic regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties.sets import _isotonic, balls, sorted_norms
from tests.arrays import numpy_normal as normal
from tests.penalties import projections
from tests.penalties.penalty_case import SHAPE, Case, compiled, in_numpy, ramp

LAMBDAS = np.linspace(1.5, 0.0, 12)

CASES = {
    "linf": Case(sorted_norms.linf, dual_prox=lambda y, s: projections.on_l1_ball(y, 0.7)),
    "linf_rows": Case(
        lambda s: sorted_norms.linf(s, axis=-1),
        dual_prox=lambda y, s: projections.by_groups(projections.on_l1_ball, y, 1, 0.7),
    ),
    "linf_by_strength": Case(lambda s: sorted_norms.linf(s * ramp()[:1], axis=0)),
    "slope": Case(lambda s: sorted_norms.slope(s * jnp.asarray(LAMBDAS, jnp.float32))),
    "slope_rows": Case(lambda s: sorted_norms.slope(s * jnp.array([2.0, 1.0, 0.5]), axis=-1)),
    "slope_constant": Case(
        sorted_norms.slope, pointwise=lambda z, s: s * np.abs(z), dual_prox=lambda y, s: np.clip(y, -0.7, 0.7)
    ),
    "slope_largest": Case(
        lambda s: sorted_norms.slope(s * jnp.eye(12)[0]),
        dual_prox=lambda y, s: projections.on_l1_ball(y, 0.7),
    ),
}


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_linf_draws_the_largest_to_one_value():
    x, linf = np.float32([[3.0, -2.0], [0.5, 1.5]]), lambda *args: compiled(sorted_norms.linf(*args))
    np.testing.assert_allclose(linf(2.0).prox(x, 1.0), [[1.5, -1.5], [0.5, 1.5]])
    np.testing.assert_allclose(linf(1.0, 0).prox(x, 0.5), [[2.5, -1.5], [0.5, 1.5]])
    assert linf(1.0, 1).value(x) == 4.5
    np.testing.assert_array_equal(bits(linf(1.0).prox(-x, 7.0)), 0)


def test_linf_is_what_the_l1_ball_leaves():
    x, linf = normal(1, SHAPE), compiled(sorted_norms.linf(0.5, axis=1))
    ball = in_numpy(lambda radius, x: balls.l1_ball(radius, axis=1).prox(x, 1.0))
    for t in (0.1, 2.0, 30.0):
        np.testing.assert_allclose(linf.prox(x, t), x - ball(t * 0.5, x), atol=1e-6)


def test_linf_leaves_infinities_and_strength_zero_alone():
    x, linf = np.float32([np.inf, 1.0, -2.0]), in_numpy(lambda x, s: sorted_norms.linf(s).prox(x, 1.0))
    np.testing.assert_array_equal(linf(x, 1.0), x)
    ties = np.float32([0.1, -0.1, 1e-25])
    np.testing.assert_array_equal(bits(linf(ties, 0.0)), bits(ties))


SLOPE = in_numpy(lambda strengths, x: sorted_norms.slope(strengths).prox(x, 0.5))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_slope_is_what_pooling_violators_finds(scale):
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=300), rng.standard_cauchy(300), np.round(rng.normal(size=300))]
    for x in draws:
        for shape in (1.0, 0.0):  # strengths like a quantile, and steps
            strengths = np.sort(np.abs(rng.normal(size=300)))[::-1]
            strengths = strengths if shape else np.round(strengths)
            x32, s32 = (scale * x).astype(np.float32), (scale * strengths).astype(np.float32)
            right = projections.slope(x32, 0.5 * s32.astype(np.float64))
            tolerance = 1e-6 * np.abs(x32).max()
            np.testing.assert_allclose(SLOPE(s32, x32), right, atol=tolerance, rtol=0)


def test_equal_strengths_are_the_lasso_and_a_single_one_is_linf():
    x = normal(2, (300,)) * (np.arange(300) >= 100)
    equal, one = SLOPE(np.full(300, 0.4, np.float32), x), SLOPE(np.float32(0.4 * (np.arange(300) == 0)), x)
    np.testing.assert_allclose(equal, x - np.clip(x, -0.2, 0.2), atol=1e-6)
    assert not np.signbit(equal[equal == 0]).any()
    np.testing.assert_allclose(one, compiled(sorted_norms.linf(0.4)).prox(x, 0.5), atol=1e-6)


def test_slope_of_strength_zero_changes_no_bit_of_ties_either():
    x = np.float32([*np.full(100, 0.1), *normal(5, (100,)), *np.zeros(100)])
    np.testing.assert_array_equal(bits(SLOPE(np.zeros(300, np.float32), x)), bits(x))


def test_blocks_below_a_giant_are_their_own_means():
    x = np.float32([1e9, 1.0, 1.25, 0.5, 0.75] + [0.25] * 45)
    expected = [1e9, 1.125, 1.125, 0.625, 0.625] + [0.25] * 45
    np.testing.assert_array_equal(ISOTONIC(x), expected)


def test_many_alike_take_few_rounds():
    # Were they cut off one by one, this would take minutes.
    x = np.full(300_000, 0.1, np.float32)
    np.testing.assert_array_equal(ISOTONIC(x), x)


def test_slope_along_axes_is_slope_of_each():
    x, strengths = normal(3, (2, 3, 4)), np.linspace(1.0, 0.0, 8, dtype=np.float32)
    slope = compiled(sorted_norms.slope(strengths, axis=(0, 2)))
    moved, value = slope.prox(x, 0.5), 0.0
    for i in range(3):
        row = x[:, i].ravel()
        np.testing.assert_allclose(moved[:, i].ravel(), projections.slope(row, 0.5 * strengths), atol=1e-6)
        value += np.sum(strengths * np.sort(np.abs(row))[::-1])
    assert slope.value(x) == pytest.approx(value, rel=1e-6)


def test_the_derivative_of_slope_averages_over_blocks():
    x, strengths = np.float32([1.0, -5.0, 4.5, 0.1]), np.float32([2.0, 1.0, 0.5, 0.5])
    slopes = jax.jit(jax.jacfwd(lambda x, s: sorted_norms.slope(s).prox(x, 1.0), (0, 1)))
    jacobian, shift = slopes(x, strengths)
    expected = [[1, 0, 0, 0], [0, 0.5, -0.5, 0], [0, -0.5, 0.5, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(jacobian, expected)
    np.testing.assert_allclose(shift, [[0, 0, -1, 0], [0.5, 0.5, 0, 0], [-0.5, -0.5, 0, 0], [0] * 4])
    # Where equal strengths meet equal entries nothing holds them together.
    ties, _ = slopes(np.ones(4, np.float32), np.full(4, 0.5, np.float32))
    np.testing.assert_array_equal(ties, np.eye(4))


def test_infinite_entries_of_slope_stay_and_spoil_nothing():
    x = np.float32([1.0, -np.inf, 3.0])
    moved = compiled(sorted_norms.slope(np.float32([2.0, 1.0, 0.5]))).prox(x, 1.0)
    np.testing.assert_allclose(moved, [0.5, -jnp.inf, 2.0])


@pytest.mark.parametrize("size", [1, 50])
def test_isotonic_regression_pools_as_one_by_one(size):
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=size).astype(np.float32)
        for y in (x, np.sort(x), np.sort(x)[::-1], np.round(x)):
            fitted, right = ISOTONIC(np.ascontiguousarray(y)), projections.nonincreasing(y)
            np.testing.assert_allclose(fitted, right, atol=1e-6)
            assert np.all(np.diff(fitted) <= 1e-6)


def test_long_sums_decide_no_block_by_their_rounding():
    # Sums in float32 are wrong here by more than two neighbours differ.
    size = 30_000
    x = np.random.default_rng(0).normal(size=size)
    for y in (np.sort(np.abs(x))[::-1] - np.linspace(2.0, 0.0, size), np.cumsum(x) + 1000.0):
        y = y.astype(np.float32)
        fitted, right = ISOTONIC(y), projections.nonincreasing(y)
        np.testing.assert_allclose(fitted, right, atol=2e-7 * np.abs(y).max(), rtol=0)


ISOTONIC = in_numpy(_isotonic.nonincreasing)


def test_strengths_may_differ_by_leaf():
    x = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([[2.0]])}
    moved = compiled(sorted_norms.slope({"a": np.array([1.0, 0.0]), "b": 0.5})).prox(x, 1.0)
    np.testing.assert_array_equal(moved["a"], [2.0, -1.0])
    np.testing.assert_array_equal(moved["b"], [[1.5]])
    assert compiled(sorted_norms.slope(1.0)).prox(np.float32(-2.0), 0.5) == -1.5


@pytest.mark.parametrize("make", [sorted_norms.linf, sorted_norms.slope])
def test_nothing_and_nan_pass(make):
    penalty, shapes = make(1.0, axis=0), [(0,), (3, 0), (0, 3)]
    of = lambda x: (penalty.prox(x, 0.5), penalty.value(x))
    for shape, (moved, value) in zip(
        shapes, jax.jit(lambda: [of(jnp.zeros(s)) for s in shapes])(), strict=True
    ):
        assert moved.shape == shape and float(value) == 0
    spoilt = np.where(np.arange(12).reshape(SHAPE) == 5, np.float32(np.nan), normal(4, SHAPE))
    moved = compiled(make(1.0, axis=1)).prox(spoilt, 0.5)
    np.testing.assert_array_equal(np.isnan(moved)[:, 2], [False, True, False, False])
    assert np.all(np.isfinite(moved[[0, 2, 3]]))


def test_nonsense_strengths_are_refused():
    with pytest.raises(ValueError, match="linf: strength must be a number ≥ 0"):
        sorted_norms.linf(-1.0)
    with pytest.raises(ValueError, match="slope: strengths must be a number ≥ 0"):
        sorted_norms.slope(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"slope: strengths must be in descending order.* Sort them"):
        sorted_norms.slope({"w": np.array([1.0, 2.0])})
    with pytest.raises(ValueError, match=r"strengths at w must be .*\(3,\), got shape \(2,\)"):
        sorted_norms.slope({"w": np.array([2.0, 1.0])}).prox({"w": jnp.ones(3)}, 1.0)
    with pytest.raises(ValueError, match=r"axis .* at norm/bias"):
        sorted_norms.linf(axis=1).prox({"norm": {"bias": jnp.ones(3)}}, 1.0)
    with pytest.raises(ValueError, match=r"linf: step_size .*one number"):
        sorted_norms.linf().prox(jnp.ones(SHAPE), ramp())
