"""Nonconvex penalties on single coordinates: numbers by hand, a grid, and the peers' mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties.coordinatewise import nonconvex, powers
from tests.arrays import normal
from tests.penalties.penalty_case import SHAPE, Case, ramp


def mcp_value(z, s, gamma=2.0):
    size = np.abs(z)
    return np.where(size <= gamma * s, s * size - size**2 / (2 * gamma), gamma * s**2 / 2)


def scad_value(z, s, a=3.0):
    size = np.abs(z)
    middle = (2 * a * s * size - size**2 - s**2) / (2 * (a - 1))
    outer = np.where(size <= a * s, middle, s**2 * (a + 1) / 2)
    return np.where(size <= s, s * size, outer)


GRIDS = {  # name: (strength ↦ penalty, (z, strength) ↦ g of one coordinate)
    "l0": (nonconvex.l0, lambda z, s: s * (z != 0)),
    "l_half": (powers.l_half, lambda z, s: s * np.abs(z) ** 0.5),
    "l_two_thirds": (powers.l_two_thirds, lambda z, s: s * np.abs(z) ** (2 / 3)),
    "mcp": (lambda s: nonconvex.mcp(s, gamma=2.0), mcp_value),
    "mcp_small_gamma": (lambda s: nonconvex.mcp(s, gamma=0.3), lambda z, s: mcp_value(z, s, 0.3)),
    "scad": (lambda s: nonconvex.scad(s, a=3.0), scad_value),
    "scad_small_a": (lambda s: nonconvex.scad(s, a=2.1), lambda z, s: scad_value(z, s, 2.1)),
    "log_sum": (lambda s: nonconvex.log_sum(s, epsilon=1.5), lambda z, s: s * np.log1p(np.abs(z) / 1.5)),
    "log_sum_small_epsilon": (
        lambda s: nonconvex.log_sum(s, epsilon=0.1),
        lambda z, s: s * np.log1p(np.abs(z) / 0.1),
    ),
}
CASES = {
    name: Case(make, convex=False, metric=True, pointwise=pointwise)
    for name, (make, pointwise) in GRIDS.items()
}
CASES["l_half_by_coordinate"] = Case(lambda s: powers.l_half(s * ramp()), convex=False, metric=True)
CASES["mcp_by_column"] = Case(lambda s: nonconvex.mcp(s, gamma=ramp()[:1]), convex=False, metric=True)

every_penalty = pytest.mark.parametrize(("make", "g"), GRIDS.values(), ids=GRIDS.keys())


def brute_force(g, x, t):
    """The minimum over z of g(z) + (z - x)²/2t: a grid between 0 and x, refined three times."""
    objective = lambda z: g(z) + (z - x) ** 2 / (2 * t)
    low, high = min(x, 0.0), max(x, 0.0)
    for _ in range(4):
        grid = np.linspace(low, high, 20001)
        best = np.argmin(objective(grid))
        low, high = grid[max(best - 2, 0)], grid[min(best + 2, 20000)]
    best = min(grid[best], 0.0, x, key=objective)
    return best, objective(best)


@every_penalty
def test_prox_is_the_global_minimum_in_float64(make, g):
    x = np.concatenate([np.linspace(-4, 4, 21), [0.2616, 1e-3, -7.0]])
    steps = (0.05, 0.6, 1.05, 2.5, 9.0)
    with jax.enable_x64(True):
        prox = jax.jit(jax.vmap(make(0.7).prox, (None, 0)))
        moved = np.asarray(prox(jnp.asarray(x), jnp.array(steps)))
    for t, row in zip(steps, moved, strict=True):
        for point, z in zip(x, row, strict=True):
            best, lowest = brute_force(lambda z: g(z, 0.7), point, t)
            here = g(z, 0.7) + (z - point) ** 2 / (2 * t)
            assert here <= lowest + 1e-12
            assert abs(z - best) < 1e-4 or here >= lowest - 1e-9


@every_penalty
def test_value_is_the_sum_of_the_formula(make, g):
    x = 3.0 * normal(1, (40,))
    expected = np.sum(g(np.asarray(x, np.float64), 0.7))
    assert make(0.7).value(x) == pytest.approx(expected, rel=1e-6)


@every_penalty
def test_a_prox_in_a_diagonal_metric_takes_each_coordinate_by_itself(make, g):
    del g
    x, steps = 3.0 * normal(2, SHAPE), 4.0 * ramp()
    penalty = make(0.7)
    single = jax.jit(jax.vmap(jax.vmap(penalty.prox)))(x, steps)
    prox = jax.jit(penalty.prox)
    np.testing.assert_allclose(prox(x, steps), single, rtol=2e-6)
    np.testing.assert_array_equal(prox(x, steps.at[1].set(0.0))[1], x[1])


@every_penalty
def test_the_step_is_a_subgradient(make, g):
    del g
    x = 3.0 * normal(3, (40,))
    prox, residual = jax.jit(make(0.7).prox), jax.jit(make(0.7).residual)
    for t in (0.1, 1.5, 7.0):
        z = prox(x, t)
        np.testing.assert_allclose(residual(z, (x - z) / t), 0.0, atol=3e-5)
        away = residual(z, (x - z) / t + 0.1)
        np.testing.assert_allclose(away[z != 0], 0.1, atol=3e-5)


@every_penalty
def test_derivatives_are_those_of_finite_differences(make, g):
    del g
    with jax.enable_x64(True):
        move = jax.jit(lambda x, s, t: make(s).prox(x, t))
        at, h = (jnp.linspace(-4.0, 4.13, 28), 0.7, 0.3), 1e-6
        backward = jax.jit(jax.grad(lambda *at: jnp.sum(move(*at)), argnums=(0, 1, 2)))(*at)
        forward = jax.jit(lambda at, tangents: jax.jvp(move, at, tangents)[1])
        for i, name in enumerate("xst"):
            ahead = move(*(a + h * (i == j) for j, a in enumerate(at)))
            behind = move(*(a - h * (i == j) for j, a in enumerate(at)))
            expected = (ahead - behind) / (2 * h)
            tangents = tuple(jnp.full_like(a, float(i == j)) for j, a in enumerate(at))
            np.testing.assert_allclose(forward(at, tangents), expected, atol=1e-6)
            total = expected if name == "x" else expected.sum()
            np.testing.assert_allclose(backward[i], total, atol=1e-5)


@every_penalty
def test_infinities_are_kept_and_zero_stays_zero(make, g):
    del g
    x = jnp.array([jnp.inf, -jnp.inf, 0.0, -0.0])
    moved = jax.jit(make(0.7).prox)(x, 0.5)
    np.testing.assert_array_equal(moved[:2], x[:2])
    np.testing.assert_array_equal(np.asarray(moved[2:]).view(np.uint32), 0)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(jnp.nan_to_num(make(0.7).prox(x, 0.5)))))(x)
    assert jnp.all(jnp.isfinite(slopes))


def test_l0_thresholds_at_the_root_of_twice_the_product():
    # PyProximal 0.13 thresholds at tλ; here that is 0.5, where √(2tλ) is 1.
    x = jnp.array([0.6, 0.99, 1.0, -1.0, 1.01])
    np.testing.assert_array_equal(nonconvex.l0(0.5).prox(x, 1.0), [0.0, 0.0, 0.0, 0.0, x[4]])


def test_l0_counts_by_strength():
    strength = jnp.array([1.0, 2.0, 4.0])
    assert nonconvex.l0(strength).value(jnp.array([0.1, 0.0, -5.0])) == 5


def test_two_thirds_beside_its_threshold_is_the_global_maximum_of_neither():
    # proxop 1.0.6 returns 0.002 here, a local maximum of the objective (0.034).
    penalty, x, t = powers.l_two_thirds(1.0), 0.2616, 0.05
    z = penalty.prox(x, t)
    assert z == pytest.approx(0.205, abs=1e-3)
    assert t * penalty.value(z) + 0.5 * (z - x) ** 2 == pytest.approx(0.019, abs=5e-4)


@pytest.mark.parametrize(("name", "order"), [("l_half", 2), ("l_two_thirds", 3)])
@pytest.mark.parametrize("pull", [1e-6, 1e-3, 0.05, 1.0, 3.0, 1e3, 1e6])
def test_powers_are_right_to_a_few_units_in_the_last_place(name, order, pull):
    # The quartic of 2/3 by Cardano's formula in float32 is wrong by up to 0.19.
    power, pull = 1 - 1 / order, float(np.float32(pull))
    least = (2 * pull / order) ** (order / (order + 1))
    threshold = least * (order + 1) / 2
    ratios = np.concatenate([1 + np.logspace(-5, 0, 300), np.logspace(0.4, 6, 300)])
    x = (threshold * ratios).astype(np.float32)
    w = x.astype(np.float64) ** (1 / order)
    for _ in range(50):
        z, back = w**order, power * pull / w
        w = w - w * (z + back - x) / (order * z - back)
    moved = np.asarray(jax.jit(getattr(powers, name)(1.0).prox)(x, pull))
    error = np.abs(moved - (x - power * pull / w)) / np.spacing(moved)
    assert error.max() < 3


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_powers_scale_with_the_weights(scale):
    # |cz|^q = c^q |z|^q: the prox at c x with strength c^(2-q) λ is c times the prox.
    x = 3.0 * normal(4, (60,))
    for make, power in ((powers.l_half, 1 / 2), (powers.l_two_thirds, 2 / 3)):
        prox = jax.jit(lambda x, s, make=make: make(s).prox(x, 0.5))
        scaled = prox(scale * x, 0.7 * scale ** (2 - power))
        np.testing.assert_allclose(scaled / scale, prox(x, 0.7), rtol=1e-5)


def test_a_threshold_kills_and_what_lies_above_jumps():
    for make, threshold, jump in ((powers.l_half, 1.5, 1.0), (powers.l_two_thirds, 2.0, 1.0)):
        strength = 1.0 if threshold == 1.5 else 1.5
        x = threshold * jnp.array([0.999, 1.0, 1.001])
        moved = make(strength).prox(x, 1.0)
        np.testing.assert_array_equal(moved[:2], 0.0)
        assert moved[2] == pytest.approx(jump, rel=4e-3)


def test_mcp_on_both_sides_of_gamma():
    penalty = nonconvex.mcp(1.0, gamma=2.0)
    np.testing.assert_allclose(penalty.prox(jnp.array([1.0, 1.5, 2.0, 3.0]), 1.0), [0, 1, 2, 3])
    # t = 8: hard threshold at √(2 · 8) = 4.
    np.testing.assert_allclose(penalty.prox(jnp.array([3.9, 4.0, 4.5]), 8.0), [0, 0, 4.5])
    steps = jnp.array([1.0, 2.0, 8.0])
    np.testing.assert_allclose(penalty.prox(jnp.array([1.5, 2.5, 3.9]), steps), [1.0, 2.5, 0.0])


def test_scad_on_both_sides_of_its_knees():
    penalty = nonconvex.scad(1.0, a=3.0)
    x = jnp.array([0.9, 1.5, 2.0, 2.5, 3.0, 4.0])
    np.testing.assert_allclose(penalty.prox(x, 1.0), [0, 0.5, 1, 2, 3, 4], atol=1e-6)
    # t = 3, between a - 1 and a + 1: soft up to (3 + 1 + 3)/2 = 3.5.
    np.testing.assert_allclose(penalty.prox(jnp.array([3.25, 3.5, 3.6]), 3.0), [0.25, 0.5, 3.6])
    # t = 9: zero up to √(9 · 4) = 6.
    np.testing.assert_allclose(penalty.prox(jnp.array([5.9, 6.0, 6.1]), 9.0), [0, 0, 6.1])


def test_log_sum_compares_with_zero():
    # t = 1, ε = 0.1: 1.9 + 0.1 = 2 is where a stationary point appears, but 0 is lower until later.
    penalty = nonconvex.log_sum(1.0, epsilon=0.1)
    moved = penalty.prox(jnp.array([1.85, 1.95, 2.5, 2.6]), 1.0)
    np.testing.assert_array_equal(moved[:3], 0.0)
    assert moved[3] == pytest.approx(0.5 * (2.5 + (2.7**2 - 4) ** 0.5), rel=1e-6)


def test_large_gamma_is_the_lasso():
    x = 3.0 * normal(5, SHAPE)
    soft = x - jnp.clip(x, -0.35, 0.35)
    for penalty in (nonconvex.mcp(0.7, gamma=1e7), nonconvex.scad(0.7, a=1e7)):
        np.testing.assert_allclose(penalty.prox(x, 0.5), soft, atol=1e-6)
    near_l1 = nonconvex.log_sum(0.7 * 1e4, epsilon=1e4)
    np.testing.assert_allclose(near_l1.prox(x, 0.5), soft, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nonconvex.l0(-1.0), "l0: strength must be a number ≥ 0"),
        (lambda: powers.l_half(float("nan")), "l_half: strength must be a number ≥ 0"),
        (lambda: powers.l_two_thirds("1"), "l_two_thirds: strength must be a number"),
        (lambda: nonconvex.mcp(1.0, gamma=0.0), "mcp: gamma must be a number > 0"),
        (lambda: nonconvex.mcp(-1.0), "mcp: strength must be a number ≥ 0"),
        (lambda: nonconvex.scad(1.0, a=2.0), "scad: a must be a number > 2"),
        (lambda: nonconvex.scad(1.0, a=float("nan")), "scad: a must be a number > 2"),
        (lambda: nonconvex.log_sum(1.0, epsilon=-1.0), "log_sum: epsilon must be a number > 0"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
