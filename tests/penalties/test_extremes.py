"""Strengths and step sizes of 0, of infinity and near the ends of the floating-point numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties
from tests.penalties.penalty_case import compiled

X = jnp.array([[0.0, 1.0, 0.0, 1.5], [-2.0, 0.0, 0.0, 2.0], [3.0, 0.0, 0.0, -1.0], [0.5, 0.0, 0.0, 4.0]])
ENDS = (0.0, 1e-30, 1e30, np.inf)

slow = lambda *case: pytest.param(*case, marks=pytest.mark.slow)
MAKERS = [
    penalties.l1,
    penalties.linf,
    penalties.slope,
    lambda s: penalties.elastic_net(s, s),
    lambda s: penalties.sparse_group_lasso(s, mix=1.0),
    penalties.scad,
    penalties.log_sum,
    *map(
        slow,
        [
            penalties.non_negative_l1,
            penalties.squared_l2,
            penalties.l2,
            penalties.l0,
            penalties.l_half,
            penalties.mcp,
            penalties.group_lasso,
            lambda s: penalties.sparse_group_lasso(s, mix=0.0),
            penalties.group_mcp,
            penalties.group_l_half,
            penalties.nuclear,
            penalties.spectral_norm,
            penalties.rank,
            lambda s: penalties.scale(penalties.l1(1.0), s),
            lambda s: penalties.add_quadratic(penalties.zero(), s),
        ],
    ),
]


@pytest.mark.parametrize("make", MAKERS)
def test_zero_times_infinity_is_zero(make):
    strengths, steps = jnp.array(list(itertools.product(ENDS, ENDS)), jnp.float32).T
    moved_and_slopes = lambda s, t: jax.vjp(lambda x: make(s).prox(x, t), X)

    @jax.jit
    @jax.vmap
    def results(s, t):
        moved, backwards = moved_and_slopes(s, t)
        return moved, backwards(jnp.ones_like(X))[0], make(s).value(X), make(s).value(0.0 * X)

    moved, slopes, values, values_at_zero = map(np.asarray, results(strengths, steps))
    assert np.all(np.isfinite(moved)) and np.all(np.isfinite(slopes))
    np.testing.assert_array_equal(values_at_zero, 0.0)
    assert not np.any(np.isnan(values)) and np.all(np.isinf(values[np.isinf(strengths)]))
    np.testing.assert_array_equal(values[strengths == 0], 0.0 if np.all(np.isfinite(values[0])) else np.inf)
    large = (strengths >= 1e30) & (steps >= 1e30)
    np.testing.assert_array_equal(moved[large], 0.0)


def test_an_infinite_strength_is_the_limit_of_large_ones():
    x, one_infinite = np.float32([3.0, -2.0, 0.5]), np.float32([np.inf, 0.0, 0.0])
    slope, l1 = compiled(penalties.slope(one_infinite)), compiled(penalties.l1(one_infinite))
    np.testing.assert_array_equal(slope.prox(x, 1.0), 0.0)
    np.testing.assert_array_equal(slope.prox(x, 0.0), x)
    np.testing.assert_array_equal(l1.prox(x, 0.5), [0.0, -2.0, 0.5])
    assert l1.value(x * np.float32([0.0, 1.0, 1.0])) == 0
    assert l1.value(x) == np.inf


def test_an_infinite_radius_is_no_bound_for_a_ball_and_refused_for_a_sphere():
    x = np.float32([3.0, -2.0, 0.5])
    for make in (penalties.l1_ball, penalties.l2_ball, penalties.linf_ball):
        ball = make(jnp.inf)
        of = lambda x: (*jax.vjp(lambda x: ball.prox(x, 1.0), x), ball.value(x))  # noqa: B023
        moved, slope, value = jax.jit(lambda x: (of(x)[0], of(x)[1](jnp.ones(3))[0], of(x)[2]))(x)  # noqa: B023
        np.testing.assert_array_equal(moved, x)
        np.testing.assert_array_equal(slope, 1.0)
        assert float(value) == 0
    capped, simplex = compiled(penalties.capped_simplex(jnp.inf, 2.0)), compiled(penalties.simplex(2.0))
    np.testing.assert_allclose(capped.prox(x, 1.0), simplex.prox(x, 1.0), atol=1e-6)
    for make in (penalties.simplex, penalties.l1_sphere, penalties.l2_sphere):
        with pytest.raises(ValueError, match="radius must be a finite number, got inf"):
            make(jnp.inf)


def test_log_sum_reaches_the_largest_numbers():
    x = np.float32([1.8e38, -3.3e38, 1e30, 5.0])
    np.testing.assert_allclose(compiled(penalties.log_sum(1.0, 1.0)).prox(x, 1.0)[:3], x[:3], rtol=1e-6)
