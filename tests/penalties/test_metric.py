"""Groups in a diagonal metric, and the step sizes that make one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties import _metric
from proxlm.penalties.groups import grouping
from proxlm.penalties.groups import penalties as groups
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, compiled, in_numpy, ramp
from tests.penalties.test_groups import CASES, TILES, group_mcp


def bits(x):
    return np.asarray(x).view(np.uint32)


def by_bisection(x, t, strength, curvature=0.0):
    """Rows as groups, in float64: y_i = x_i s / (s + t_i φ'(s)), s by bisection on |y(s)| = s."""
    x, t = np.asarray(x, np.float64), np.asarray(t, np.float64)
    norm = lambda y: np.linalg.norm(y, axis=-1, keepdims=True)
    scale = lambda s: s / (s + t * np.maximum(strength - curvature * s, 0.0))
    low, high = np.zeros_like(norm(x)), norm(x)
    for _ in range(100):
        s = 0.5 * (low + high)
        longer = norm(x * scale(s)) > s
        low, high = np.where(longer, s, low), np.where(longer, high, s)
    return np.where(norm(x / (strength * t)) <= 1, 0.0, x * scale(s))


METRIC_PROX = in_numpy(lambda x, t, s: groups.group_lasso(s, 1, "none").prox(x, t))


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 8.0])
def test_the_root_is_that_of_bisection(spread):
    rng = np.random.default_rng(0)
    t = 10 ** rng.uniform(-spread / 2, spread / 2, (50, 40))
    x = rng.normal(size=(50, 40)) * 10 ** rng.uniform(-spread / 2, spread / 2, (50, 1))
    # From groups that stay as they are to groups that die or nearly so.
    share = np.concatenate([np.geomspace(1e-6, 0.9, 40), 1 - np.geomspace(0.1, 1e-4, 8), [1.01, 2]])
    strength = np.linalg.norm(x / t, axis=1, keepdims=True) * share[:, None]
    expected = by_bisection(x, t, strength)
    moved = METRIC_PROX(*(np.float32(a) for a in (x, t, strength)))
    scale = np.abs(x).max(1, keepdims=True)
    np.testing.assert_allclose(moved / scale, expected / scale, atol=3e-6)
    np.testing.assert_array_equal(np.any(moved != 0, axis=1), share < 1)


def test_the_root_of_a_concave_group_is_that_of_bisection():
    rng = np.random.default_rng(1)
    t = rng.uniform(0.0, 1.4, (100, 5)) + 1e-3
    x = rng.normal(size=(100, 5)) * rng.uniform(0.0, 2.0, (100, 1)) ** 2
    expected = by_bisection(x, t, 1.0, 1 / 1.5)
    moved = compiled(group_mcp(1.0, 1, "none", 1.5)).prox(np.float32(x), np.float32(t))
    np.testing.assert_allclose(moved, expected, atol=2e-5)
    dead, kept = np.all(expected == 0, 1), np.all(expected == x, 1)
    assert 10 < dead.sum() and 10 < kept.sum() and dead.sum() + kept.sum() < 90
    np.testing.assert_array_equal(np.all(moved == 0, 1), dead)


@pytest.mark.parametrize("name", ["group_columns", "group_tiles", "sparse_group"])
def test_derivatives_in_a_metric_are_symmetric_and_finite(name):
    # The Jacobian is (1 + t H)⁻¹, H the second derivative of g: it is symmetric times t.
    penalty, t = CASES[name].make(0.7), ramp()
    jacobian = in_numpy(lambda x: jax.jacrev(penalty.prox)(x, t).reshape(12, 12))
    both = jacobian(normal(2, SHAPE)) * t.reshape(1, 12)
    np.testing.assert_allclose(both, both.T, atol=3e-6)
    for x in (np.zeros(SHAPE, np.float32), 1e-25 * normal(3, SHAPE)):
        assert np.all(np.isfinite(jacobian(x)))


def test_derivatives_are_those_of_differences():
    penalty, x, t = group_mcp(0.7, 1), normal(4, SHAPE), ramp()

    def total(x, t, strength):
        weights = np.linspace(-1.0, 2.0, 12).reshape(SHAPE)
        return jnp.sum(weights * groups.group_lasso(strength, 0).prox(x, t))

    with jax.enable_x64(True):
        given = [np.asarray(a, np.float64) for a in (x, t, 0.4)]
        forward = jax.jit(jax.jacfwd(total, (0, 1, 2)))(*given)
        backward = jax.jit(jax.jacrev(total, (0, 1, 2)))(*given)
        step = 1e-6
        moved = jax.jit(total)
        for i, exact in enumerate(forward):
            np.testing.assert_allclose(backward[i], exact, rtol=1e-9, atol=1e-12)
            ends = [moved(*given[:i], np.asarray(given[i]) + h, *given[i + 1 :]) for h in (step, -step)]
            assert np.sum(exact) == pytest.approx(float((ends[0] - ends[1]) / (2 * step)), rel=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda t: jnp.sum(penalty.prox(x, t))))(t)))


