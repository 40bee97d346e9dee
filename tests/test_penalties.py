"""Laws that every penalty obeys, and the numbers of each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties
from tests.arrays import normal

SHAPE = (4, 3)


def ramp():
    return jnp.linspace(0.2, 1.8, 12).reshape(SHAPE)


def anchor():
    return normal(100, SHAPE)


# strength -> penalty on an array of SHAPE.  A new penalty gets every law below by one line here.
PENALTIES = {
    "l1": penalties.l1,
    "l1_by_coordinate": lambda s: penalties.l1(s * ramp()),
    "l1_by_column": lambda s: penalties.l1(s * ramp()[:1]),
    "squared_l2": penalties.squared_l2,
    "squared_l2_by_coordinate": lambda s: penalties.squared_l2(s * ramp()),
    "group_columns": lambda s: penalties.group_lasso(s, axis=0),
    "group_rows_unweighted": lambda s: penalties.group_lasso(s, axis=-1, weight="none"),
    "group_by_strength": lambda s: penalties.group_lasso(s * ramp()[:1], axis=0),
    "group_whole": lambda s: penalties.group_lasso(s, axis=None),
    "shifted_l1": lambda s: penalties.shift(penalties.l1(s), anchor()),
    "shifted_squared_l2": lambda s: penalties.shift(penalties.squared_l2(s), anchor()),
    "shifted_group": lambda s: penalties.shift(penalties.group_lasso(s), anchor()),
}
SPARSE = [name for name in PENALTIES if name.startswith(("l1", "group"))]

every_penalty = pytest.mark.parametrize("make", PENALTIES.values(), ids=PENALTIES.keys())
every_sparse = pytest.mark.parametrize("make", [PENALTIES[n] for n in SPARSE], ids=SPARSE)


def bits(x):
    return np.asarray(x).view(np.uint32)


def probes_around(best, x):
    """What an optimum has to beat: what a wrong formula tends to return, and noise."""
    keep_all_but_one = 1.0 - jnp.eye(best.size).reshape(-1, *best.shape)
    structured = [jnp.zeros_like(x), x, anchor(), -best, 0.99 * best, 1.01 * best, 0.5 * (x + best)]
    noise = normal(7, (200, *best.shape))
    return jnp.concatenate(
        [
            jnp.stack(structured),
            keep_all_but_one * best[None],
            best[None] + (1.0 - keep_all_but_one) * 0.05,
            best[None] + 0.1 * noise,
            best[None] + 0.01 * noise,
        ]
    )


@every_penalty
@pytest.mark.parametrize("step_size", [0.1, 1.0])
def test_prox_minimises_its_own_objective(make, step_size, variant):
    penalty, x = make(0.7), normal(0, SHAPE)

    def objective(z):
        return penalty.value(z) + 0.5 * jnp.sum(jnp.square(z - x)) / step_size

    best = variant(penalty.prox)(x, step_size)
    others = jax.vmap(objective)(probes_around(best, x))
    assert jnp.min(others) >= objective(best) - 3e-6 * (1 + jnp.abs(objective(best)))


@every_penalty
def test_prox_is_firmly_nonexpansive(make):
    penalty = make(0.7)
    prox = jax.vmap(lambda x: penalty.prox(x, 0.6))
    x, y = 2.0 * normal(1, (100, *SHAPE)), 2.0 * normal(2, (100, *SHAPE))
    difference = prox(x) - prox(y)
    slack = jnp.sum(difference * (x - y - difference), axis=(1, 2))
    assert jnp.min(slack) >= -1e-4


@every_penalty
def test_jacobian_of_prox_is_symmetric_with_spectrum_in_the_unit_interval(make):
    jacobian = jax.jacfwd(lambda x: make(0.7).prox(x, 0.6))(normal(3, SHAPE)).reshape(12, 12)
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-6)
    spectrum = np.linalg.eigvalsh(np.asarray(jacobian))
    assert spectrum.min() >= -1e-6
    assert 0 < spectrum.max() <= 1 + 1e-6


@every_penalty
def test_gradient_of_the_moreau_envelope_is_the_step_over_its_size(make):
    penalty, x, step_size = make(0.7), normal(4, SHAPE), 0.6

    def envelope(x):
        z = penalty.prox(x, step_size)
        return penalty.value(z) + 0.5 * jnp.sum(jnp.square(z - x)) / step_size

    expected = (x - penalty.prox(x, step_size)) / step_size
    np.testing.assert_allclose(jax.grad(envelope)(x), expected, atol=2e-5)


def project_on_balls(y, radius, axis):
    norm = np.linalg.norm(y, axis=axis, keepdims=True)
    return y * np.minimum(1.0, radius / norm)


CONJUGATES = {  # prox of s g* at y, with strength 0.7, written without the library
    "l1": lambda y, s: np.clip(y, -0.7, 0.7),
    "l1_by_coordinate": lambda y, s: np.clip(y, -0.7 * ramp(), 0.7 * ramp()),
    "squared_l2": lambda y, s: y / (1 + s / 0.7),
    "group_columns": lambda y, s: project_on_balls(y, 0.7 * 2.0, 0),
    "group_rows_unweighted": lambda y, s: project_on_balls(y, 0.7, 1),
    "group_whole": lambda y, s: project_on_balls(y, 0.7 * 12**0.5, (0, 1)),
    "shifted_l1": lambda y, s: np.clip(y - s * np.asarray(anchor()), -0.7, 0.7),
}


@pytest.mark.parametrize("name", CONJUGATES)
@pytest.mark.parametrize("step_size", [0.2, 1.5])
def test_moreau_identity_with_the_conjugate(name, step_size):
    x = 2.0 * normal(5, SHAPE)
    dual = CONJUGATES[name](np.asarray(x) / step_size, 1 / step_size)
    primal = PENALTIES[name](0.7).prox(x, step_size)
    np.testing.assert_allclose(primal + step_size * dual, x, atol=3e-6)


@every_penalty
def test_strength_zero_changes_no_bit(make, variant):
    scales = jnp.array([1e-25, 1e-3, 1.0, 1e20])[:, None]
    x = scales * normal(6, SHAPE)
    np.testing.assert_array_equal(bits(variant(make(0.0).prox)(x, 0.5)), bits(x))


@every_penalty
def test_step_size_zero_changes_no_bit(make):
    x = jnp.array([1e-25, 1e-3, 1.0, 1e20])[:, None] * normal(6, SHAPE)
    np.testing.assert_array_equal(bits(make(0.7).prox(x, 0.0)), bits(x))


@every_penalty
def test_a_huge_step_goes_to_the_minimiser(make):
    centre = make(1.0).prox(normal(8, SHAPE), 1e30)
    assert float(make(1.0).value(centre)) < 1e-12
    assert float(make(1.0).value(centre + 0.1)) > 0.01


@every_penalty
def test_nan_comes_out_where_it_went_in(make, variant):
    x = normal(9, SHAPE).at[1, 2].set(jnp.nan)
    penalty = make(0.1)
    assert jnp.isnan(variant(penalty.prox)(x, 0.5)[1, 2])
    assert jnp.isnan(penalty.value(x))


def test_nan_stays_inside_its_group():
    x = normal(9, SHAPE).at[1, 2].set(jnp.nan)
    moved = penalties.group_lasso(0.1, axis=0).prox(x, 0.5)
    np.testing.assert_array_equal(jnp.isnan(moved), jnp.zeros(SHAPE, bool).at[:, 2].set(True))


@every_sparse
def test_zeros_are_exact_and_positive(make, variant):
    x = jnp.array([1e-3, 1.0, 1.0, 1e-3])[:, None] * normal(10, SHAPE)
    moved = variant(make(30.0).prox)(x, 1.0)
    np.testing.assert_array_equal(bits(moved), 0)


@every_penalty
@pytest.mark.parametrize("strength", [0.0, 0.7])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-21, 1e-19])
def test_derivatives_at_and_near_zero_are_finite(make, strength, size):
    penalty, x = make(strength), size * normal(11, SHAPE)
    assert jnp.all(jnp.isfinite(jax.grad(penalty.value)(x)))
    for step_size in (0.0, 0.5):
        jacobian = jax.jacrev(penalty.prox)(x, step_size)
        assert jnp.all(jnp.isfinite(jacobian))


@every_penalty
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_the_float32_result_rounded(make, dtype, variant):
    x = normal(12, SHAPE).astype(dtype)
    moved = variant(make(0.7).prox)(x, 0.3)
    assert moved.dtype == dtype
    assert make(0.7).value(x).dtype == jnp.float32
    expected = make(0.7).prox(x.astype(jnp.float32), 0.3).astype(dtype)
    np.testing.assert_array_equal(moved, expected)


@every_penalty
def test_float64_stays_float64(make):
    with jax.enable_x64(True):
        x = jnp.linspace(-1.0, 2.0, 12, dtype=jnp.float64).reshape(SHAPE)
        moved = make(0.7).prox(x, 0.3)
        assert moved.dtype == make(0.7).value(x).dtype == jnp.float64
        single = make(0.7).prox(x.astype(jnp.float32), 0.3)
        np.testing.assert_allclose(moved, single, atol=1e-6)
        assert jnp.any(moved != single)


@every_penalty
def test_vmap_over_strengths_is_the_loop(make):
    x, strengths = normal(13, SHAPE), jnp.array([0.0, 0.3, 2.0])
    swept = jax.vmap(lambda s: (make(s).value(x), make(s).prox(x, 0.5)))(strengths)
    looped = [(make(s).value(x), make(s).prox(x, 0.5)) for s in (0.0, 0.3, 2.0)]
    for i, (value, moved) in enumerate(looped):
        np.testing.assert_allclose(swept[0][i], value, rtol=1e-6)
        np.testing.assert_allclose(swept[1][i], moved, atol=1e-6)


@pytest.mark.parametrize(
    "make", [penalties.l1, penalties.squared_l2, lambda s: penalties.group_lasso(s, axis=-1)]
)
def test_a_tree_is_its_leaves(make, variant):
    x = {"a": normal(14, (2, 3)), "b": [normal(15, (4,)), None, optax.MaskedNode()]}
    moved = variant(lambda x: make(0.7).prox(x, 0.5))(x)
    assert jax.tree.structure(moved) == jax.tree.structure(x)
    np.testing.assert_allclose(moved["a"], make(0.7).prox(x["a"], 0.5), atol=1e-7)
    np.testing.assert_allclose(moved["b"][0], make(0.7).prox(x["b"][0], 0.5), atol=1e-7)
    total = make(0.7).value(x["a"]) + make(0.7).value(x["b"][0])
    np.testing.assert_allclose(make(0.7).value(x), total, rtol=1e-6)


@every_penalty
def test_holes_cost_nothing(make):
    for nothing in (None, optax.MaskedNode()):
        assert make(0.7).value(nothing) == 0
        assert make(0.7).prox(nothing, 0.5) == nothing


@pytest.mark.parametrize("make", [penalties.l1, penalties.squared_l2, penalties.group_lasso])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_arrays_pass(make, shape):
    empty = jnp.zeros(shape)
    assert make(0.7).prox(empty, 0.5).shape == shape
    assert make(0.7).value(empty) == 0
    assert jax.grad(make(0.7).value)(empty).shape == shape


@pytest.mark.parametrize(
    ("make", "g"),
    [(penalties.l1, np.abs), (penalties.squared_l2, lambda z: 0.5 * z**2)],
)
def test_prox_is_the_minimum_on_a_grid(make, g):
    grid = np.linspace(-4, 4, 80001)
    for x in (-3.0, -0.8, 0.05, 0.71, 2.5):
        for threshold in (0.1, 0.7, 2.0):
            best = grid[np.argmin(threshold * g(grid) + 0.5 * (grid - x) ** 2)]
            assert make(threshold / 0.5).prox(x, 0.5) == pytest.approx(best, abs=1e-4)


def test_group_lasso_weighs_by_the_root_of_the_size():
    x = jnp.array([[3.0, 0.0], [4.0, 1.0]])
    assert penalties.group_lasso(2.0, axis=0).value(x) == pytest.approx(2 * 2**0.5 * (5 + 1))
    assert penalties.group_lasso(2.0, axis=0, weight="none").value(x) == pytest.approx(12)
    assert penalties.group_lasso(2.0, axis=None).value(x) == pytest.approx(4 * 26**0.5)
    moved = penalties.group_lasso(2.0, axis=0, weight="none").prox(x, 0.5)
    np.testing.assert_allclose(moved, [[2.4, 0.0], [3.2, 0.0]], rtol=1e-6)


def test_group_lasso_reduces_the_named_axes():
    x = normal(16, (2, 3, 4))
    for axis, other in [((0, 2), (-3, -1)), ((1,), -2), (2, -1), (None, (0, 1, 2))]:
        one = penalties.group_lasso(0.3, axis=axis).prox(x, 0.5)
        two = penalties.group_lasso(0.3, axis=other).prox(x, 0.5)
        np.testing.assert_array_equal(one, two)
    norms = np.linalg.norm(np.asarray(x).transpose(1, 0, 2).reshape(3, 8), axis=1)
    value = penalties.group_lasso(0.3, axis=(0, 2)).value(x)
    assert value == pytest.approx(0.3 * 8**0.5 * norms.sum(), rel=1e-6)


def test_groups_of_one_are_the_lasso():
    x = normal(17, SHAPE)
    moved = penalties.group_lasso(0.7, axis=()).prox(x, 0.5)
    np.testing.assert_allclose(moved, penalties.l1(0.7).prox(x, 0.5), atol=1e-7)
    scalar = penalties.group_lasso(1.0, axis=0).prox({"scale": jnp.array(-2.0)}, 0.5)
    assert scalar["scale"] == -1.5


def test_a_group_on_its_threshold_is_zero():
    moved = penalties.group_lasso(1.0, axis=0, weight="none").prox(jnp.array([-3.0, 4.0]), 5.0)
    np.testing.assert_array_equal(bits(moved), 0)


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
    assert penalties.shift(penalties.l1(1.0), {"a": jnp.ones(1), "b": {"c": 0.0}}).value(x) == 2


@pytest.mark.parametrize("make", [penalties.l1, penalties.squared_l2])
def test_step_sizes_may_differ_by_coordinate(make):
    x, step_sizes = {"w": normal(18, SHAPE)}, {"w": ramp()}
    moved = make(0.7).prox(x, step_sizes)["w"]
    single = [make(0.7).prox(v, t) for v, t in zip(x["w"].ravel(), ramp().ravel(), strict=True)]
    np.testing.assert_allclose(moved.ravel(), jnp.stack(single), atol=1e-7)
    np.testing.assert_array_equal(moved, make(0.7).prox(x["w"], ramp()))


def test_shift_returns_the_anchor_itself():
    centre = {"w": 1e3 * normal(19, SHAPE)}
    shifted = penalties.shift(penalties.l1(1e9), centre)
    np.testing.assert_array_equal(shifted.prox({"w": normal(20, SHAPE)}, 1.0)["w"], centre["w"])


def test_derivative_at_the_anchor_is_that_of_the_prox():
    shifted = penalties.shift(penalties.squared_l2(3.0), 2.0)
    assert jax.grad(shifted.prox)(2.0, 1.0) == 0.25


def test_shifting_twice_adds_up():
    x = normal(21, SHAPE)
    once = penalties.shift(penalties.group_lasso(0.5), anchor() + 1.0)
    ones = jnp.ones(SHAPE)
    twice = penalties.shift(penalties.shift(penalties.group_lasso(0.5), ones), anchor())
    np.testing.assert_allclose(once.prox(x, 0.5), twice.prox(x, 0.5), atol=1e-6)


@pytest.mark.parametrize(
    "strength", [-1.0, float("nan"), "1", None, {}, lambda count: 0.1, np.array([1.0, -1.0])]
)
@pytest.mark.parametrize("make", [penalties.l1, penalties.squared_l2, penalties.group_lasso])
def test_a_strength_that_is_none_is_refused(make, strength):
    with pytest.raises(ValueError, match=r"strength must be"):
        make(strength)


def test_a_negative_step_size_is_refused():
    with pytest.raises(ValueError, match=r"l1: step_size must be ≥ 0"):
        penalties.l1().prox(jnp.ones(2), -0.1)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_params_that_are_not_real_are_refused(dtype, variant):
    x = {"block": {"ids": jnp.ones(2, dtype)}}
    with pytest.raises(ValueError, match=rf"{jnp.dtype(dtype)} at block/ids.*optax\.masked"):
        variant(lambda x: penalties.l1().prox(x, 0.1))(x)
    with pytest.raises(ValueError, match="block/ids"):
        penalties.group_lasso().value(x)


@pytest.mark.parametrize("axis", [1, -2, (0, 1), (0, 0), (0, -1)])
def test_an_axis_that_a_leaf_lacks_is_refused_with_its_path(axis):
    penalty = penalties.group_lasso(axis=axis)
    with pytest.raises(ValueError, match=r"axis .* at norm/bias"):
        penalty.prox({"norm": {"bias": jnp.ones(3)}}, 0.1)


def test_nonsense_groups_are_refused():
    with pytest.raises(ValueError, match=r"axis must be an integer"):
        penalties.group_lasso(axis=0.5)
    with pytest.raises(ValueError, match=r"weight must be one of .*sqrt_size"):
        penalties.group_lasso(weight="size")
    with pytest.raises(ValueError, match=r"group_lasso: step_size .*one number"):
        penalties.group_lasso().prox(jnp.ones(SHAPE), ramp())


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
    with pytest.raises(ValueError, match=rf"shift: anchor .*{message}"):
        penalties.shift(penalties.l1(), other).prox(x, 0.1)


def test_shift_refuses_what_is_no_penalty():
    with pytest.raises(ValueError, match=r"expected a Penalty.*penalties\.l1"):
        penalties.shift(penalties.l1, jnp.ones(2))


def test_a_penalty_cannot_be_called():
    assert not callable(penalties.l1())
