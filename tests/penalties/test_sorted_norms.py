"""The linf norm, the sorted l1 norm, and isotonic regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties.coordinatewise import convex
from proxlm.penalties.sets import _isotonic, balls, sorted_norms
from tests.arrays import normal
from tests.penalties import projections
from tests.penalties.penalty_case import SHAPE, Case, ramp

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
    x = jnp.array([[3.0, -2.0], [0.5, 1.5]])
    np.testing.assert_allclose(sorted_norms.linf(2.0).prox(x, 1.0), [[1.5, -1.5], [0.5, 1.5]])
    np.testing.assert_allclose(sorted_norms.linf(1.0, axis=0).prox(x, 0.5), [[2.5, -1.5], [0.5, 1.5]])
    assert sorted_norms.linf(1.0, axis=1).value(x) == 4.5
    np.testing.assert_array_equal(bits(sorted_norms.linf(1.0).prox(-x, 7.0)), 0)


def test_linf_is_what_the_l1_ball_leaves():
    x = normal(1, SHAPE)
    for t in (0.1, 2.0, 30.0):
        left = x - balls.l1_ball(t * 0.5, axis=1).prox(x, 1.0)
        np.testing.assert_allclose(sorted_norms.linf(0.5, axis=1).prox(x, t), left, atol=1e-6)


def test_linf_leaves_infinities_and_strength_zero_alone():
    x = jnp.array([jnp.inf, 1.0, -2.0])
    np.testing.assert_array_equal(sorted_norms.linf(1.0).prox(x, 1.0), x)
    ties = jnp.array([0.1, -0.1, 0.1, 1e-25])
    np.testing.assert_array_equal(bits(sorted_norms.linf(0.0).prox(ties, 1.0)), bits(ties))


SLOPE = jax.jit(lambda strengths, x: sorted_norms.slope(strengths).prox(x, 0.5))


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
    x = normal(2, (300,)).at[:100].set(0.0)
    equal = sorted_norms.slope(0.4).prox(x, 0.5)
    np.testing.assert_allclose(equal, convex.l1(0.4).prox(x, 0.5), atol=1e-6)
    one = SLOPE(0.4 * jnp.eye(300)[0], x)
    np.testing.assert_allclose(one, sorted_norms.linf(0.4).prox(x, 0.5), atol=1e-6)


def test_slope_of_strength_zero_changes_no_bit_of_ties_either():
    x = jnp.concatenate([jnp.full(100, 0.1), normal(5, (100,)), jnp.zeros(100)])
    np.testing.assert_array_equal(bits(SLOPE(jnp.zeros(300), x)), bits(x))


def test_blocks_below_a_giant_are_their_own_means():
    x = jnp.array([1e9, 1.0, 1.25, 0.5, 0.75] + [0.25] * 45)
    expected = [1e9, 1.125, 1.125, 0.625, 0.625] + [0.25] * 45
    np.testing.assert_array_equal(ISOTONIC(x), expected)


def test_many_alike_take_few_rounds():
    # Were they cut off one by one, this would take minutes.
    x = jnp.full(300_000, 0.1)
    np.testing.assert_array_equal(ISOTONIC(x), x)


def test_slope_along_axes_is_slope_of_each():
    x, strengths = normal(3, (2, 3, 4)), jnp.linspace(1.0, 0.0, 8)
    moved = sorted_norms.slope(strengths, axis=(0, 2)).prox(x, 0.5)
    for i in range(3):
        right = projections.slope(x[:, i].ravel(), 0.5 * np.asarray(strengths))
        np.testing.assert_allclose(moved[:, i].ravel(), right, atol=1e-6)
    value = sum(sorted_norms.slope(strengths).value(x[:, i]) for i in range(3))
    assert sorted_norms.slope(strengths, axis=(0, 2)).value(x) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.slow
def test_the_derivative_of_slope_averages_over_blocks():
    x, strengths = jnp.array([1.0, -5.0, 4.5, 0.1]), jnp.array([2.0, 1.0, 0.5, 0.5])
    jacobian = jax.jacrev(lambda x: sorted_norms.slope(strengths).prox(x, 1.0))(x)
    expected = [[1, 0, 0, 0], [0, 0.5, -0.5, 0], [0, -0.5, 0.5, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(jacobian, expected)
    shift = jax.jacfwd(lambda s: sorted_norms.slope(s).prox(x, 1.0))(strengths)
    np.testing.assert_allclose(shift, [[0, 0, -1, 0], [0.5, 0.5, 0, 0], [-0.5, -0.5, 0, 0], [0] * 4])
    # Where equal strengths meet equal entries nothing holds them together.
    ties = jax.jacfwd(lambda x: sorted_norms.slope(0.5).prox(x, 1.0))(jnp.ones(3))
    np.testing.assert_array_equal(ties, np.eye(3))


def test_infinite_entries_of_slope_stay_and_spoil_nothing():
    x = jnp.array([1.0, -jnp.inf, 3.0])
    moved = sorted_norms.slope(jnp.array([2.0, 1.0, 0.5])).prox(x, 1.0)
    np.testing.assert_allclose(moved, [0.5, -jnp.inf, 2.0])


@pytest.mark.parametrize("size", [1, 2, 50])
def test_isotonic_regression_pools_as_one_by_one(size):
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=size).astype(np.float32)
        for y in (x, np.sort(x), np.sort(x)[::-1], np.round(x)):
            fitted, right = ISOTONIC(np.ascontiguousarray(y)), projections.nonincreasing(y)
            np.testing.assert_allclose(fitted, right, atol=1e-6)
            assert np.all(np.diff(fitted) <= 1e-6)


def test_long_sums_decide_no_block_by_their_rounding():
    # Sums in float32 are wrong here by more than two neighbours differ.
    size = 100_000
    x = np.random.default_rng(0).normal(size=size)
    for y in (np.sort(np.abs(x))[::-1] - np.linspace(2.0, 0.0, size), np.cumsum(x) + 1000.0):
        y = y.astype(np.float32)
        fitted, right = ISOTONIC(y), projections.nonincreasing(y)
        np.testing.assert_allclose(fitted, right, atol=2e-7 * np.abs(y).max(), rtol=0)


ISOTONIC = jax.jit(_isotonic.nonincreasing)


def test_strengths_may_differ_by_leaf():
    x = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([[2.0]])}
    moved = sorted_norms.slope({"a": np.array([1.0, 0.0]), "b": 0.5}).prox(x, 1.0)
    np.testing.assert_array_equal(moved["a"], [2.0, -1.0])
    np.testing.assert_array_equal(moved["b"], [[1.5]])
    assert sorted_norms.slope(1.0).prox(jnp.array(-2.0), 0.5) == -1.5


@pytest.mark.parametrize("make", [sorted_norms.linf, sorted_norms.slope])
def test_nothing_and_nan_pass(make):
    for shape in ((0,), (3, 0), (0, 3)):
        assert make(1.0, axis=0).prox(jnp.zeros(shape), 0.5).shape == shape
        assert make(1.0, axis=0).value(jnp.zeros(shape)) == 0
    moved = make(1.0, axis=1).prox(normal(4, SHAPE).at[1, 2].set(jnp.nan), 0.5)
    np.testing.assert_array_equal(jnp.isnan(moved)[:, 2], [False, True, False, False])
    assert jnp.all(jnp.isfinite(moved[jnp.array([0, 2, 3])]))


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
