"""Top-k, n:m and the soft 2:4 penalty: by hand, against a sort, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties.sets import cardinality, two_four
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import Case, compiled, in_numpy

top_k, n_m, soft_two_four = cardinality.top_k, cardinality.n_m, two_four.soft_two_four

CASES = {
    "top_k": Case(lambda s: top_k(5), convex=False, is_set=True, metric=True),
    "top_k_columns": Case(lambda s: top_k(2, axis=0), convex=False, is_set=True, metric=True),
    "n_m": Case(lambda s: n_m(2, 4, axis=0), convex=False, is_set=True, metric=True),
    "n_m_rows": Case(lambda s: n_m(1, 3), convex=False, is_set=True, metric=True),
    "soft_two_four": Case(lambda s: soft_two_four(s, axis=0), convex=False),
}


def largest(x, k):
    """NumPy's answer for one row: a stable sort, so that of equals the first stays."""
    kept = np.argsort(-np.abs(x), kind="stable")[:k]
    return np.where(np.isin(np.arange(x.size), kept), x, 0)


def rough(seed, shape):
    """Numbers with many ties, zeros of both signs, and scales far apart."""
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=shape), 1) * 10.0 ** rng.integers(-3, 4, shape)
    return x.astype(np.float32)


@pytest.mark.parametrize("k", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 59)), 7, 60])
def test_top_k_is_a_stable_sort(k):
    x = rough(0, (60,))
    prox = jax.jit(top_k(k).prox)
    for row in (x, np.ones(60, np.float32), np.zeros(60, np.float32), -np.sign(x)):
        np.testing.assert_array_equal(prox(row, 1.0), largest(row, k))


def test_top_k_in_groups_keeps_k_of_each():
    x = rough(1, (4, 5, 6))
    rows = np.apply_along_axis(largest, 1, x, 2)
    np.testing.assert_array_equal(jax.jit(top_k(2, axis=1).prox)(x, 1.0), rows)
    planes = np.stack([largest(x[:, j].ravel(), 9).reshape(4, 6) for j in range(5)], axis=1)
    np.testing.assert_array_equal(jax.jit(top_k(9, axis=(0, -1)).prox)(x, 1.0), planes)
    np.testing.assert_array_equal(jax.jit(top_k(9, axis=(2, 0)).prox)(x, 1.0), planes)


SHARES = [(2, 4), (1, 2), (5, 12), (70, 96)]
MORE = [pytest.param(*share, marks=pytest.mark.slow) for share in [(3, 3), (0, 4), (0, 96)]]


@pytest.mark.parametrize(("n", "m"), [*SHARES, *MORE])
def test_n_m_is_a_stable_sort_of_each_block(n, m):
    x = rough(2, (2 * m, 3))
    x[:, 0] = 1.0
    blocks = np.apply_along_axis(largest, 1, x.reshape(2, m, 3), n).reshape(x.shape)
    moved = jax.jit(n_m(n, m, axis=0).prox)(x, 1.0)
    np.testing.assert_array_equal(moved, blocks)
    np.testing.assert_array_equal(jax.jit(n_m(n, m).prox)(x.T, 1.0), blocks.T)


def test_kept_bits_are_kept_and_dropped_ones_are_positive_zero():
    x = np.float32([-3.0, -1e-25, -0.5, 2.0])
    moved = compiled(top_k(2)).prox(x, 1.0).view(np.uint32)
    np.testing.assert_array_equal(moved, x.view(np.uint32) * [1, 0, 0, 1])
    np.testing.assert_array_equal(compiled(n_m(4, 4)).prox(x, 1.0).view(np.uint32), x.view(np.uint32))


def test_values_count_nonzeros():
    x = np.float32([[1.0, 0.0, 2.0, -0.0], [0.0, 0.0, 1e-25, 0.0]])

    @jax.jit
    def values(x, spoilt):
        inside = top_k(3).value(x), top_k(2, axis=1).value(x), n_m(2, 4).value(x)
        outside = top_k(2).value(x), top_k(1, axis=0).value(x + x[:, ::-1]), n_m(1, 2).value(1 + x)
        return jnp.stack([*inside, *outside, top_k(3).value(spoilt)])

    spoilt = np.where(np.arange(8).reshape(2, 4) == 1, np.float32(np.nan), x)
    np.testing.assert_array_equal(values(x, spoilt), [0, 0, 0, np.inf, np.inf, np.inf, np.nan])


def test_nan_and_infinity_count_as_largest():
    x = np.float32([1.0, np.nan, -np.inf, 3.0])
    for penalty, last in ((top_k(2), -np.inf), (n_m(1, 2), -np.inf), (top_k(0), 0.0)):
        np.testing.assert_array_equal(compiled(penalty).prox(x, 1.0), [0.0, np.nan, last, 0.0])


