"""Simplices and l1 balls, and the root they rest on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm.penalties.sets import _multi_reduce, _threshold, balls, simplices
from tests.arrays import numpy_normal as normal
from tests.penalties import projections
from tests.penalties.penalty_case import SHAPE, Case, compiled, in_numpy, ramp

on_rows = lambda project, radius: lambda y: projections.by_groups(project, y, 1, radius)


def support_prox(project):
    """(y, s) ↦ prox of s times the support function of a set: y less s times a projection."""
    return lambda y, s: y - s * project(np.asarray(y, np.float64) / s)


CASES = {
    "simplex": Case(
        lambda s: simplices.simplex(),
        is_set=True,
        metric=True,
        dual_prox=support_prox(projections.on_simplex),
    ),
    "simplex_rows": Case(
        lambda s: simplices.simplex(2.0, axis=-1),
        is_set=True,
        metric=True,
        dual_prox=support_prox(on_rows(projections.on_simplex, 2.0)),
    ),
    "simplex_by_radius": Case(lambda s: simplices.simplex(ramp()[:1], axis=0), is_set=True, metric=True),
    "capped_simplex": Case(lambda s: simplices.capped_simplex(0.4, 2.0), is_set=True),
    "capped_simplex_rows": Case(lambda s: simplices.capped_simplex(ramp(), axis=-1), is_set=True),
    "sparse_simplex": Case(lambda s: simplices.sparse_simplex(3, 20.0), convex=False, is_set=True),
    "sparse_simplex_columns": Case(
        lambda s: simplices.sparse_simplex(2, 15.0, axis=0), convex=False, is_set=True
    ),
    "l1_ball": Case(
        lambda s: balls.l1_ball(1.5),
        is_set=True,
        metric=True,
        dual_prox=support_prox(lambda y: projections.on_l1_ball(y, 1.5)),
    ),
    "l1_ball_rows": Case(
        lambda s: balls.l1_ball(1.5, axis=-1),
        is_set=True,
        metric=True,
        dual_prox=support_prox(on_rows(projections.on_l1_ball, 1.5)),
    ),
    "l1_sphere": Case(lambda s: balls.l1_sphere(40.0), convex=False, is_set=True, metric=True),
    "l1_sphere_columns": Case(
        lambda s: balls.l1_sphere(15.0, axis=0), convex=False, is_set=True, metric=True
    ),
}


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_points_of_the_simplex_by_hand():
    x, value = np.float32([[0.2, 0.6], [2.0, -1.0]]), in_numpy(simplices.simplex(axis=0).value)
    moved = compiled(simplices.simplex(axis=1)).prox(x, 0.1)
    np.testing.assert_allclose(moved, [[0.3, 0.7], [1.0, 0.0]])
    assert value(np.float32([[0.25, 1.0], [0.75, 0.0]])) == 0
    assert value(np.float32([[0.5, 0.0], [0.51, 1.0]])) == np.inf
    assert value(np.float32([[1.1, 0.0], [-0.1, 1.0]])) == np.inf


def test_neither_scaling_nor_renormalising_is_a_projection():
    np.testing.assert_array_equal(IN_BALL(np.float32([2.0, 1.0]), 1.0), [1.0, 0.0])
    moved = ON_SIMPLEX(np.float32([0.9, 0.5]), 1.0)
    np.testing.assert_allclose(moved, [0.7, 0.3], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("total", [1e-6, 1.0, 1e6])
def test_any_scale_of_entries_and_radius_is_accurate(scale, total):
    rng = np.random.default_rng(0)
    heavy = rng.standard_cauchy(1000)
    for x in (rng.normal(size=1000), heavy, 1000 + rng.normal(size=1000), np.round(heavy)):
        x = (scale * x).astype(np.float32)
        moved, right = ON_SIMPLEX(x, total), projections.on_simplex(x, total)
        np.testing.assert_allclose(moved, right, atol=1e-6 * right.max(), rtol=0)
        assert np.asarray(moved, np.float64).sum() == pytest.approx(total, rel=2e-6)
        moved, right = IN_BALL(x, total), projections.on_l1_ball(x, total)
        np.testing.assert_allclose(moved, right, atol=1e-6 * np.abs(right).max(), rtol=0)


ON_SIMPLEX = in_numpy(lambda x, total: simplices.simplex(total).prox(x, 1.0))
IN_BALL = in_numpy(lambda x, radius: balls.l1_ball(radius).prox(x, 1.0))


def test_points_of_an_l1_ball_are_inside_to_the_last_digits():
    # A bisection that stops at 1e-5 leaves them outside by as much.
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=1000).astype(np.float32)
        norm = np.abs(np.asarray(IN_BALL(x, 3.0), np.float64)).sum()
        assert abs(norm - 3.0) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_ten_million_entries_are_accurate(scale):
    # Sums in float32, one after another, are wrong by 1e-2 here.
    x = np.random.default_rng(0).normal(size=10_000_000).astype(np.float32) * np.float32(scale)
    for total in (scale, 5e5 * scale):
        moved, right = ON_SIMPLEX(x, total), projections.on_simplex(x, total)
        np.testing.assert_allclose(moved, right, atol=1e-6 * right.max(), rtol=0)
        assert np.asarray(moved, np.float64).sum() == pytest.approx(total, rel=2e-6)
        moved, right = IN_BALL(x, total), projections.on_l1_ball(x, total)
        np.testing.assert_allclose(moved, right, atol=1e-6 * np.abs(right).max(), rtol=0)


def test_steps_suffice_where_every_entry_is_another_scale():
    x = (2.0 ** -np.arange(120.0)).astype(np.float32)
    for total in (1e-20, 1e-3, 0.5, 1.9, 100.0):
        right = projections.on_simplex(x, np.float32(total))
        np.testing.assert_allclose(ON_SIMPLEX(x, total), right, atol=3e-7 * right.max(), rtol=0)


def test_a_point_that_is_inside_keeps_its_bits():
    x = np.float32([0.1, 0.2, 0.3, 0.4])  # sums to 1 exactly
    np.testing.assert_array_equal(bits(ON_SIMPLEX(x, 1.0)), bits(x))
    np.testing.assert_array_equal(bits(IN_BALL(-x, 1.0)), bits(-x))
    np.testing.assert_array_equal(bits(IN_BALL(x * 1e-25, 1.0)), bits(x * 1e-25))
    for seed in range(20):
        x = np.random.default_rng(seed).dirichlet(np.ones(1000)).astype(np.float32)
        np.testing.assert_array_equal(bits(ON_SIMPLEX(x, 1.0)), bits(x))
        np.testing.assert_array_equal(bits(IN_BALL(-x, 1.0)), bits(-x))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "make", [simplices.simplex, balls.l1_ball, balls.l1_sphere, lambda: simplices.sparse_simplex(3)]
)
def test_half_precision_comes_out_as_it_went_in(dtype, make):
    x, penalty = normal(1, SHAPE).astype(dtype), compiled(make())
    moved = penalty.prox(x, 1.0)
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved, penalty.prox(x.astype(np.float32), 1.0).astype(dtype))
    assert penalty.value(moved) == 0
    assert penalty.value((1.05 * moved).astype(dtype)) == np.inf


@pytest.mark.parametrize("total", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_a_diagonal_metric_weighs_the_coordinates(total, spread):
    rng = np.random.default_rng(0)
    t = np.exp(spread * rng.normal(size=1000)).astype(np.float32)
    x = rng.normal(size=1000).astype(np.float32)
    scale = np.abs(x).max() + total
    moved, right = ON_METRIC_SIMPLEX(x, total, t), projections.in_metric(x, t, total)
    np.testing.assert_allclose(moved, right, atol=2e-6 * scale, rtol=0)
    moved = IN_METRIC_BALL(x, total, t)
    right = np.sign(x) * projections.in_metric(np.abs(x), t, total)
    np.testing.assert_allclose(moved, right, atol=2e-6 * scale, rtol=0)


ON_METRIC_SIMPLEX = in_numpy(lambda x, total, t: simplices.simplex(total).prox(x, t))
IN_METRIC_BALL = in_numpy(lambda x, total, t: balls.l1_ball(total).prox(x, t))


def test_an_entry_is_found_though_rounding_hides_it():
    # u - tτ of the largest ratio is 2e-10 beside numbers of 0.02, whose rounding is 2e-9.
    x, t = [0.01832943, 0.01918791], [0.02543862, 0.03574555]
    moved = ON_METRIC_SIMPLEX(np.float32([*x, -1.0]), 1e-6, np.float32([*t, 60.0]))
    np.testing.assert_allclose(moved, [1e-6, 0.0, 0.0], rtol=1e-2)


def test_coordinates_without_a_step_stay_and_use_up_their_part():
    x, t, zero = np.float32([0.5, 1.0, 0.25]), np.float32([1.0, 2.0, 0.0]), np.zeros(3, np.float32)
    np.testing.assert_allclose(ON_METRIC_SIMPLEX(x, 1.0, t), [0.25, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(IN_METRIC_BALL(-x, 1.0, t), [-0.25, -0.5, -0.25], rtol=1e-6)
    np.testing.assert_array_equal(ON_METRIC_SIMPLEX(3 * x, 1.0, zero), 3 * x)
    below = np.float32([0.5, 1.0, -0.25])
    np.testing.assert_allclose(ON_METRIC_SIMPLEX(below, 1.0, t), [1 / 3, 2 / 3, -0.25], rtol=1e-6)
    still = jax.jit(jax.grad(lambda t: jnp.sum(balls.l1_ball().prox(3 * x, t))))(zero)
    assert np.all(np.isfinite(still))
    # Where the rest is too much already, the others can only become 0.
    np.testing.assert_array_equal(ON_METRIC_SIMPLEX(8 * x, 1.0, t), [0.0, 0.0, 2.0])


@pytest.mark.parametrize("kind", [_threshold.Kind((1,)), _threshold.Kind((1,), absolute=True, floored=True)])
def test_derivatives_of_the_threshold_are_those_of_differences(kind):
    with jax.enable_x64(True):
        x, t = (np.float64(normal(seed, SHAPE)) for seed in (2, 3))
        total = np.array([[0.5], [1.0], [1.5], [2.0]])

        def tau(x, total, t):
            found = _threshold.threshold(x, total, jnp.exp(t), kind)
            return jnp.sum(jnp.cos(found.centre + found.offset))

        way = np.cos(np.arange(12.0)).reshape(SHAPE)
        ways = way, way[:, :1], way

        @jax.jit
        def at(h):
            moved = lambda h: tau(*(a + h * w for a, w in zip((x, total, t), ways, strict=True)))
            gradients = jax.grad(tau, (0, 1, 2))(x, total, t)
            backward = sum(jnp.sum(g * w) for g, w in zip(gradients, ways, strict=True))
            return moved(h), backward, jax.jvp(moved, (0.0,), (1.0,))[1]

        (ahead, *slopes), (behind, *_) = at(1e-6), at(-1e-6)
        np.testing.assert_allclose(slopes, np.full(2, (ahead - behind) / 2e-6), rtol=1e-7)


def test_a_ball_has_the_derivative_1_inside():
    jacobians = jax.jit(jax.jacrev(lambda x, r: balls.l1_ball(r).prox(x, 1.0), (0, 1)))
    by_x, by_radius = jacobians(np.float32([0.5, 0.0, -0.5]), 3.0)
    np.testing.assert_array_equal(by_x, np.eye(3))
    np.testing.assert_array_equal(by_radius, 0)


def test_infinite_entries_share_the_radius():
    x = np.float32([np.inf, 1.0, -np.inf, np.inf])
    np.testing.assert_array_equal(ON_SIMPLEX(x, 1.0), [0.5, 0.0, 0.0, 0.5])
    np.testing.assert_array_equal(IN_BALL(x, 1.5), [0.5, 0.0, -0.5, 0.5])
    moved = IN_CAPS(np.float32([np.inf, 1.0, 0.0]), 0.5, 1.0)
    np.testing.assert_allclose(moved, [0.5, 0.5, 0.0])


def test_nan_stays_in_its_group():
    x = np.where(np.arange(12).reshape(SHAPE) == 5, np.float32(np.nan), normal(4, SHAPE))
    for make in (simplices.simplex, balls.l1_ball, balls.l1_sphere):
        wrong = np.isnan(compiled(make(axis=1)).prox(x, 1.0))
        np.testing.assert_array_equal(wrong, np.repeat(np.arange(4) == 1, 3).reshape(SHAPE))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA fuses otherwise elsewhere")
def test_a_search_stores_no_second_array():
    x = jnp.zeros((64, 1024))
    for kind in (_threshold.Kind((1,)), _threshold.Kind((0, 1), absolute=True, floored=True)):
        find = jax.jit(lambda x, kind=kind: _threshold.threshold(x, 1.0, 1.0, kind))
        memory = find.lower(x).compile().memory_analysis()
        assert memory.temp_size_in_bytes < x.nbytes / 2


SHAPES = [
    (5, 33),
    (40, 3, 50),
    *(pytest.param(s, marks=pytest.mark.slow) for s in [(1, 7), (3, 32), (2, 1000)]),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_folds_are_sums_and_maxima(shape):
    x, shift = normal(5, shape), 0.5
    axes = tuple(range(1, len(shape)))
    parts = lambda shift, x: (x + shift, x)
    for way in (_multi_reduce.fold, lambda axes, *rest: _multi_reduce._at_once(axes, *rest[:3], *rest[3])):
        run = jax.jit(lambda x, way=way: way(axes, (jnp.add, jnp.maximum), parts, shift, (x,)))
        total, largest = run(x)
        exact = np.sum(np.asarray(x, np.float64) + 0.5, axis=axes, keepdims=True)
        np.testing.assert_allclose(total, exact, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(largest, np.max(x, axis=axes, keepdims=True))


def test_long_sums_do_not_drift():
    x = np.full((1, 100_000), 0.1, np.float32)
    (total,) = jax.jit(lambda x: _multi_reduce.fold((1,), (jnp.add,), lambda _, x: (x,), (), (x,)))(x)
    assert float(total[0, 0]) == pytest.approx(100_000 * float(np.float32(0.1)), rel=1e-6)


@pytest.mark.slow
def test_a_sweep_over_a_large_array_is_its_single_searches(monkeypatch):
    # One after another, that is, also where vmaps and derivatives are nested.
    monkeypatch.setattr(_threshold, "LARGE", 12)
    x, radii = normal(10, SHAPE), jnp.array([[0.1, 1.0], [3.0, 60.0]])
    moved = lambda radius, x: balls.l1_ball(radius, axis=1).prox(x, 1.0)
    score = lambda radius, x: jnp.sum(jnp.cos(moved(radius, x)))
    swept = lambda f: jax.vmap(jax.vmap(f, (0, None)), (0, None))(radii, x)
    single = lambda f: jnp.stack([f(radius, x) for radius in radii.ravel()])
    for f in (moved, jax.grad(score), jax.grad(score, 1)):
        together, apart = swept(f), single(f)
        np.testing.assert_allclose(together.reshape(apart.shape), apart, atol=1e-6)
    arrays = jnp.stack([x, -2 * x])
    pairs = jax.vmap(moved)(radii[0], arrays)
    for pair, radius, array in zip(pairs, radii[0], arrays, strict=True):
        np.testing.assert_allclose(pair, moved(radius, array), atol=1e-6)


def test_radii_may_differ_by_leaf_and_by_group_and_be_swept():
    x = {"a": normal(6, (2, 3)), "b": [normal(7, (5,)), None, optax.MaskedNode()]}
    radius = {"a": np.float32([[1.0], [2.0]]), "b": [3.0, None, 7.0]}
    simplex = compiled(simplices.simplex(radius, axis=-1))
    moved = simplex.prox(x, 0.5)
    np.testing.assert_allclose(np.sum(moved["a"], axis=1), [1.0, 2.0], rtol=1e-6)
    assert np.sum(moved["b"][0]) == pytest.approx(3.0)
    assert simplex.value(moved) == 0
    radii = np.float32([0.1, 1.0, 30.0])
    swept = jax.jit(jax.vmap(ON_SIMPLEX, in_axes=(None, 0)))(x["b"][0], radii)
    for row, r in zip(swept, radii, strict=True):
        np.testing.assert_allclose(row, ON_SIMPLEX(x["b"][0], r), rtol=1e-6)


def test_a_simplex_reduces_the_named_axes():
    x = normal(8, (2, 3, 4))
    for axis, other in [((0, 2), (-3, -1)), (None, (0, 1, 2))]:
        one, two = (compiled(simplices.simplex(axis=a)).prox(x, 1.0) for a in (axis, other))
        np.testing.assert_array_equal(one, two)
        summed = np.sum(one, axis=axis)
        np.testing.assert_allclose(summed, np.ones(summed.shape), rtol=1e-6)
    assert ON_SIMPLEX(np.float32(-3.0), 1.0) == 1


def test_leaves_without_coordinates_pass():
    makes = (simplices.simplex, balls.l1_ball, simplices.sparse_simplex, simplices.capped_simplex)
    for make, first in zip(makes, (1.0, 1.0, 2, 1.0), strict=True):
        penalty, shapes = make(first, axis=0), [(0,), (3, 0), (0, 3)]
        of = lambda x: (penalty.prox(x, 0.5), penalty.value(x))  # noqa: B023
        results = jax.jit(lambda: [of(jnp.zeros(shape)) for shape in shapes])()  # noqa: B023
        for shape, (moved, value) in zip(shapes, results, strict=True):
            assert moved.shape == shape and float(value) == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("total", [1e-6, 1.0, 1e6])
def test_a_capped_simplex_is_what_bisection_finds(scale, total):
    rng = np.random.default_rng(1)
    for x in (rng.normal(size=7), rng.standard_cauchy(7), np.array([2, 2, 1, 1, 2, -1, 0])):
        x, cap = (scale * x).astype(np.float32), np.float32(0.4 * total)
        moved, right = IN_CAPS(x, cap, total), projections.on_capped_simplex(x, total, cap)
        tolerance = 1e-6 * max(np.abs(x).max(), total)
        np.testing.assert_allclose(moved, right, atol=tolerance, rtol=0)
        assert np.max(moved) <= cap and np.min(moved) >= 0


IN_CAPS = in_numpy(lambda x, cap, total: simplices.capped_simplex(cap, total).prox(x, 1.0))


def test_caps_below_the_rounding_of_the_entries_are_kept():
    x = np.float32([-2e6, -1e6, 2e6, 2e6, 1e6, 2e6, 1e6])
    moved = IN_CAPS(x, 4e-7, 1e-6)
    np.testing.assert_allclose(moved[[2, 3, 5]], 1e-6 / 3, rtol=1e-6)


def test_a_capped_simplex_chooses_as_many_as_its_radius():
    moved = IN_CAPS(jnp.array([5.0, -1.0, 9.0, 7.0, 0.0]), 1.0, 3.0)
    np.testing.assert_array_equal(moved, [1.0, 0.0, 1.0, 1.0, 0.0])
    value = jax.jit(simplices.capped_simplex(1.0, 3.0).value)
    assert [float(value(np.float32(x))) for x in (moved, [2.0, 0.0, 1.0, 0.0, 0.0])] == [0.0, np.inf]


def test_a_sparse_simplex_is_the_best_of_all_supports():
    x = normal(9, (6,))
    best = min(
        (
            projections.on_simplex(np.where(np.isin(np.arange(6), support), x, -1e9), 4.0)
            for support in itertools.combinations(range(6), 2)
        ),
        key=lambda z: np.sum((z - x) ** 2),
    )
    moved = compiled(simplices.sparse_simplex(2, 4.0)).prox(x, 1.0)
    np.testing.assert_allclose(moved, best, atol=1e-6)
    first = compiled(simplices.sparse_simplex(2)).prox(np.float32([[1.0, 1.0, 1.0]]), 1.0)
    np.testing.assert_array_equal(first, [[0.5, 0.5, 0.0]])
    assert compiled(simplices.sparse_simplex(1)).value(np.float32([0.5, 0.5])) == np.inf


def test_an_l1_sphere_draws_out_what_is_inside():
    x, sphere = np.float32([0.5, -0.25, 0.0]), compiled(balls.l1_sphere(1.5))
    np.testing.assert_allclose(sphere.prox(x, 1.0), [0.75, -0.5, 0.25])
    np.testing.assert_array_equal(sphere.prox(0 * x, 1.0), [0.5, 0.5, 0.5])
    assert sphere.value(x) == np.inf
    assert compiled(balls.l1_ball(1.5)).value(x) == 0


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), "1", None, np.array([1.0, 0.0])])
def test_a_radius_that_is_none_is_refused(radius):
    for make in (simplices.simplex, balls.l1_ball, balls.l1_sphere, balls.l2_ball, balls.l2_sphere):
        with pytest.raises(ValueError, match="radius must be"):
            make(radius)
    with pytest.raises(ValueError, match="sparse_simplex: radius must be"):
        simplices.sparse_simplex(2, radius)
    with pytest.raises(ValueError, match="capped_simplex: cap must be"):
        simplices.capped_simplex(radius)


def test_what_does_not_fit_a_leaf_is_refused_with_its_path():
    x = {"layer": {"bias": jnp.ones(3)}}
    with pytest.raises(ValueError, match="k must be at most 3, the size of a group at layer/bias, got 4"):
        simplices.sparse_simplex(4).prox(x, 1.0)
    with pytest.raises(
        ValueError, match=r"radius must be at most the sum of 3 coordinates of at most 0.25 at layer/bias"
    ):
        simplices.capped_simplex(0.25).prox(x, 1.0)
    with pytest.raises(ValueError, match=r"axis must be .* at layer/bias"):
        simplices.simplex(axis=1).prox(x, 1.0)
    with pytest.raises(ValueError, match=r"radius at layer/bias must be .* got shape \(2,\)"):
        simplices.simplex({"layer": {"bias": np.ones(2)}}, axis=0).prox(x, 1.0)
    with pytest.raises(ValueError, match="k must be an integer ≥ 1"):
        simplices.sparse_simplex(0)
    with pytest.raises(ValueError, match="one number"):
        simplices.capped_simplex(1.0).prox(x, {"layer": {"bias": jnp.ones(3)}})
    with pytest.raises(ValueError, match="tolerance must be a number ≥ 0"):
        simplices.simplex(tolerance=-1.0)
