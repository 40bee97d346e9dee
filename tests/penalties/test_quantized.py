"""Levels as a set and the W of ProxQuant: by hand, on a grid, traced, and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties.coordinatewise import quantized
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, Case, compiled, ramp

LEVELS = np.array([-1.5, -0.25, 0.0, 1.0])


def w_shape(z, s):
    return s * np.min(np.abs(z[..., None] - LEVELS), axis=-1)


CASES = {
    "binary": Case(lambda s: quantized.binary(0.5), convex=False, is_set=True, metric=True),
    "ternary": Case(lambda s: quantized.ternary(0.8), convex=False, is_set=True, metric=True),
    "ternary_columns": Case(lambda s: quantized.ternary(ramp()[:1]), convex=False, is_set=True, metric=True),
    "levels": Case(lambda s: quantized.quantization_grid(LEVELS), convex=False, is_set=True, metric=True),
    "prox_quant": Case(
        lambda s: quantized.prox_quant(s, LEVELS), convex=False, metric=True, pointwise=w_shape
    ),
    "prox_quant_rows": Case(
        lambda s: quantized.prox_quant(s, LEVELS, scale=ramp()[:, :1]), convex=False, metric=True
    ),
}


@pytest.mark.parametrize(
    "count", [1, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 16, 256)), 64, 65]
)
def test_levels_are_the_nearest_with_ties_upwards(count):
    values = np.cumsum(np.random.default_rng(count).integers(1, 5, count)) * 0.25 - 7.0
    middles = 0.5 * (values[1:] + values[:-1])
    x = np.concatenate([values, middles, np.linspace(-20, 150, 501)]).astype(np.float32)
    away = np.abs(x[:, None] - values[::-1])  # argmin takes the first: here the uppermost
    nearest = values[::-1][np.argmin(away, axis=1)]
    grid = compiled(quantized.quantization_grid(values))
    moved = grid.prox(x, 1.0)
    np.testing.assert_array_equal(moved, nearest.astype(np.float32))
    assert grid.value(moved) == 0


def test_binary_and_ternary_are_levels():
    x = 2.0 * normal(0, (4, 6))
    for penalty, values in ((quantized.binary(0.5), [-0.5, 0.5]), (quantized.ternary(0.5), [-0.5, 0.0, 0.5])):
        grid = compiled(quantized.quantization_grid(values))
        np.testing.assert_array_equal(compiled(penalty).prox(x, 3.0), grid.prox(x, 0.0))
    ties = jnp.array([-0.25, 0.0, -0.0, 0.25])
    np.testing.assert_array_equal(quantized.binary(0.5).prox(ties, 1.0), [-0.5, 0.5, 0.5, 0.5])
    np.testing.assert_array_equal(quantized.ternary(0.5).prox(ties, 1.0), [0.0, 0.0, 0.0, 0.5])


def test_scales_may_differ_by_group_and_by_leaf():
    x = {"a": normal(1, SHAPE), "b": normal(2, (5,))}
    scale = {"a": ramp()[:, :1], "b": 3.0}
    ternary, alone = (
        compiled(quantized.ternary(scale)),
        jax.jit(lambda x, s: quantized.ternary(s).prox(x, 1.0)),
    )
    moved = ternary.prox(x, 1.0)
    for row, single, s in zip(x["a"], moved["a"], ramp()[:, 0], strict=True):
        np.testing.assert_array_equal(single, alone(row, s))
    np.testing.assert_array_equal(moved["b"], alone(x["b"], 3.0))
    assert ternary.value(moved) == 0


def test_values_allow_for_the_rounding_of_bfloat16_and_no_more():
    binary, grid = compiled(quantized.binary(0.7)), compiled(quantized.quantization_grid([0.0, 100.0]))
    x = binary.prox(normal(3, (50,)).astype(jnp.bfloat16), 1.0)
    assert x.dtype == jnp.bfloat16
    assert binary.value(x) == 0
    assert compiled(quantized.binary(0.7, tolerance=1e-6)).value(x) == np.inf
    assert binary.value(np.where(np.arange(50) == 0, 0.71, x).astype(jnp.bfloat16)) == np.inf
    assert grid.value(np.float32([0.1, 99.9])) == 0
    assert grid.value(np.float32([0.3, 0.3])) == np.inf
    assert quantized.quantization_grid([0.0]).value(jnp.array([0.3])) == jnp.inf


def test_nan_and_infinity():
    x, grid = np.float32([np.nan, np.inf, -np.inf]), compiled(quantized.quantization_grid(np.arange(99.0)))
    np.testing.assert_array_equal(compiled(quantized.binary()).prox(x, 1.0), [np.nan, 1.0, -1.0])
    np.testing.assert_array_equal(grid.prox(x, 1.0), [np.nan, 98, 0])
    np.testing.assert_array_equal(compiled(quantized.prox_quant(1.0, LEVELS)).prox(x, 1.0), x)
    value = compiled(quantized.ternary()).value
    assert np.isnan(value(x)) and value(x[[1, 1, 2]]) == np.inf


@pytest.mark.parametrize("t", [0.05, 0.3, 1.0])
def test_prox_quant_is_the_global_minimum_also_beside_the_midpoints(t):
    middles = 0.5 * (LEVELS[1:] + LEVELS[:-1])
    x = np.concatenate([np.linspace(-3, 3, 61), middles - 1e-3, middles + 1e-3, middles])
    moved = compiled(quantized.prox_quant(0.7, LEVELS)).prox(x.astype(np.float32), t)
    grid = np.linspace(-4, 4, 16001)
    shape_of_grid = w_shape(grid, 0.7)
    for point, z in zip(x, moved, strict=True):
        lowest = np.min(shape_of_grid + (grid - point) ** 2 / (2 * t))
        assert w_shape(z, 0.7) + (z - point) ** 2 / (2 * t) <= lowest + 1e-6


def test_prox_quant_lands_on_the_level_itself():
    x = jnp.array([0.1, 0.6, 0.9])
    moved = quantized.prox_quant(1.0, [1 / 3, 0.7]).prox(x, 0.3)
    np.testing.assert_array_equal(moved, jnp.array([1 / 3, 0.7, 0.7]))
    np.testing.assert_array_equal(quantized.prox_quant(0.0, LEVELS).prox(x, 1.0), x)


def test_prox_quant_between_one_level_is_a_shifted_lasso():
    x, strength = normal(4, SHAPE), ramp()
    moved = compiled(quantized.prox_quant(strength, [0.5])).prox(x, 0.3)
    away = x - np.float32(0.5)
    np.testing.assert_allclose(moved, 0.5 + away - np.clip(away, -0.3 * strength, 0.3 * strength), atol=1e-6)
    value = compiled(quantized.prox_quant(2.0, [0.5])).value(x)
    assert value == pytest.approx(2 * float(np.sum(np.abs(away))), rel=1e-6)


def test_the_step_of_prox_quant_is_a_subgradient():
    penalty, x = quantized.prox_quant(0.7, LEVELS), 2.0 * normal(5, (40,))
    z, residual = compiled(penalty).prox(x, 0.4), jax.jit(penalty.residual)
    np.testing.assert_allclose(residual(z, (x - z) / np.float32(0.4)), 0.0, atol=1e-5)
    assert np.min(np.abs(residual(z, np.full_like(z, 0.8)))) > 0.09


def test_traced_levels_and_scales_have_derivatives():
    x = jnp.array([-3.0, -0.3, 0.4, 2.0])
    move = lambda values, scale: jnp.sum(quantized.quantization_grid(values, scale).prox(x, 1.0))
    for_values, for_scale = jax.jit(jax.grad(move, argnums=(0, 1)))(jnp.asarray(LEVELS), 2.0)
    np.testing.assert_allclose(for_values, [2.0, 2.0, 2.0, 2.0])
    assert for_scale == LEVELS.sum()
    listed = jax.jit(lambda s: quantized.quantization_grid([-s, 0.0, s]).prox(x, 1.0))(0.5)
    np.testing.assert_array_equal(listed, [-0.5, -0.5, 0.5, 0.5])
    swept = jax.jit(jax.vmap(lambda s: quantized.prox_quant(s, LEVELS).prox(x, 1.0)))(np.float32([0.0, 9.0]))
    np.testing.assert_array_equal(swept, [x, compiled(quantized.quantization_grid(LEVELS)).prox(x, 1.0)])
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(quantized.binary().prox(x, 1.0))))(x)
    np.testing.assert_array_equal(slopes, 0.0)


@pytest.mark.parametrize(
    "values", [[], [1.0, 0.0], [0.0, float("nan")], 1.0, [[0.0, 1.0]], None, "01", [0.0, np.inf]]
)
def test_levels_that_are_none_are_refused(values):
    for make in (quantized.quantization_grid, lambda v: quantized.prox_quant(1.0, v)):
        with pytest.raises(ValueError, match="values must be"):
            make(values)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="binary: scale must be a number > 0"):
        quantized.binary(0.0)
    with pytest.raises(ValueError, match="ternary: scale at a must be a number > 0"):
        quantized.ternary({"a": -1.0})
    with pytest.raises(ValueError, match="quantization_grid: scale must be a number > 0"):
        quantized.quantization_grid(LEVELS, float("nan"))
    with pytest.raises(ValueError, match="prox_quant: strength must be a number ≥ 0"):
        quantized.prox_quant(-1.0, LEVELS)
    with pytest.raises(ValueError, match=r"ternary: scale at w must be of a shape that broadcasts"):
        quantized.ternary({"w": jnp.ones(2)}).value({"w": jnp.ones(3)})
