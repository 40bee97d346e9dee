"""Coordinatewise penalties: numbers worked out by hand, trees, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, Case, compiled, in_numpy, ramp


def positive_part(z):
    return np.where(z < 0, np.inf, z)


CASES = {
    "zero": Case(lambda s: penalties.zero(), metric=True, pointwise=lambda z, strength: 0 * z),
    "l1": Case(
        penalties.l1,
        metric=True,
        pointwise=lambda z, strength: strength * np.abs(z),
        dual_prox=lambda y, s: np.clip(y, -0.7, 0.7),
    ),
    "l1_by_coordinate": Case(
        lambda s: penalties.l1(s * ramp()),
        metric=True,
        pointwise=lambda z, strength: strength * np.asarray(ramp()) * np.abs(z),
        dual_prox=lambda y, s: np.clip(y, -0.7 * ramp(), 0.7 * ramp()),
    ),
    "l1_by_column": Case(lambda s: penalties.l1(s * ramp()[:1]), metric=True),
    "non_negative_l1": Case(
        penalties.non_negative_l1,
        metric=True,
        pointwise=lambda z, strength: strength * positive_part(z),
        dual_prox=lambda y, s: np.minimum(y, 0.7),
    ),
    "squared_l2": Case(
        penalties.squared_l2,
        metric=True,
        pointwise=lambda z, strength: strength * z**2 / 2,
        dual_prox=lambda y, s: y / (1 + s / 0.7),
    ),
    "squared_l2_by_coordinate": Case(lambda s: penalties.squared_l2(s * ramp()), metric=True),
    "elastic_net": Case(
        lambda s: penalties.elastic_net(s, 2 * s),
        metric=True,
        pointwise=lambda z, strength: strength * np.abs(z) + strength * z**2,
        # g* = max(|y| - 0.7, 0)²/2.8
        dual_prox=lambda y, s: np.where(
            np.abs(y) <= 0.7, y, np.sign(y) * (np.abs(y) + 0.7 * s / 1.4) / (1 + s / 1.4)
        ),
    ),
}

MAKERS = [penalties.l1, penalties.non_negative_l1, penalties.squared_l2, penalties.elastic_net]
every_maker = pytest.mark.parametrize("make", MAKERS)


def test_the_elastic_net_is_lasso_then_shrinkage():
    x = normal(0, SHAPE)
    moved = compiled(penalties.elastic_net(0.3, 2.0)).prox(x, 0.5)
    np.testing.assert_allclose(moved, (x - np.clip(x, -0.15, 0.15)) / 2.0, rtol=1e-6)


def test_squared_l2_has_the_half_that_its_docstring_says():
    # jaxopt 0.8.5 documents l2reg |y|² for prox_ridge and computes l2reg/2 |y|².
    x = jnp.array([4.0])
    assert penalties.squared_l2(1.0).value(x) == 8.0
    assert penalties.squared_l2(1.0).prox(x, 1.0) == 2.0


@pytest.mark.parametrize("strength", [2, np.float32(2.0), np.array(2.0), jnp.array(2.0)])
def test_strengths_of_every_kind_of_number_serve_trees(strength):
    # jaxopt 0.8.5 prox_elastic_net fails on trees for int, NumPy and traced strengths.
    x = {"a": jnp.array([4.0, -1.0])}
    moved = penalties.elastic_net(strength, strength).prox(x, 0.5)["a"]
    np.testing.assert_allclose(moved, [1.5, 0.0])
    traced = jax.jit(lambda s: penalties.elastic_net(s, s).prox(x, 0.5))(strength)["a"]
    np.testing.assert_allclose(traced, moved)


def test_a_float32_strength_leaves_bfloat16_what_it_is():
    # jaxopt 0.8.5 prox_lasso promotes to float32 here.
    x = jnp.array([4.0, -1.0], jnp.bfloat16)
    assert penalties.l1(jnp.array(0.5, jnp.float32)).prox(x, 1.0).dtype == jnp.bfloat16


def test_infinite_weights_stay_infinite():
    x = jnp.array([jnp.inf, -jnp.inf, 1.0])
    np.testing.assert_array_equal(penalties.l1(2.0).prox(x, 1.0), [jnp.inf, -jnp.inf, 0.0])


def test_soft_thresholding_is_exact_at_every_scale():
    prox = in_numpy(lambda x, s: penalties.l1(s).prox(x, 1.0))
    for size in (1e-6, 1e-3, 1.0, 1e3, 1e6):
        exact = size * np.float64(normal(1, SHAPE))
        moved = prox(exact.astype(np.float32), 0.5 * size)
        exact = np.sign(exact) * np.maximum(np.abs(exact) - 0.5 * size, 0)
        np.testing.assert_allclose(moved, exact, rtol=0, atol=2e-7 * size)


@every_maker
def test_a_tree_is_its_leaves(make, variant):
    x = {"a": normal(14, (2, 3)), "b": [normal(15, (4,)), None, optax.MaskedNode()]}
    of = variant(lambda x: (make(0.7).prox(x, 0.5), make(0.7).value(x)))
    (moved, value), (one, value_one), (two, value_two) = of(x), of(x["a"]), of(x["b"][0])
    assert jax.tree.structure(moved) == jax.tree.structure(x)
    np.testing.assert_allclose(moved["a"], one, atol=1e-7)
    np.testing.assert_allclose(moved["b"][0], two, atol=1e-7)
    np.testing.assert_allclose(value, float(value_one) + float(value_two), rtol=1e-6)


@every_maker
def test_empty_arrays_and_scalars_pass(make):
    penalty, shapes = make(0.5), [(0,), (0, 3), (3, 0), ()]
    of = lambda x: (penalty.prox(x, 0.5), penalty.value(x), jax.grad(penalty.value)(x))
    results = jax.jit(lambda: [of(jnp.ones(shape)) for shape in shapes])()
    for shape, (moved, value, slope) in zip(shapes, results, strict=True):
        assert moved.shape == slope.shape == shape and value.shape == ()
        assert float(value) > 0 or 0 in shape


def test_strengths_may_differ_by_leaf_and_by_coordinate():
    x = {"a": jnp.array([3.0, -3.0]), "b": jnp.array([[3.0, -3.0]])}
    strength = {"a": jnp.array([1.0, 2.0]), "b": 0.0}
    moved = penalties.l1(strength).prox(x, 0.5)
    np.testing.assert_allclose(moved["a"], [2.5, -2.0])
    np.testing.assert_allclose(moved["b"], [[3.0, -3.0]])
    assert penalties.l1(strength).value(x) == 9
    assert penalties.squared_l2(strength).value(x) == 13.5


def test_strengths_over_a_hole_are_not_used():
    strength = {"a": 1.0, "b": {"c": 2.0}}
    x = {"a": jnp.array([3.0]), "b": optax.MaskedNode()}
    assert penalties.l1(strength).prox(x, 1.0)["a"] == 2


@every_maker
def test_step_sizes_may_differ_by_coordinate(make):
    x, step_sizes = {"w": normal(18, SHAPE)}, {"w": ramp()}
    penalty = compiled(make(0.7))
    moved = penalty.prox(x, step_sizes)["w"]
    single = jax.jit(jax.vmap(make(0.7).prox))(x["w"].ravel(), ramp().ravel())
    np.testing.assert_allclose(moved.ravel(), single, atol=1e-7)
    np.testing.assert_array_equal(moved, penalty.prox(x["w"], ramp()))


@pytest.mark.parametrize(
    "strength", [-1.0, float("nan"), "1", None, {}, lambda count: 0.1, np.array([1.0, -1.0])]
)
@every_maker
def test_a_strength_that_is_none_is_refused(make, strength):
    with pytest.raises(ValueError, match=rf"{make.__name__}: .*strength must be"):
        make(strength)


def test_a_negative_step_size_is_refused():
    with pytest.raises(ValueError, match=r"l1: step_size must be a number ≥ 0"):
        penalties.l1().prox(jnp.ones(2), -0.1)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_params_that_are_not_real_are_refused(dtype, variant):
    x = {"block": {"ids": jnp.ones(2, dtype)}}
    with pytest.raises(ValueError, match=rf"x at block/ids must be .*{jnp.dtype(dtype)}.*penalties\.masked"):
        variant(lambda x: penalties.l1().prox(x, 0.1))(x)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": 1.0}, "nothing at b"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "unknown to x at c"),
        ({"a": 1.0, "b": np.ones(2)}, "at b"),
    ],
)
def test_trees_that_do_not_match_are_refused_with_the_path(other, message):
    x = {"a": jnp.array(1.0), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=rf"l1: strength .*{message}"):
        penalties.l1(other).prox(x, 0.1)
    with pytest.raises(ValueError, match=rf"l1: step_size .*{message}"):
        penalties.l1().prox(x, other)
    with pytest.raises(ValueError, match=rf"translate: anchor .*{message}"):
        penalties.translate(penalties.l1(), other).prox(x, 0.1)


def test_a_penalty_cannot_be_called():
    assert not callable(penalties.l1())