def test_in_a_metric_the_dearest_to_move_are_kept():
    x, steps = np.float32([2.0, -1.0, 3.0, 0.5]), np.float32([4.0, 0.5, 1.0, 0.0])
    half, zeroed = compiled(n_m(2, 4)), np.float32([2.0, -1.0, 3.0, 0.0])
    # x²/t is 1, 2, 9 and ∞.
    np.testing.assert_array_equal(compiled(top_k(3)).prox(x, steps), [0.0, -1.0, 3.0, 0.5])
    np.testing.assert_array_equal(half.prox(x, steps), [0.0, 0.0, 3.0, 0.5])
    np.testing.assert_array_equal(compiled(top_k(1)).prox(zeroed, steps), [0.0, 0.0, 3.0, 0.0])
    np.testing.assert_array_equal(half.prox(x, 0.0), half.prox(x, 7.0))


def test_top_k_under_vmap_and_in_other_dtypes():
    x = rough(3, (5, 24))
    rows = jax.jit(jax.vmap(lambda row: top_k(3).prox(row, 1.0)))(x)
    np.testing.assert_array_equal(rows, compiled(top_k(3, axis=1)).prox(x, 1.0))
    half = x.astype(jnp.bfloat16)
    moved = compiled(top_k(7)).prox(half, 1.0)
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved, largest(np.asarray(half, np.float32).ravel(), 7).reshape(5, 24))
    with jax.enable_x64(True):
        wide = 1.0 + 1e-12 * np.arange(8)
        np.testing.assert_array_equal(compiled(top_k(3)).prox(wide, 1.0), largest(wide, 3))


