"""Boxes, l2 balls and spheres, halfspaces and hyperplanes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm.penalties.sets import balls, boxes_and_halfspaces
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, Case, anchor, compiled, in_numpy, ramp


def support_prox(project):
    """(y, s) ↦ prox of s times the support function of a set: y less s times a projection."""
    return lambda y, s: y - s * project(np.asarray(y, np.float64) / s)


def on_l2_ball(y, radius, axis):
    return y * np.minimum(1.0, radius / np.linalg.norm(y, axis=axis, keepdims=True))


CASES = {
    "box": Case(
        lambda s: boxes_and_halfspaces.box(-0.5, ramp()),
        is_set=True,
        metric=True,
        pointwise=None,
        dual_prox=support_prox(lambda y: np.clip(y, -0.5, np.asarray(ramp()))),
    ),
    "box_above": Case(lambda s: boxes_and_halfspaces.box(upper=0.25), is_set=True, metric=True),
    "non_negative": Case(
        lambda s: boxes_and_halfspaces.non_negative(),
        is_set=True,
        metric=True,
        pointwise=lambda z, s: np.where(z >= 0, 0.0, np.inf),
        dual_prox=lambda y, s: np.minimum(y, 0.0),
    ),
    "linf_ball": Case(
        lambda s: boxes_and_halfspaces.linf_ball(0.75),
        is_set=True,
        metric=True,
        pointwise=lambda z, s: np.where(np.abs(z) <= 0.75, 0.0, np.inf),
        dual_prox=lambda y, s: np.sign(y) * np.maximum(np.abs(y) - 0.75 * s, 0.0),
    ),
    "l2_ball": Case(
        lambda s: balls.l2_ball(1.5),
        is_set=True,
        dual_prox=support_prox(lambda y: on_l2_ball(y, 1.5, (0, 1))),
    ),
    "l2_ball_rows": Case(
        lambda s: balls.l2_ball(0.9, axis=-1),
        is_set=True,
        dual_prox=support_prox(lambda y: on_l2_ball(y, 0.9, 1)),
    ),
    "l2_sphere": Case(lambda s: balls.l2_sphere(20.0), convex=False, is_set=True),
    "l2_sphere_columns": Case(
        lambda s: balls.l2_sphere(10.0 * ramp()[:1], axis=0), convex=False, is_set=True
    ),
    "halfspace": Case(lambda s: boxes_and_halfspaces.halfspace(anchor(), -2.0), is_set=True, metric=True),
    "halfspace_inside": Case(
        lambda s: boxes_and_halfspaces.halfspace(anchor(), 50.0), is_set=True, metric=True
    ),
    "hyperplane": Case(lambda s: boxes_and_halfspaces.hyperplane(anchor(), -2.0), is_set=True, metric=True),
}


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_a_box_moves_what_is_outside_to_its_sides():
    x = jnp.array([[-2.0, 0.5], [3.0, -0.0]])
    moved = boxes_and_halfspaces.box(jnp.array([[-1.0, -jnp.inf]]), 2.0).prox(x, 0.1)
    np.testing.assert_array_equal(bits(moved), bits(jnp.array([[-1.0, 0.5], [2.0, -0.0]])))
    np.testing.assert_array_equal(bits(boxes_and_halfspaces.non_negative().prox(-jnp.ones(2), 1.0)), 0)
    np.testing.assert_array_equal(boxes_and_halfspaces.box().prox(x, 1.0), x)
    t = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(boxes_and_halfspaces.box(0.0, 2.0).prox(x, t), [[0.0, 0.5], [3.0, 0.0]])
    assert boxes_and_halfspaces.box().value(x) == 0
    assert boxes_and_halfspaces.box(upper=2.0).value(x) == jnp.inf
    assert boxes_and_halfspaces.box(upper=2.0).value(jnp.array([2.00001, -jnp.inf])) == 0


def test_bounds_may_be_trees_with_one_leaf_each():
    x = {"a": jnp.array([3.0, -3.0]), "b": jnp.array([[3.0, -3.0]]), "c": optax.MaskedNode()}
    upper = {"a": jnp.array([1.0, 2.0]), "b": jnp.inf, "c": {"d": 1.0}}
    moved = boxes_and_halfspaces.box({"a": -1.0, "b": 0.0, "c": 0.0}, upper).prox(x, 1.0)
    np.testing.assert_array_equal(moved["a"], [1.0, -1.0])
    np.testing.assert_array_equal(moved["b"], [[3.0, 0.0]])
    assert boxes_and_halfspaces.box(-1.0, upper).value(moved) == 0


def test_bounds_may_be_traced_and_swept():
    moved = jax.vmap(lambda u: boxes_and_halfspaces.box(-u, u).prox(jnp.array([-3.0, 0.5]), 1.0))(
        jnp.arange(1, 3.0)
    )
    np.testing.assert_array_equal(moved, [[-1.0, 0.5], [-2.0, 0.5]])


def test_what_a_box_leaves_of_a_gradient_is_what_can_still_be_descended():
    x, v = jnp.array([1.0, 1.0, -1.0, -1.0, 0.0]), jnp.array([2.0, -2.0, 2.0, -2.0, 2.0])
    left = boxes_and_halfspaces.box(-1.0, 1.0).residual(x, v)
    np.testing.assert_array_equal(left, [0.0, -2.0, 2.0, 0.0, 2.0])


def test_the_middle_of_a_sphere_goes_to_its_diagonal():
    # x / |x| would be NaN here.
    for axis, expected in ((None, 3.0 / 12**0.5), (1, 3.0 / 3**0.5)):
        prox = lambda x: balls.l2_sphere(3.0, axis=axis).prox(x, 1.0)  # noqa: B023
        all_of = in_numpy(lambda x: (prox(x), jax.jacfwd(prox)(x), jax.jacrev(prox)(x)))  # noqa: B023
        moved, *jacobians = all_of(np.zeros(SHAPE, np.float32))
        np.testing.assert_allclose(moved, np.full(SHAPE, expected), rtol=1e-6)
        assert not np.any(jacobians)


def test_norms_of_any_scale_neither_overflow_nor_vanish():
    sphere, ball = compiled(balls.l2_sphere(2.0)), compiled(balls.l2_ball(2.0))
    unit = np.array([3.0, -0.4, 0.0]) / np.hypot(3.0, 0.4)
    for scale in (1e-36, 1e-25, 1.0, 1e25, 1e38):
        x, inside = np.float32(scale) * np.float32([3.0, -0.4, 0.0]) / 5, scale < 2
        np.testing.assert_allclose(sphere.prox(x, 1.0), 2 * unit, rtol=1e-6)
        np.testing.assert_allclose(ball.prox(x, 1.0), x if inside else 2 * unit, rtol=1e-6)
        assert (ball.value(x) == 0) == inside


def test_infinite_entries_decide_the_direction():
    x = np.float32([np.inf, 5.0, -np.inf, 0.0])
    for make in (balls.l2_ball, balls.l2_sphere):
        np.testing.assert_allclose(compiled(make(2.0)).prox(x, 1.0), [2**0.5, 0.0, -(2**0.5), 0.0])


@pytest.mark.parametrize("make", [balls.l2_ball, balls.l2_sphere])
def test_a_point_of_a_ball_keeps_its_bits(make):
    for axis in (None, 0, 1):
        prox = compiled(make(1.5, axis=axis)).prox
        moved = prox(3 * normal(1, SHAPE), 1.0)
        again = prox(moved, 1.0)
        np.testing.assert_array_equal(bits(again), bits(moved))


def test_rows_of_an_embedding_get_their_norms():
    x, radii = {"table": normal(2, (5, 3)), "bias": np.float32(0.5)}, np.arange(1, 6, dtype=np.float32)
    moved = compiled(balls.l2_sphere({"table": radii[:, None], "bias": 2.0}, axis=-1)).prox(x, 1.0)
    np.testing.assert_allclose(np.linalg.norm(moved["table"], axis=1), radii, rtol=1e-6)
    assert moved["bias"] == 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["box", "l2_ball_rows", "l2_sphere_columns", "hyperplane"])
def test_half_precision_is_inside_by_its_own_tolerance(dtype, name):
    penalty = compiled(CASES[name].make(0.7))
    moved = penalty.prox(normal(3, SHAPE).astype(dtype), 1.0)
    assert moved.dtype == dtype
    assert penalty.value(moved) == 0
    assert penalty.value((1.05 * moved + 0.5).astype(dtype)) == np.inf


def test_a_tolerance_is_relative_and_can_be_given():
    x = jnp.array([1000.5, 0.0])
    assert balls.l2_ball(1000.0).value(x) == jnp.inf
    assert balls.l2_ball(1000.0, tolerance=1e-3).value(x) == 0
    assert balls.l2_ball(1000.0, tolerance=1e-4).value(x) == jnp.inf


def test_halfspaces_and_hyperplanes_in_closed_form():
    a, x = jnp.array([1.0, -2.0, 2.0]), jnp.array([3.0, 1.0, 4.0])  # a·x = 9, |a|² = 9
    np.testing.assert_allclose(boxes_and_halfspaces.halfspace(a, 0.0).prox(x, 0.1), [2.0, 3.0, 2.0])
    np.testing.assert_allclose(boxes_and_halfspaces.hyperplane(a, 18.0).prox(x, 0.1), [4.0, -1.0, 6.0])
    np.testing.assert_array_equal(bits(boxes_and_halfspaces.halfspace(a, 9.5).prox(x, 0.1)), bits(x))
    # Σ t a² = 1 + 8 = 9, and the last coordinate stays.
    t = jnp.array([1.0, 2.0, 0.0])
    np.testing.assert_allclose(boxes_and_halfspaces.halfspace(a, 0.0).prox(x, t), [2.0, 5.0, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(boxes_and_halfspaces.hyperplane(a, 0.0).prox(x, 0 * t), x)
    assert boxes_and_halfspaces.hyperplane(a, 9.0).value(x) == 0
    assert boxes_and_halfspaces.hyperplane(a, 10.0).value(x) == jnp.inf
    assert boxes_and_halfspaces.halfspace(a, 10.0).value(x) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_length_of_a_normal_does_not_matter(scale):
    a, x = np.float32([1.0, -2.0, 2.0]), np.float32([3.0, 1.0, 4.0])
    moved = compiled(boxes_and_halfspaces.hyperplane(scale * a, scale * 18.0)).prox(x, 0.1)
    np.testing.assert_allclose(moved, [4.0, -1.0, 6.0], rtol=1e-6)


def test_a_normal_spreads_over_coordinates_and_trees():
    x = {"a": normal(4, SHAPE), "b": normal(5, (2,))}
    plane = boxes_and_halfspaces.hyperplane({"a": 1.0, "b": np.float32([1.0, -1.0])}, 0.0)
    moved = compiled(plane).prox(x, 1.0)
    assert np.sum(moved["a"]) == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_allclose(moved["b"], np.full(2, np.mean(x["b"])), rtol=1e-6)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (1.0, 0.0),
        (np.array([0.0, 2.0]), 1.0),
        ({"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0}),
        ({"a": 0.0, "b": 2.0}, 1.0),
    ],
)
def test_a_lower_bound_above_its_upper_one_is_refused(lower, upper):
    with pytest.raises(ValueError, match=r"box: lower must be ≤ upper"):
        boxes_and_halfspaces.box(lower, upper)


def test_nonsense_sets_are_refused():
    with pytest.raises(ValueError, match="box: lower and upper must be numbers other than NaN"):
        boxes_and_halfspaces.box(float("nan"), 1.0)
    with pytest.raises(ValueError, match="box: upper must be a number"):
        boxes_and_halfspaces.box(0.0, None)
    with pytest.raises(ValueError, match="linf_ball: radius must be a number > 0"):
        boxes_and_halfspaces.linf_ball(0.0)
    with pytest.raises(ValueError, match="halfspace: normal must be different from 0"):
        boxes_and_halfspaces.halfspace(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="hyperplane: offset must be a finite number"):
        boxes_and_halfspaces.hyperplane(np.ones(3), float("inf"))
    with pytest.raises(ValueError, match=r"normal at w must be .*got shape \(2,\)"):
        boxes_and_halfspaces.hyperplane({"w": np.ones(2)}, 0.0).prox({"w": jnp.ones(3)}, 1.0)
    with pytest.raises(ValueError, match=r"lower must be .*got shape \(2,\)"):
        boxes_and_halfspaces.box(np.zeros(2), 1.0).prox(jnp.ones(3), 1.0)
    with pytest.raises(ValueError, match=r"l2_ball: step_size .*one number"):
        balls.l2_ball().prox(jnp.ones(SHAPE), ramp())
    with pytest.raises(ValueError, match="l2_sphere: tolerance must be a number ≥ 0"):
        balls.l2_sphere(tolerance=float("nan"))
    with pytest.raises(ValueError, match=r"x at ids must be .*int32"):
        boxes_and_halfspaces.non_negative().value({"ids": jnp.arange(3)})