def test_shortcuts_in_a_metric_are_wrong():
    # The euclidean formula with the metric's threshold, and the norm of x/t in place of the root.
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=8), 10 ** rng.uniform(-1, 1, 8)
    strength = 0.4 * np.linalg.norm(x / t)
    exact = METRIC_PROX(np.float32(x)[None], np.float32(t)[None], strength)[0]
    euclidean = x * max(1 - strength * t.mean() / np.linalg.norm(x), 0)
    of_quotient = x * max(1 - strength / np.linalg.norm(x / t), 0)
    cost = lambda y: strength * np.linalg.norm(y) + np.sum((y - x) ** 2 / (2 * t))
    np.testing.assert_allclose(exact, by_bisection(x, t, strength), atol=1e-6)
    assert cost(np.asarray(exact)) < 0.95 * min(cost(euclidean), cost(of_quotient))


def test_a_group_is_zero_where_the_quotient_is_short():
    # |x/t| = |(0.6, 0.8)| = 1, though |x| / max t = 0.5 and |x| / min t = 5.
    x, t = np.float32([[0.6, -8.0]]), np.float32([[1.0, 10.0]])
    for strength, alive in [(1.001, False), (0.999, True)]:
        moved = METRIC_PROX(x, t, strength)
        assert np.all(moved != 0) == alive
        assert alive or np.all(bits(moved) == 0)


def test_coordinates_without_a_step_do_not_move():
    x, t = normal(5, SHAPE), ramp()
    x[1, 2] = t[0] = t[1, 2] = 0.0
    for name in ("group_columns", "group_tiles", "group_mcp", "sparse_group"):
        moved = compiled(CASES[name].make(3.0)).prox(x, t)
        np.testing.assert_array_equal(bits(moved[0]), bits(x[0]))
        assert moved[1, 2] == 0
    # One that is 0 already does not keep its group alive; any other does.
    penalty = compiled(groups.group_lasso(9.0, 0))
    np.testing.assert_array_equal(penalty.prox(np.float32([0.0, 1.0]), np.float32([0.0, 1.0])), 0)
    kept = penalty.prox(np.float32([1.0, 1.0]), np.float32([0.0, 1.0]))
    assert kept[0] == 1 and 0 < kept[1] < 0.1


def test_the_metric_prox_is_right_at_any_scale():
    x, t = normal(6, SHAPE), ramp()
    prox = in_numpy(lambda x, t, s: groups.group_lasso(s).prox(x, t))
    expected = prox(x, t, 0.7)
    assert np.any(expected != 0)
    for scale in (1e-25, 1e-6, 1e6, 1e25):
        np.testing.assert_allclose(prox(scale * x, t, 0.7 * scale) / scale, expected, atol=2e-6)
        if 1e-19 < scale < 1e19:
            np.testing.assert_allclose(prox(x, scale * t, 0.7 / scale), expected, atol=2e-6)


def test_nan_and_infinite_steps():
    x, prox = normal(8, SHAPE), compiled(groups.group_lasso(0.1)).prox
    spoilt = np.where(np.arange(12).reshape(SHAPE) == 5, np.float32(np.nan), x)
    np.testing.assert_array_equal(np.isnan(prox(spoilt, ramp())), np.arange(3) == 2 + np.zeros(SHAPE))
    t = ramp()
    t[2] = np.inf
    moved = prox(x, t)
    np.testing.assert_allclose(moved[2], 0, atol=1e-15)
    assert np.all(moved[:2] != 0)
    np.testing.assert_array_equal(prox(x, t * np.float32(np.inf)), 0)


def test_a_concave_group_keeps_what_is_long():
    x, t = np.float32([[5.0, 0.5, 1.0], [0.1, 0.5, 1.5]]), np.float32([[1.0, 1.0, 0.5], [2.0, 2.0, 1.0]])
    moved = compiled(group_mcp(0.7, 0, "none")).prox(x, t)
    np.testing.assert_array_equal(bits(moved[:, 0]), bits(x[:, 0]))
    np.testing.assert_array_equal(bits(moved[:, 1]), 0)
    assert np.all((moved[:, 2] > 0) & (moved[:, 2] < x[:, 2]))


def test_a_concave_group_with_long_steps_is_no_worse_than_staying_or_zero():
    strength, gamma = 1.0, 1.5
    penalty = group_mcp(strength, 1, "none", gamma)
    x, t = 3.0 * normal(9, (200, 3)), np.exp(1.5 * normal(10, (200, 3)))
    prox = compiled(penalty).prox
    moved = prox(x, t)

    def costs(z):
        norm = np.minimum(np.linalg.norm(z, axis=1), gamma * strength)
        return strength * norm - norm**2 / (2 * gamma) + np.sum((z - x) ** 2 / (2 * t), axis=1)

    assert np.any(t > gamma)
    for other in (x, np.zeros_like(x)):
        assert np.all(costs(moved) <= costs(other) + 1e-5)
    # With one step for all this is the minimiser: hard thresholding at λ √(γ t).
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    moved = prox(x, np.full((200, 3), 2.0, np.float32))
    np.testing.assert_array_equal(moved, np.where(norm > (gamma * 2.0) ** 0.5, x, 0.0))


