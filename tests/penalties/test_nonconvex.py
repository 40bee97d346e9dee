"""Nonconvex penalties on single coordinates: numbers by hand, a grid, and the peers' mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties.coordinatewise import nonconvex, powers
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, Case, compiled, in_numpy, ramp


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
marks = lambda name: [pytest.mark.slow] if "small" in name else []
every_kind = pytest.mark.parametrize(
    "make", [pytest.param(make, id=name, marks=marks(name)) for name, (make, _) in GRIDS.items()]
)


def brute_force(g, x, t):
    """The minima over z of g(z) + (z - x)²/2t, one a point x: grids between 0 and x, refined."""
    objective = lambda z: g(z) + (z - x) ** 2 / (2 * t)
    low, high = np.minimum(x, 0.0), np.maximum(x, 0.0)
    for _ in range(6):
        grid = np.linspace(low, high, 1001)
        best = np.argmin(objective(grid), axis=0)
        row = lambda i: grid[np.clip(i, 0, 1000), np.arange(x.size)]  # noqa: B023
        low, high = row(best - 2), row(best + 2)
    candidates = np.stack([row(best), 0.0 * x, x])
    best = candidates[np.argmin(objective(candidates), axis=0), np.arange(x.size)]
    return best, objective(best)


@every_penalty
def test_prox_is_the_global_minimum_in_float64(make, g):
    x = np.concatenate([np.linspace(-4, 4, 21), [0.2616, 1e-3, -7.0]])
    steps = (0.05, 0.6, 1.05, 2.5, 9.0)
    with jax.enable_x64(True):
        moved = np.asarray(jax.jit(jax.vmap(make(0.7).prox, (None, 0)))(x, np.array(steps)))
    for t, z in zip(steps, moved, strict=True):
        best, lowest = brute_force(lambda z: g(z, 0.7), x, t)
        here = g(z, 0.7) + (z - x) ** 2 / (2 * t)
        assert np.all(here <= lowest + 1e-12)
        assert np.all((np.abs(z - best) < 1e-4) | (here >= lowest - 1e-9))


@every_penalty
def test_value_prox_and_residual_are_those_of_one_function(make, g):
    x, t = 3.0 * normal(1, (40,)), np.geomspace(0.1, 7.0, 40, dtype=np.float32)
    t[1] = 0.0
    penalty, over = make(0.7), np.where(t > 0, t, 1)

    @in_numpy
    def all_of(x, t):
        z, single = penalty.prox(x, t), jax.vmap(penalty.prox)(x, t)
        v = (x - z) / over
        return penalty.value(x), z, single, penalty.residual(z, v), penalty.residual(z, v + 0.1)

    value, z, single, left, away = all_of(x, t)
    assert value == pytest.approx(np.sum(g(np.asarray(x, np.float64), 0.7)), rel=1e-6)
    np.testing.assert_allclose(z, single, rtol=2e-6)
    assert z[1] == x[1]
    moves = t > 0
    np.testing.assert_allclose(left[moves], 0.0, atol=3e-5)
    np.testing.assert_allclose(away[moves & (z != 0)], 0.1, atol=3e-5)


@every_kind
def test_derivatives_are_those_of_finite_differences(make):
    with jax.enable_x64(True):
        move = in_numpy(lambda x, s, t: make(s).prox(x, t))
        at, h = (np.linspace(-4.0, 4.13, 28), np.array(0.7), np.array(0.3)), 1e-6
        backward = jax.jit(jax.grad(lambda *at: jnp.sum(make(at[1]).prox(at[0], at[2])), (0, 1, 2)))(*at)
        forward = jax.jit(lambda at, tangents: jax.jvp(lambda x, s, t: make(s).prox(x, t), at, tangents)[1])
        for i, name in enumerate("xst"):
            ahead = move(*(a + h * (i == j) for j, a in enumerate(at)))
            behind = move(*(a - h * (i == j) for j, a in enumerate(at)))
            expected = (ahead - behind) / (2 * h)
            tangents = tuple(np.full_like(a, float(i == j)) for j, a in enumerate(at))
            np.testing.assert_allclose(forward(at, tangents), expected, atol=1e-6)
            total = expected if name == "x" else expected.sum()
            np.testing.assert_allclose(backward[i], total, atol=1e-5)


@every_penalty
def test_infinities_are_kept_and_zero_stays_zero(make, g):
    del g
    x = np.float32([np.inf, -np.inf, 0.0, -0.0])

    @in_numpy
    def both(x):
        moved, pull = jax.vjp(lambda x: jnp.nan_to_num(make(0.7).prox(x, 0.5)), x)
        return make(0.7).prox(x, 0.5), pull(jnp.ones_like(moved))[0]

    moved, slopes = both(x)
    np.testing.assert_array_equal(moved[:2], x[:2])
    np.testing.assert_array_equal(moved[2:].view(np.uint32), 0)
    assert np.all(np.isfinite(slopes))


def test_l0_thresholds_at_the_root_of_twice_the_product():
    # PyProximal 0.13 thresholds at tλ; here that is 0.5, where √(2tλ) is 1.
    x = np.float32([0.6, 0.99, 1.0, -1.0, 1.01])
    np.testing.assert_array_equal(compiled(nonconvex.l0(0.5)).prox(x, 1.0), [0.0, 0.0, 0.0, 0.0, x[4]])


def test_l0_counts_by_strength():
    strength = jnp.array([1.0, 2.0, 4.0])
    assert nonconvex.l0(strength).value(jnp.array([0.1, 0.0, -5.0])) == 5


def test_two_thirds_beside_its_threshold_is_the_global_maximum_of_neither():
    # proxop 1.0.6 returns 0.002 here, a local maximum of the objective (0.034).
    penalty, x, t = compiled(powers.l_two_thirds(1.0)), 0.2616, 0.05
    z = penalty.prox(x, t)
    assert z == pytest.approx(0.205, abs=1e-3)
    assert t * penalty.value(z) + 0.5 * (z - x) ** 2 == pytest.approx(0.019, abs=5e-4)


@pytest.mark.parametrize(("name", "order"), [("l_half", 2), ("l_two_thirds", 3)])
def test_powers_are_right_to_a_few_units_in_the_last_place(name, order):
    # The quartic of 2/3 by Cardano's formula in float32 is wrong by up to 0.19.
    power, prox = 1 - 1 / order, compiled(getattr(powers, name)(1.0)).prox
    for pull in map(float, np.float32([1e-6, 1e-3, 0.05, 1.0, 3.0, 1e3, 1e6])):
        least = (2 * pull / order) ** (order / (order + 1))
        threshold = least * (order + 1) / 2
        ratios = np.concatenate([1 + np.logspace(-5, 0, 300), np.logspace(0.4, 6, 300)])
        x = (threshold * ratios).astype(np.float32)
        w = x.astype(np.float64) ** (1 / order)
        for _ in range(50):
            z, back = w**order, power * pull / w
            w = w - w * (z + back - x) / (order * z - back)
        moved = prox(x, pull)
        error = np.abs(moved - (x - power * pull / w)) / np.spacing(moved)
        assert error.max() < 3


def test_powers_scale_with_the_weights():
    # |cz|^q = c^q |z|^q: the prox at c x with strength c^(2-q) λ is c times the prox.
    x = 3.0 * normal(4, (60,))
    for make, power in ((powers.l_half, 1 / 2), (powers.l_two_thirds, 2 / 3)):
        prox = in_numpy(lambda x, s, make=make: make(s).prox(x, 0.5))
        for scale in (1e-6, 1e6):
            scaled = prox(scale * x, 0.7 * scale ** (2 - power))
            np.testing.assert_allclose(scaled / scale, prox(x, 0.7), rtol=1e-5)


def test_a_threshold_kills_and_what_lies_above_jumps():
    for make, threshold, jump in ((powers.l_half, 1.5, 1.0), (powers.l_two_thirds, 2.0, 1.0)):
        strength = 1.0 if threshold == 1.5 else 1.5
        moved = compiled(make(strength)).prox(np.float32([0.999, 1.0, 1.001]) * threshold, 1.0)
        np.testing.assert_array_equal(moved[:2], 0.0)
        assert moved[2] == pytest.approx(jump, rel=4e-3)


def test_mcp_on_both_sides_of_gamma():
    penalty = compiled(nonconvex.mcp(1.0, gamma=2.0))
    np.testing.assert_allclose(penalty.prox(jnp.array([1.0, 1.5, 2.0, 3.0]), 1.0), [0, 1, 2, 3])
    # t = 8: hard threshold at √(2 · 8) = 4.
    np.testing.assert_allclose(penalty.prox(jnp.array([3.9, 4.0, 4.5]), 8.0), [0, 0, 4.5])
    steps = jnp.array([1.0, 2.0, 8.0])
    np.testing.assert_allclose(penalty.prox(jnp.array([1.5, 2.5, 3.9]), steps), [1.0, 2.5, 0.0])


def test_scad_on_both_sides_of_its_knees():
    penalty = compiled(nonconvex.scad(1.0, a=3.0))
    x = np.float32([0.9, 1.5, 2.0, 2.5, 3.0, 4.0])
    np.testing.assert_allclose(penalty.prox(x, 1.0), [0, 0.5, 1, 2, 3, 4], atol=1e-6)
    # t = 3, between a - 1 and a + 1: soft up to (3 + 1 + 3)/2 = 3.5.
    np.testing.assert_allclose(penalty.prox(np.float32([3.25, 3.5, 3.6]), 3.0), [0.25, 0.5, 3.6])
    # t = 9: zero up to √(9 · 4) = 6.
    np.testing.assert_allclose(penalty.prox(jnp.array([5.9, 6.0, 6.1]), 9.0), [0, 0, 6.1])


def test_log_sum_compares_with_zero():
    # t = 1, ε = 0.1: 1.9 + 0.1 = 2 is where a stationary point appears, but 0 is lower until later.
    penalty = compiled(nonconvex.log_sum(1.0, epsilon=0.1))
    moved = penalty.prox(np.float32([1.85, 1.95, 2.5, 2.6]), 1.0)
    np.testing.assert_array_equal(moved[:3], 0.0)
    assert moved[3] == pytest.approx(0.5 * (2.5 + (2.7**2 - 4) ** 0.5), rel=1e-6)


def test_large_gamma_is_the_lasso():
    x = 3.0 * normal(5, SHAPE)
    soft = x - np.clip(x, -0.35, 0.35)
    for penalty in (nonconvex.mcp(0.7, gamma=1e7), nonconvex.scad(0.7, a=1e7)):
        np.testing.assert_allclose(compiled(penalty).prox(x, 0.5), soft, atol=1e-6)
    near_l1 = compiled(nonconvex.log_sum(0.7 * 1e4, epsilon=1e4))
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
