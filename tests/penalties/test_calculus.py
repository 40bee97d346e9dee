"""Penalties made of penalties: on the same weights, on parts of a tree, in another basis."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, Case, anchor, compiled, ramp

SLOPE = normal(101, SHAPE)
TURN = np.linalg.qr(np.asarray(normal(102, (4, 4)), np.float64))[0].astype(np.float32)


def whole_norm(strength):
    return compiled(penalties.flattened(penalties.group_lasso(strength, axis=None, weight="none")))


def turned(penalty):
    return penalties.change_basis(penalty, lambda x: TURN @ x, lambda x: TURN.T @ x)


def huber(z, strength):
    inside = np.abs(z) <= strength / 2
    return np.where(inside, z**2, strength * np.abs(z) - strength**2 / 4)


CASES = {
    "scaled_l1": Case(
        lambda s: penalties.scale(penalties.l1(0.5), 2 * s),
        metric=True,
        pointwise=lambda z, strength: strength * np.abs(z),
        dual_prox=lambda y, s: np.clip(y, -0.7, 0.7),
    ),
    "shifted_l1": Case(
        lambda s: penalties.translate(penalties.l1(s), anchor()),
        metric=True,
        pointwise=lambda z, strength: strength * np.abs(z - np.asarray(anchor())),
        dual_prox=lambda y, s: np.clip(y - s * np.asarray(anchor()), -0.7, 0.7),
    ),
    "shifted_squared_l2": Case(lambda s: penalties.translate(penalties.squared_l2(s), anchor()), metric=True),
    "shifted_group": Case(lambda s: penalties.translate(penalties.group_lasso(s), anchor())),
    "add_lineared_l1": Case(
        lambda s: penalties.add_linear(penalties.elastic_net(s, s), s * SLOPE),
        metric=True,
        pointwise=lambda z, strength: strength * (np.abs(z) + z**2 / 2 + z * np.asarray(SLOPE)),
    ),
    "l1_and_quadratic": Case(
        lambda s: penalties.add_quadratic(penalties.l1(s), 2 * s),
        metric=True,
        pointwise=lambda z, strength: strength * (np.abs(z) + z**2),
    ),
    "envelope_of_l1": Case(
        lambda s: penalties.envelope(penalties.l1(s), 0.5),
        pointwise=huber,
        dual_prox=lambda y, s: np.clip(y / (1 + 0.5 * s), -0.7, 0.7),
    ),
    "envelope_of_group": Case(lambda s: penalties.envelope(penalties.group_lasso(s), 0.5)),
    "conjugate_of_squared_l2": Case(
        # (½ μ|x|²)* = |y|²/2μ, with μ = 1/s; strength 0 has no such writing
        lambda s: penalties.conjugate(
            penalties.squared_l2(1 / jnp.maximum(s, 1e-37)), lambda y: penalties.squared_l2(s).value(y)
        ),
        metric=True,
        pointwise=lambda z, strength: strength * z**2 / 2,
    ),
    "whole_norm": Case(whole_norm),
    "turned_l1": Case(lambda s: turned(penalties.l1(s))),
    "reshaped_group": Case(lambda s: penalties.reshaped(penalties.group_lasso(s, axis=-1), (3, 2, 2))),
    "masked_l1": Case(lambda s: penalties.masked(penalties.l1(s), lambda path, leaf: True)),
}


def test_the_conjugate_of_the_lasso_is_a_box():
    y = 3 * normal(0, SHAPE)
    prox = compiled(penalties.conjugate(penalties.l1(0.7))).prox
    np.testing.assert_allclose(prox(y, 0.4), np.clip(y, -0.7, 0.7), atol=1e-6)
    np.testing.assert_array_equal(prox(y, 0.0), y)


def test_the_conjugate_of_the_conjugate_is_the_penalty_again():
    y = normal(1, SHAPE)
    twice = compiled(penalties.conjugate(penalties.conjugate(penalties.elastic_net(0.3, 0.6))))
    expected = compiled(penalties.elastic_net(0.3, 0.6)).prox(y, ramp())
    np.testing.assert_allclose(twice.prox(y, ramp()), expected, atol=1e-6)


def test_a_conjugate_without_a_value_says_so():
    with pytest.raises(ValueError, match=r"conjugate: value must be the function"):
        penalties.conjugate(penalties.l1()).value(jnp.ones(2))


def test_scaling_composes_and_keeps_sets():
    x = normal(2, SHAPE)
    twice = compiled(penalties.scale(penalties.scale(penalties.l1(0.5), 3.0), 0.2))
    np.testing.assert_allclose(twice.prox(x, 1.0), x - np.clip(x, -0.3, 0.3), atol=1e-6)
    np.testing.assert_allclose(jax.jit(twice.residual)(x, 2 * x), 2 * x - 0.3 * np.sign(x), atol=1e-6)
    orthant = compiled(penalties.scale(penalties.non_negative_l1(0.0), 0.0))
    assert orthant.value(-jnp.ones(2)) == jnp.inf
    assert orthant.value(jnp.ones(2)) == 0


def test_a_quadratic_around_a_point_is_a_shifted_square_up_to_a_constant():
    x, c = normal(3, SHAPE), anchor()
    made = compiled(penalties.add_linear(penalties.add_quadratic(penalties.l1(0.0), 2.0), -2.0 * c))
    shifted = compiled(penalties.translate(penalties.squared_l2(2.0), c))
    np.testing.assert_allclose(made.prox(x, 0.7), shifted.prox(x, 0.7), atol=1e-6)
    constant = float(np.sum(np.square(c)))
    assert made.value(x) + constant == pytest.approx(float(shifted.value(x)), rel=1e-5)


def test_a_step_without_end_is_the_minimum_beside_a_quadratic():
    # |z - 3| + z² is least at ½
    made = penalties.add_quadratic(penalties.translate(penalties.l1(1.0), np.float32(3.0)), 2.0)
    assert float(jax.jit(made.prox)(np.float32(7.0), np.inf)) == 0.5


def test_shift_returns_the_anchor_itself():
    centre = {"w": 1e3 * normal(19, SHAPE)}
    shifted = compiled(penalties.translate(penalties.l1(1e9), centre))
    np.testing.assert_array_equal(shifted.prox({"w": normal(20, SHAPE)}, 1.0)["w"], centre["w"])


def test_derivative_at_the_anchor_is_that_of_the_prox():
    shifted = penalties.translate(penalties.squared_l2(3.0), 2.0)
    assert float(jax.jit(jax.grad(shifted.prox))(2.0, 1.0)) == 0.25


def test_shifting_twice_adds_up():
    x = normal(21, SHAPE)
    once = compiled(penalties.translate(penalties.group_lasso(0.5), anchor() + 1.0))
    ones = np.ones(SHAPE, np.float32)
    twice = compiled(penalties.translate(penalties.translate(penalties.group_lasso(0.5), ones), anchor()))
    np.testing.assert_allclose(once.prox(x, 0.5), twice.prox(x, 0.5), atol=1e-6)


def test_an_anchor_may_have_leaves_over_holes():
    x = {"a": jnp.array([3.0]), "b": optax.MaskedNode()}
    shifted = penalties.translate(penalties.l1(1.0), {"a": jnp.ones(1), "b": {"c": 0.0}})
    assert shifted.value(x) == 2


def test_the_whole_of_a_tree_has_one_norm():
    x = {"a": jnp.array([3.0]), "b": [jnp.array([[4.0]]), None]}
    assert whole_norm(2.0).value(x) == 10
    moved = whole_norm(2.0).prox(x, 1.0)
    np.testing.assert_allclose([moved["a"][0], moved["b"][0][0, 0]], [1.8, 2.4], rtol=1e-6)
    np.testing.assert_array_equal(whole_norm(6.0).prox(x, 1.0)["a"], 0)
    assert moved["b"][1] is None


def test_the_whole_of_mixed_dtypes_keeps_each():
    x = {"a": jnp.array([3.0], jnp.bfloat16), "b": jnp.array([4.0])}
    moved = whole_norm(2.0).prox(x, 1.0)
    assert (moved["a"].dtype, moved["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert moved["b"] == pytest.approx(2.4)


def test_the_whole_takes_a_tree_of_step_sizes():
    x = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([[4.0]])}
    moved = compiled(penalties.flattened(penalties.l1(1.0))).prox(x, {"a": jnp.array([1.0, 2.0]), "b": 0.5})
    np.testing.assert_allclose(moved["a"], [2.0, 0.0])
    np.testing.assert_allclose(moved["b"], [[3.5]])


def tree():
    return {"block": {"kernel": normal(4, (3, 2)), "bias": normal(5, (2,))}, "scale": np.ones(2, np.float32)}


def kind(path, leaf):
    return "matrix" if leaf.ndim == 2 else path.split("/")[-1]


MEMBERS = {"matrix": penalties.group_lasso(0.5), "bias": penalties.l1(0.3), "scale": penalties.zero()}
MEMBERS = {name: compiled(member) for name, member in MEMBERS.items()}


def test_a_separable_sum_acts_part_by_part():
    x, made = tree(), compiled(penalties.separable_sum(MEMBERS, kind))
    moved = made.prox(x, 0.5)
    block, old = moved["block"], x["block"]
    np.testing.assert_array_equal(block["kernel"], MEMBERS["matrix"].prox(old["kernel"], 0.5))
    np.testing.assert_array_equal(block["bias"], MEMBERS["bias"].prox(old["bias"], 0.5))
    np.testing.assert_array_equal(moved["scale"], x["scale"])
    parts = MEMBERS["matrix"].value(old["kernel"]) + MEMBERS["bias"].value(old["bias"])
    assert made.value(x) == pytest.approx(float(parts), rel=1e-6)


def test_labels_may_be_a_tree_and_lie_over_holes():
    labels = {"block": {"kernel": "matrix", "bias": "bias"}, "scale": "scale"}
    by_tree, by_path = (compiled(penalties.separable_sum(MEMBERS, of)) for of in (labels, kind))
    jax.tree.map(np.testing.assert_array_equal, by_tree.prox(tree(), 0.5), by_path.prox(tree(), 0.5))
    holed = tree() | {"block": optax.MaskedNode()}
    assert by_tree.prox(holed, 0.5)["block"] == optax.MaskedNode()


def test_a_part_may_have_one_budget():
    x = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "c": jnp.array([1.0])}
    one = compiled(penalties.masked(whole_norm(2.0), lambda path, leaf: path != "c"))
    moved = one.prox(x, 1.0)
    np.testing.assert_allclose([moved["a"][0], moved["b"][0], moved["c"][0]], [1.8, 2.4, 1.0])
    assert one.value(x) == 10


def test_step_sizes_of_a_separable_sum_may_differ():
    x = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    made = compiled(penalties.masked(penalties.l1(1.0), {"a": True, "b": False}))
    moved = made.prox(x, {"a": jnp.array([2.0]), "b": jnp.array([2.0])})
    assert (moved["a"][0], moved["b"][0]) == (1.0, 4.0)


def test_the_residual_of_a_sum_is_that_of_its_parts():
    x, v = tree(), jax.tree.map(np.ones_like, tree())
    members = {"matrix": penalties.squared_l2(2.0), "bias": penalties.l1(0.3)}
    made = penalties.separable_sum(members | {"scale": penalties.zero()}, kind)
    left = jax.jit(made.residual)(x, v)
    np.testing.assert_allclose(left["block"]["kernel"], 1 - 2 * x["block"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(left["scale"], 1.0)


def test_blocks_of_a_fused_axis_are_a_reshape():
    x = normal(6, (4, 6))
    fused = compiled(penalties.reshaped(penalties.group_lasso(0.4, axis=(0, 2)), (4, 3, 2)))
    apart = compiled(penalties.group_lasso(0.4, axis=(0, 2))).prox(x.reshape(4, 3, 2), 0.5)
    np.testing.assert_array_equal(fused.prox(x, 0.5), apart.reshape(4, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: penalties.translate(penalties.l1, jnp.ones(2)), r"translate: penalty must be a Penalty"),
        (lambda: penalties.scale(penalties.l1(), -1.0), r"scale: factor must be a number ≥ 0"),
        (lambda: penalties.add_quadratic(penalties.l1(), float("nan")), r"strength must be a number ≥ 0"),
        (lambda: penalties.envelope(penalties.l1(), 0.0), r"envelope: smoothing must be a number > 0"),
        (lambda: penalties.flattened(3), r"flattened: penalty must be a Penalty"),
        (lambda: penalties.separable_sum({"a": 3}, kind), r"penalties\['a'\] must be a Penalty"),
    ],
)
def test_what_cannot_be_composed_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_label_is_refused_with_its_path_and_the_known_ones():
    made = penalties.separable_sum({"matrix": penalties.l1()}, kind)
    with pytest.raises(
        ValueError, match=r"labels at block/bias must be one of \['matrix'\], got 'bias'.*penalties\.zero"
    ):
        made.prox(tree(), 0.1)


def test_an_anchor_of_another_shape_is_refused_with_its_path():
    made = penalties.translate(penalties.l1(), {"w": jnp.ones(3)})
    with pytest.raises(
        ValueError, match=r"translate: anchor at w must be of shape \(2,\), .*got shape \(3,\)"
    ):
        made.prox({"w": jnp.ones(2)}, 0.1)


def test_a_leaf_that_cannot_be_reshaped_is_refused_with_its_path():
    with pytest.raises(ValueError, match=r"reshaped: shape must be .*\(5,\) at w, got \(2, 2\)"):
        penalties.reshaped(penalties.l1(), (2, 2)).prox({"w": jnp.ones(5)}, 0.1)


def test_an_uneven_metric_is_refused_in_another_basis():
    with pytest.raises(ValueError, match=r"change_basis: step_size .* diagonal metric"):
        turned(penalties.l1(0.1)).prox(normal(7, SHAPE), ramp())