def test_linked_groups_in_a_metric():
    over = grouping.linked({"up": 1, "down": 0})
    x = {"up": normal(11, (3, 4)), "down": normal(12, (4, 2)), "head": normal(13, (2,))}
    t = jax.tree.map(np.exp, x)
    prox = jax.jit(groups.group_lasso(0.6, over, "none").prox)
    moved = prox(x, t)
    for j in range(4):
        cut = lambda tree, j=j: np.concatenate([tree["up"][:, j], tree["down"][j]])
        expected = by_bisection(cut(x), cut(t), 0.6)
        np.testing.assert_allclose(cut(moved), expected, atol=2e-6)
    np.testing.assert_array_equal(moved["head"], x["head"])
    # A tree of numbers is a metric too, with a number for each leaf.
    moved = prox(x, {"up": 0.5, "down": 0.5, "head": 0.5})
    expected = prox(x, 0.5)
    np.testing.assert_allclose(moved["up"], expected["up"], atol=1e-6)


def test_metric_prox_in_half_precision_and_under_vmap():
    x, t = normal(14, SHAPE).astype(jnp.bfloat16), ramp()
    penalty = compiled(groups.group_lasso(0.4, TILES))
    moved = penalty.prox(x, t)
    assert moved.dtype == jnp.bfloat16
    expected = penalty.prox(x.astype(jnp.float32), t)
    np.testing.assert_array_equal(moved, expected.astype(jnp.bfloat16))
    stacked = jax.jit(jax.vmap(penalty.prox))(np.stack([x, x]), np.stack([t, 2 * t]))
    np.testing.assert_array_equal(stacked[0], moved)


STEP_SIZES = jax.jit(_metric.step_sizes)


def test_step_sizes_by_hand():
    d = {"w": np.float32([3.0, 4.0, 0.0, 0.0]), "b": np.float32([0.5])}
    t = _metric.step_sizes(1.0, d, floor=0.1, cap=100.0)
    np.testing.assert_allclose(t["w"], [1 / 3, 0.25, 4.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(t["b"], [2.0])
    np.testing.assert_allclose(_metric.step_sizes(1.0, d, floor=0.0, cap=7.0)["w"][2:], 7.0)
    assert np.all(np.isinf(_metric.step_sizes(1.0, d, floor=0.0, cap=np.inf)["w"][2:]))


def test_a_leaf_without_gradients_has_finite_steps():
    for dead in (np.zeros(3, np.float32), np.full(3, 1e-8, np.float32)):
        np.testing.assert_array_equal(STEP_SIZES(1e-3, dead), 10.0)
        np.testing.assert_array_equal(STEP_SIZES(0.0, dead), 0.0)
    assert jax.eval_shape(_metric.step_sizes, 1e-3, {"w": np.zeros((0, 3))})["w"].shape == (0, 3)


def test_weights_that_saw_no_gradient_are_not_killed_in_one_step():
    # A row of an embedding that no text had: v = 0, so D = ε. The others have |gradient| = 1e-3.
    x = 0.02 * normal(15, (20, 8))
    d = np.float32(1e-3 * (np.arange(20) != 3)[:, None] + np.full((20, 8), 1e-8))
    penalty = compiled(groups.group_lasso(1e-4, 1))
    naive = penalty.prox(x, 1e-3 / d)
    np.testing.assert_array_equal(naive[3], 0)
    kept = penalty.prox(x, _metric.step_sizes(1e-3, d))
    assert np.linalg.norm(kept[3]) > 0.4 * np.linalg.norm(x[3])
    np.testing.assert_allclose(kept[:3], naive[:3], rtol=1e-6)


def test_step_sizes_are_traced_and_scale():
    d = np.exp(normal(16, (5,)))
    swept = np.asarray(jax.jit(jax.vmap(_metric.step_sizes, (0, None)))(np.float32([0.1, 0.2]), d))
    np.testing.assert_allclose(swept[1], 2 * swept[0], rtol=1e-6)
    np.testing.assert_allclose(STEP_SIZES(1e25, 1e25 * d), STEP_SIZES(1.0, d), rtol=1e-6)
    assert jax.eval_shape(_metric.step_sizes, 0.1, d.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be a number ≥ 0"),
        ({"diagonal": jnp.array([-1.0])}, "diagonal must be a number ≥ 0"),
        ({"floor": float("nan")}, "floor must be a number ≥ 0"),
        ({"cap": 0.0}, "cap must be a number > 0"),
    ],
)
def test_nonsense_step_sizes_are_refused(given, message):
    with pytest.raises(ValueError, match="step_sizes: " + message):
        _metric.step_sizes(**{"learning_rate": 0.1, "diagonal": jnp.ones(1)} | given)