def test_scalars_and_empty_leaves_pass():
    assert all(compiled(p).prox(np.float32(-2.0), 1.0) == -2 for p in (top_k(1), n_m(1, 1)))
    made, empty = (top_k(5, axis=0), n_m(2, 4, axis=0), soft_two_four(axis=0)), [(0,), (0, 3), (4, 0)]
    of = lambda x: [(p.prox(x, 1.0), p.value(x)) for p in made]
    for shape, results in zip(empty, jax.jit(lambda: [of(jnp.zeros(s)) for s in empty])(), strict=True):
        assert all(moved.shape == shape and float(value) == 0 for moved, value in results)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: top_k(4).prox(x, 1.0), "top_k: k must be at most 3, .* at a/b, got 4"),
        (lambda x: top_k(4, axis=0).value(x), "top_k: k must be at most 3, .* at a/b"),
        (lambda x: top_k(1, axis=1).value(x), r"top_k: axis must be .* at a/b, got \(1,\)"),
        (lambda x: top_k(-1), "top_k: k must be an integer ≥ 0, got -1"),
        (lambda x: top_k(2.0), "top_k: k must be an integer"),
        (
            lambda x: n_m(2, 4).prox(x, 1.0),
            "n_m: x at a/b must be of a size divisible by 4 along axis -1, got size 3",
        ),
        (lambda x: n_m(2, 4, axis=1).value(x), "n_m: axis .* at a/b"),
        (lambda x: n_m(5, 4), "n_m: n must be at most m = 4, got 5"),
        (lambda x: n_m(0, 0), "n_m: m must be an integer ≥ 1"),
        (lambda x: n_m(-1, 4), "n_m: n must be an integer ≥ 0"),
        (lambda x: soft_two_four().value(x), "soft_two_four: x at a/b must be of a size divisible by 4"),
        (lambda x: soft_two_four(-1.0), "soft_two_four: strength must be a number ≥ 0"),
        (lambda x: soft_two_four().prox(jnp.ones(4), jnp.ones(4)), "soft_two_four: step_size .*one"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make({"a": {"b": jnp.ones(3)}})


def soft_objective(z, x, pull):
    a, b, c, d = np.abs(np.moveaxis(z, -1, 0))
    return 0.5 * np.sum((z - x) ** 2, axis=-1) + pull * (a * b * (c + d) + c * d * (a + b))


def soft_brute_force(x, pull, starts=40, sweeps=100):
    """The lowest objective that exact minimisation over one coordinate in turn comes to."""
    rng, a, lowest = np.random.default_rng(0), np.abs(x), np.full(len(x), np.inf)
    for start in range(starts):
        z = a * (rng.random(a.shape) ** rng.choice([0.3, 1.0, 3.0]) if start else 1.0)
        for sweep in range(4 * sweeps):
            i, (j, k, m) = sweep % 4, [j for j in range(4) if j != sweep % 4]
            force = z[:, j] * z[:, k] + z[:, j] * z[:, m] + z[:, k] * z[:, m]
            z[:, i] = np.maximum(a[:, i] - pull * force, 0.0)
        lowest = np.minimum(lowest, soft_objective(z, a, pull))
    return lowest


def soft_blocks(count):
    """Blocks with entries alike or far apart, and tλ from far too little to more than enough."""
    rng = np.random.default_rng(5)
    x = rng.random((count, 4)) ** rng.choice([0.1, 0.5, 1.0, 3.0], (count, 1))
    x = x * rng.choice([-1.0, 1.0], x.shape) / x.max(axis=1, keepdims=True)
    return x, 2.2 * rng.random(count) ** rng.choice([1.0, 4.0], count)


def test_soft_two_four_is_the_global_minimum():
    x, pull = soft_blocks(200)
    prox = jax.jit(jax.vmap(soft_two_four(1.0).prox))
    lowest = soft_brute_force(x, pull)
    single = np.asarray(prox(x.astype(np.float32), pull.astype(np.float32)), np.float64)
    assert np.max(soft_objective(single, x, pull) - lowest) < 3e-7
    with jax.enable_x64(True):
        double = np.asarray(prox(x, pull))
    assert np.max(np.abs(soft_objective(double, x, pull) - lowest)) < 1e-9
    kept = np.sum(double != 0, axis=1)
    assert {2, 3, 4} == set(kept)
    assert np.all((double == 0) | (np.sign(double) == np.sign(x)))


@pytest.mark.parametrize("size", [3, 4])
def test_soft_two_four_finds_minima_that_are_known(size):
    # x = z + tλ ∇g(z) makes z stationary; also where the Hessian is all but singular.
    rng = np.random.default_rng(size)
    z = rng.random((4000, 4)) ** rng.choice([0.3, 1.0, 8.0], (4000, 1))
    z[:, size:] = 0
    off = z.sum(axis=1)[:, None, None] - z[:, :, None] - z[:, None]
    off[:, range(4), range(4)] = 0
    off[:, size:] = off[:, :, size:] = 0
    fold = -1 / np.linalg.eigvalsh(off)[:, 0]
    z *= (fold * (1 - 10 ** rng.uniform(-6, 0, 4000)))[:, None]
    pairs = (z.sum(axis=1, keepdims=True) - z) ** 2 - (np.sum(z**2, axis=1, keepdims=True) - z**2)
    x = np.where(np.arange(4) < size, z + 0.5 * pairs, 0.0)
    for dtype, slack in ((jnp.float32, 5e-7), (jnp.float64, 1e-8)):
        with jax.enable_x64(dtype == jnp.float64):
            moved = compiled(soft_two_four(1.0)).prox(x.astype(dtype), 1.0)
        assert np.max(soft_objective(moved, x, 1.0) - soft_objective(z, x, 1.0)) < slack


def test_soft_two_four_has_the_derivatives_of_finite_differences():
    with jax.enable_x64(True):
        x = np.array([[0.5, -0.4, 0.45, 0.42], [1.0, 0.9, -0.7, 0.1], [1.0, 2.0, 0.5, 0.6]])
        plain = lambda x, s: soft_two_four(s).prox(x, 0.4)
        move, slopes = in_numpy(plain), jax.jit(lambda at, way: jax.jvp(plain, at, way)[1])
        assert np.sum(move(x, 1.0) != 0, axis=1).tolist() == [4, 3, 2]
        h = 1e-6
        for i in range(4):
            along = np.where(np.arange(4) == i, 1.0, 0 * x)
            expected = (move(x + h * along, 1.0) - move(x - h * along, 1.0)) / (2 * h)
            np.testing.assert_allclose(slopes((x, 1.0), (along, 0.0)), expected, atol=1e-7)
        expected = (move(x, 1.0 + h) - move(x, 1.0 - h)) / (2 * h)
        np.testing.assert_allclose(jax.jit(jax.jacrev(plain, 1))(x, 1.0), expected, atol=1e-7)


def test_soft_two_four_scales_with_the_weights():
    x, prox = np.float32(soft_blocks(40)[0]), in_numpy(lambda x, s: soft_two_four(s).prox(x, 1.0))
    for scale in (1e-20, 1e-6, 1e6, 1e20):
        np.testing.assert_allclose(prox(scale * x, 0.5 / scale) / scale, prox(x, 0.5), atol=3e-6)


def test_soft_two_four_is_the_hard_one_for_large_strengths():
    x = normal(6, (8, 5))
    x[:4, 0] = np.inf, 1.0, np.nan, 2.0
    moved = compiled(soft_two_four(100.0, axis=0)).prox(x, 1.0)
    np.testing.assert_array_equal(moved, compiled(n_m(2, 4, axis=0)).prox(x, 1.0))
    np.testing.assert_array_equal(moved[:4, 0], [jnp.inf, 0.0, jnp.nan, 0.0])


def test_soft_two_four_spares_blocks_of_two():
    x, prox = np.float32([[0.5, 0.0, -1e-25, 0.0], [0.0, 0.0, 0.0, 0.0]]), soft_two_four(0.7).prox
    np.testing.assert_array_equal(jax.jit(prox)(x, 1.0), x)
    np.testing.assert_array_equal(jax.jit(jax.jacfwd(prox))(np.zeros(4, np.float32), 1.0), np.eye(4))


def test_strengths_and_steps_of_soft_two_four_may_differ_by_leaf():
    x = {"a": normal(7, (4,)), "b": normal(8, (8,))}
    moved = compiled(soft_two_four({"a": 0.0, "b": 0.6})).prox(x, {"a": 1.0, "b": 0.5})
    np.testing.assert_array_equal(moved["a"], x["a"])
    np.testing.assert_allclose(moved["b"], compiled(soft_two_four(0.3)).prox(x["b"], 1.0), atol=1e-6)
