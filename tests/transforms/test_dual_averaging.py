"""Dual averaging: each method against its own loop, its fixed point, and what zeros need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties, transforms
from tests.arrays import numpy_normal as normal
from tests.transforms import walks

STRENGTH = 0.3

# name -> (rate, penalty) -> link; every test below runs over all that it concerns.
LINKS = {
    "rda": transforms.rda,
    "adagrad_rda": transforms.adagrad_rda,
    "ftrl_proximal": transforms.ftrl_proximal,
    "rmda": transforms.rmda,
    "ramda": transforms.ramda,
    "aprox": lambda rate, penalty: transforms.aprox(optax.sgd(rate), penalty, rate),
    "dual_averaging_adam": transforms.dual_averaging_adam,
    "proximal_schedule_free": lambda rate, penalty: transforms.proximal_schedule_free(
        optax.sgd(rate), penalty, rate
    ),
    "proximal_schedule_free_adam": transforms.proximal_schedule_free_adam,
}
METRIC = ("adagrad_rda", "ftrl_proximal", "ramda", "dual_averaging_adam", "proximal_schedule_free_adam")
CENTRED = ("ftrl_proximal", "aprox", "dual_averaging_adam")
each_link = pytest.mark.parametrize("name", LINKS)
# What a link shares with others is shown on one of each kind.
KINDS = ("rda", "dual_averaging_adam", "proximal_schedule_free")
marks = lambda name: [] if name in KINDS else [pytest.mark.slow]
each_kind = pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in LINKS])


def scan(tx, params, gradients):
    """Applies one update after another; gives the params after each."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]


def walk(tx, params, gradients):
    """The same as one program, its results in NumPy."""
    return np.asarray(jax.jit(lambda *given: scan(tx, *given))(params, np.asarray(gradients)))


@functools.cache
def program(name):
    """The path of a link for any rates and strength."""
    return jax.jit(
        lambda rates, strength, *given: scan(
            LINKS[name](lambda count: rates[count], penalties.l1(strength)), *given
        )
    )


def path_of(name, start, gradients, rates=0.1, strength=STRENGTH):
    """The path of up to 40 params over up to 30 gradients, in NumPy: a link has one program."""
    steps, size = gradients.shape
    table = np.broadcast_to(np.float32(rates), steps)
    table = np.pad(table, (0, 30 - steps))
    wide = np.pad(gradients, [(0, 30 - steps), (0, 40 - size)])
    path = program(name)(table, np.float32(strength), np.pad(start, (0, 40 - size)), wide)
    return np.asarray(path)[:steps, :size]


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0.0)


# Each reference: (start, gradients, rates, strength) -> points, in NumPy, from the papers.


def rda_loop(x, gradients, rates, strength):
    start, total, weight = x, 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        total, weight = total + rate * g, weight + rate
        yield soft(start - total / np.sqrt(t), strength * weight / np.sqrt(t))


def adagrad_rda_loop(x, gradients, rates, strength):
    start, total, weight, squares = x, 0.0, 0.0, 0.1
    for g, rate in zip(gradients, rates, strict=True):
        total, weight, squares = total + rate * g, weight + rate, squares + g**2
        root = np.sqrt(squares + 1e-7)
        yield soft(start - total / root, strength * weight / root)


def ftrl_loop(x, gradients, rates, strength):
    """The sum z of McMahan's algorithm 1, centred at x_0 too; for a constant rate."""
    squares, divisor = np.zeros_like(x), 1.0 / rates[0]
    z = -divisor * x
    for t, g in enumerate(gradients, 1):
        squares = squares + g**2
        new = (1.0 + np.sqrt(squares)) / rates[0]
        z = z + g - (new - divisor) * x
        divisor = new
        x = -soft(z, t * strength) / divisor
        yield x


def rmda_loop(x, gradients, rates, strength, cube_root=False):
    start, total, weight, squares = x, 0.0, 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        s = rate * np.sqrt(t)
        total, weight, squares = total + s * g, weight + s, squares + s * g**2
        divisor = np.cbrt(squares) + 1e-6 if cube_root else np.sqrt(t)
        yield soft(start - total / divisor, strength * weight / divisor)


def ramda_loop(x, gradients, rates, strength):
    return rmda_loop(x, gradients, rates, strength, cube_root=True)


def aprox_loop(x, gradients, rates, strength):
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        x = x - rate * g
        yield soft(x, strength * sum(rates[:t]))


def adam_loop(x, gradients, rates, strength, forgetting=8.0):
    m = v = y = np.zeros_like(x)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = rate / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        c = min(1.0, forgetting / t)
        r = np.where(x == 0, np.clip(y, -strength, strength), strength * np.sign(x))
        y = (1 - c) * r - c * m / (1 - 0.9**t)
        x = soft(x + step / c * y, step / c * strength)
        yield x


def schedule_free_loop(x, gradients, rates, strength, adam=False):
    z, mean, total, mean_total, weight, v = x, x, 0.0, 0.0, 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        v = 0.999 * v + 0.001 * g**2
        step = rate / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) if adam else rate
        z, total = z - step * g, total + step
        square = max(rates[:t]) ** 2
        weight = weight + square
        mean = mean + square / weight * (z - mean)
        mean_total = mean_total + square / weight * (total - mean_total)
        yield soft(0.1 * z + 0.9 * mean, strength * (0.1 * total + 0.9 * mean_total))


def schedule_free_adam_loop(x, gradients, rates, strength):
    return schedule_free_loop(x, gradients, rates, strength, adam=True)


LOOPS = {
    "proximal_schedule_free": schedule_free_loop,
    "proximal_schedule_free_adam": schedule_free_adam_loop,
    "rda": rda_loop,
    "adagrad_rda": adagrad_rda_loop,
    "ftrl_proximal": ftrl_loop,
    "rmda": rmda_loop,
    "ramda": ramda_loop,
    "aprox": aprox_loop,
    "dual_averaging_adam": adam_loop,
}


@each_link
def test_it_is_the_loop_of_its_paper(name):
    gradients = 0.5 * normal(1, (30, 40)) + 0.3 * normal(2, (1, 40))
    start, rates = 0.2 * normal(3, (40,)), np.full(30, 0.1)
    if name not in ("ftrl_proximal",):
        rates = 0.1 + 0.1 * np.cos(np.arange(30.0))
    path = path_of(name, start, gradients, rates)
    wide = [np.asarray(g, np.float64) for g in gradients]
    expected = np.stack(list(LOOPS[name](np.asarray(start, np.float64), wide, rates, STRENGTH)))
    np.testing.assert_allclose(path, expected, atol=2e-5)
    zeros = np.mean(expected[-1] == 0)
    assert 0.1 < zeros < 0.9
    assert np.mean((path[-1] == 0) == (expected[-1] == 0)) == 1.0


def test_ftrl_proximal_minimises_the_sum_it_is_named_for():
    """The point after three steps, by brute force over a grid."""
    gradients, start, rate, strength = [0.5, -1.0, -0.2], 0.4, 0.5, 0.3
    tx = transforms.ftrl_proximal(rate, penalties.l1(strength))
    path = walk(tx, jnp.array([start]), [jnp.array([g]) for g in gradients])
    grid, before = np.linspace(-2, 2, 400_001), 1 / rate
    points, total, squares = [start, *np.ravel(path)[:2]], before * (grid - start) ** 2 / 2, 0.0
    for g, centre in zip(gradients, points, strict=True):
        squares += g * g
        after = (1 + np.sqrt(squares)) / rate
        total = total + g * grid + strength * abs(grid) + (after - before) * (grid - centre) ** 2 / 2
        before = after
    assert float(path[-1, 0]) == pytest.approx(grid[np.argmin(total)], abs=2e-5)


@pytest.mark.parametrize(
    ("name", "base"), [("dual_averaging_adam", optax.adam(0.1)), ("aprox", optax.sgd(0.1))]
)
def test_strength_zero_is_the_base_optimizer(name, base):
    gradients, start = normal(0, (20, 30)), normal(9, (30,))
    path = path_of(name, start, gradients, strength=0.0)
    np.testing.assert_allclose(path, walk(base, start, gradients), rtol=0, atol=2e-6)


def test_ftrl_proximal_without_a_penalty_is_adagrad():
    gradients, x = normal(0, (20, 30)), np.asarray(normal(9, (30,)), np.float64)
    path = walk(transforms.ftrl_proximal(0.1, penalties.zero(), beta=0.5), normal(9, (30,)), gradients)
    squares = 0.0
    for g, after in zip(np.asarray(gradients, np.float64), path, strict=True):
        squares = squares + g**2
        x = x - 0.1 * g / (0.5 + np.sqrt(squares))
        np.testing.assert_allclose(after, x, atol=2e-6)


def test_with_a_memory_of_one_it_is_metric_prox_adam():
    gradients, start = normal(0, (20, 30)), normal(9, (30,))
    path = walk(transforms.dual_averaging_adam(0.1, penalties.l1(STRENGTH), memory=1), start, gradients)
    wanted = walk(transforms.proximal_adam(0.1, penalties.l1(STRENGTH)), start, gradients)
    np.testing.assert_allclose(path, wanted, atol=2e-5)


def test_mixing_averages_and_loses_zeros_until_it_is_one():
    start, gradient = jnp.array([0.5, 0.5]), jnp.array([0.0, 9.0])
    mixing = lambda count: jnp.where(count == 2, 1.0, 0.5)
    tx = transforms.rmda(0.5, penalties.l1(2.0), mixing)
    path = walk(tx, start, [gradient, 0 * gradient, 0 * gradient])
    np.testing.assert_allclose(path[:, 0], [0.25, 0.125, 0.0], atol=1e-7)
    assert path[2, 0] == 0


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_without_a_penalty_it_is_the_schedule_free_of_optax(power):
    gradients, start = normal(0, (20, 30)), normal(9, (30,))
    peer = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, weight_lr_power=power)
    ours = transforms.proximal_schedule_free(optax.sgd(0.1), penalties.zero(), 0.1, weight_lr_power=power)
    np.testing.assert_allclose(walk(ours, start, gradients), walk(peer, start, gradients), atol=2e-6)


@pytest.mark.parametrize(
    "name", ["proximal_schedule_free", pytest.param("proximal_schedule_free_adam", marks=pytest.mark.slow)]
)
def test_the_schedule_free_params_to_evaluate_have_zeros_and_fewer_errors(name, lasso):
    features, targets, strength, solution = (jnp.float32(leaf) for leaf in lasso)
    penalty = penalties.l1(strength)
    tx = LINKS[name](0.01, penalty)

    def step(carry, key):
        weights, state = carry
        rows = jax.random.randint(key, (8,), 0, 60)
        slope = features[rows].T @ (features[rows] @ weights - targets[rows]) / 8
        updates, state = tx.update(slope, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start, keys = jnp.zeros(20), jax.random.split(jax.random.key(0), 20_000)
    (weights, state), _ = jax.lax.scan(step, (start, tx.init(start)), keys)
    means = transforms.proximal_schedule_free_params(state, weights, penalty)
    means, solution = np.asarray(means), np.asarray(solution)
    assert np.all(means[solution == 0] == 0)
    off = lambda point: float(np.linalg.norm(point - solution))
    assert off(means) < 0.05 * float(np.linalg.norm(solution))
    assert off(means) <= off(weights)


def test_only_a_state_of_its_own_can_be_evaluated():
    with pytest.raises(ValueError, match="must be a ProximalScheduleFreeState, got 'EmptyState'"):
        transforms.proximal_schedule_free_params(optax.EmptyState(), jnp.ones(2), penalties.l1())


@pytest.mark.parametrize("make", [transforms.rmda, transforms.ramda])
def test_a_restart_begins_anew_at_the_params(make):
    gradients = normal(0, (6, 5))
    tx = make(0.1, penalties.l1(0.2), restart_every=3)
    path = walk(tx, normal(1, (5,)), gradients)
    alone = functools.partial(path_of, make.__name__, strength=0.2)
    np.testing.assert_allclose(path[:3], alone(normal(1, (5,)), gradients[:3]), atol=1e-6)
    np.testing.assert_allclose(path[3:], alone(path[2], gradients[3:]), atol=1e-6)


@pytest.fixture(scope="module")
def lasso():
    """Features, targets, strength and the solution of a small lasso, in float64."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 20)) * 10 ** rng.uniform(-0.5, 0.5, 20)
    targets = features[:, :4] @ np.array([2.0, -1.0, 0.5, 1.0]) + 0.3 * rng.normal(size=60)
    curvature, pull = features.T @ features / 60, features.T @ targets / 60
    strength, step = 0.2 * np.max(np.abs(pull)), 1 / np.linalg.norm(curvature, 2)
    weights = np.zeros(20)
    for _ in range(10_000):
        weights = soft(weights - step * (curvature @ weights - pull), step * strength)
    return features, targets, strength, weights


@pytest.mark.parametrize(
    ("name", "rate", "steps", "atol"),
    [
        ("dual_averaging_adam", lambda count: 0.02 * 0.998**count, 8000, 1e-5),
        ("ftrl_proximal", 1.0, 20_000, 1e-5),
        ("aprox", 0.05, 20_000, 1e-5),
        ("proximal_schedule_free", 0.05, 20_000, 1e-4),
        # these slowly
        *(
            pytest.param(name, rate, 20_000, atol, marks=pytest.mark.slow)
            for name, rate, atol in (
                ("rda", 0.05, 0.1),
                ("adagrad_rda", 0.5, 0.1),
                ("rmda", 0.05, 0.1),
                ("ramda", 0.02, 0.1),
                ("proximal_schedule_free_adam", 0.02, 1e-4),
            )
        ),
    ],
)
def test_with_the_whole_batch_it_ends_at_the_lasso_solution(lasso, name, rate, steps, atol):
    features, targets, strength, solution = lasso
    with jax.enable_x64(True):
        tx = LINKS[name](rate, penalties.l1(strength))

        def step(carry, _):
            weights, state = carry
            slope = features.T @ (features @ weights - targets) / 60
            updates, state = tx.update(slope, state, weights)
            return (optax.apply_updates(weights, updates), state), None

        start = (jnp.zeros(20), tx.init(jnp.zeros(20)))
        (weights, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(start)
        weights = np.asarray(weights)
        np.testing.assert_array_equal(weights != 0, solution != 0)
        np.testing.assert_allclose(weights, solution, atol=atol)
        value = lambda w: np.mean((features @ w - targets) ** 2) / 2 + strength * np.sum(np.abs(w))
        assert value(weights) - value(solution) < max(atol**2, 1e-10)


def test_the_lasso_solution_is_a_fixed_point(lasso):
    features, targets, strength, solution = lasso
    with jax.enable_x64(True):
        slope = features.T @ (features @ solution - targets) / 60
        tx = transforms.dual_averaging_adam(0.1, penalties.l1(strength))
        path = walk(tx, solution, [slope] * 30)
        np.testing.assert_allclose(path, np.broadcast_to(solution, path.shape), atol=1e-12)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x == "dual_averaging_adam" else pytest.mark.slow) for x in LINKS]
)
def test_eager_is_the_scan(name):
    params, gradients = normal(0, (6,)), normal(1, (4, 6))
    tx = LINKS[name](0.1, penalties.l1(STRENGTH))
    expected, state = path_of(name, params, gradients), tx.init(params)
    for gradient, after in zip(gradients, expected, strict=True):
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, after, atol=2e-6)
        np.testing.assert_array_equal(params == 0, after == 0)


@each_link
def test_learning_rate_zero_moves_nothing(name):
    start, gradients = normal(0, (6,)), normal(1, (3, 6))
    path = path_of(name, start, gradients, [0.0, 0.0, 0.1])
    np.testing.assert_array_equal(path[:2], np.stack([start] * 2))
    assert np.all(path[2] != start)


@pytest.mark.parametrize("name", ["ftrl_proximal", "dual_averaging_adam"])
def test_updates_without_a_rate_are_not_averaged(name):
    tx = LINKS[name](lambda count: jnp.where(count < 3, 0.0, 0.1), penalties.l1(STRENGTH))
    _, state = walks.walk(tx, normal(0, (6,)), normal(1, (5, 6)))
    assert (state.count, state.active) == (5, 2)


@pytest.mark.parametrize("name", CENTRED)
def test_a_decayed_learning_rate_stops_the_params(name):
    path = path_of(name, normal(0, (6,)), normal(1, (9, 6)), [0.1] * 5 + [0.0] * 4)
    np.testing.assert_array_equal(path[4:], np.stack([path[4]] * 5))


@each_kind
@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_zeros_are_exact_in_both_dtypes_and_updates_have_the_dtype_of_the_params(name, dtype):
    start = (0.1 * normal(0, (50,))).astype(dtype)
    gradients = (normal(1, (20, 50)) - 6.0 * (np.arange(50) < 5).astype(np.float32)).astype(dtype)
    path = walk(LINKS[name](0.1, penalties.l1(2.0)), start, gradients)
    assert path.dtype == dtype
    assert np.all(path[-1, 5:] == 0)
    assert np.all(path[-1, :5] != 0)


@each_kind
def test_strengths_can_be_swept_and_injected(name):
    gradients, start = normal(1, (12, 9)), 0.1 * normal(0, (9,))
    train = lambda strength: scan(LINKS[name](0.1, penalties.l1(strength)), start, gradients)[-1]
    strengths = np.array([0.0, 0.2, 3.0], np.float32)
    looped = np.stack([path_of(name, start, gradients, strength=strength)[-1] for strength in strengths])
    np.testing.assert_allclose(jax.jit(jax.vmap(train))(strengths), looped, atol=1e-5)
    assert np.all(looped[2] == 0)
    build = lambda strength: LINKS[name](0.1, penalties.l1(strength))
    ramp = optax.inject_hyperparams(build)(strength=lambda count: jnp.where(count < 6, 0.0, 30.0))
    path = walk(ramp, start, gradients)
    assert np.all(path[5] != 0)
    assert np.all(path[-1] == 0)


WITH_METRIC = [penalties.group_lasso(0.2, axis=0), penalties.box(-0.05, 0.05), penalties.l1_ball(0.1)]
PAIRS = [(name, i) for name in METRIC for i in range(3)]
marks = lambda name, i: [] if METRIC.index(name) == i else [pytest.mark.slow]


@pytest.mark.parametrize(("name", "which"), [pytest.param(*pair, marks=marks(*pair)) for pair in PAIRS])
def test_any_penalty_with_a_metric_will_do(name, which):
    penalty = WITH_METRIC[which]
    start, gradients = 0.01 * normal(0, (4, 3)), normal(1, (10, 4, 3))
    path = walk(LINKS[name](0.1, penalty), start, gradients)
    assert np.all(np.isfinite(path))
    assert np.isfinite(jax.jit(penalty.value)(path[-1]))
    assert np.any(path[-1] != start)


@pytest.mark.parametrize("name", METRIC)
def test_a_penalty_without_a_metric_is_refused(name):
    tx, params = LINKS[name](0.1, penalties.nuclear(1.0)), jnp.ones((3, 2))
    with pytest.raises(ValueError, match="no prox in a diagonal metric"):
        tx.update(params, tx.init(params), params)


@each_link
def test_rows_that_never_saw_a_gradient_live_on(name):
    """Thirty steps take about as much from them as from weights at the threshold elsewhere."""
    gradients = 0.1 * normal(0, (30, 8)) * (np.arange(8) < 4)
    path = path_of(name, np.ones(8, np.float32), gradients, 1e-2, 1e-2)
    assert np.all(path[-1, 4:] > 0.97)
    assert np.all(path[-1, 4:] < 1.0)


def test_a_floor_and_a_cap_bind_the_steps():
    start, gradient = np.ones(2, np.float32), np.array([1.0, 1e-6], np.float32)
    make = lambda **bounds: transforms.dual_averaging_adam(1e-2, penalties.l1(1e-2), **bounds)
    free, floored, capped = (
        walk(make(**bounds), start, [gradient])[0, 1] for bounds in ({}, {"floor": 0.1}, {"cap": 0.5})
    )
    assert free == 0
    assert floored == pytest.approx(1 - 1e-2 / (0.1 / 2**0.5) * (1e-2 + 1e-6), abs=1e-6)
    assert capped == pytest.approx(1 - 0.5 * (1e-2 + 1e-6), abs=1e-6)


def test_zeros_ask_the_average_and_not_the_last_gradient():
    """Gradients of ±2 leave a strength of 1 alone; a prox at each step would flicker."""
    gradients = np.resize(np.array([[2.0], [-2.0]], np.float32), (400, 1))
    tx = transforms.dual_averaging_adam(0.1, penalties.l1(1.0), b1=0.0)
    flicker = transforms.dual_averaging_adam(0.1, penalties.l1(1.0), b1=0.0, memory=1)
    assert np.all(walk(tx, jnp.zeros(1), gradients)[100:] == 0)
    assert np.mean(walk(flicker, jnp.zeros(1), gradients)[100:] != 0) > 0.3


@each_kind
def test_the_state_outlives_donated_params(name):
    params = normal(0, (5,))
    tx = LINKS[name](0.1, penalties.l1(STRENGTH))
    expected = path_of(name, normal(0, (5,)), normal(1, (3, 5)))

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step, state = jax.jit(step, donate_argnums=(0, 1)), tx.init(params)
    params = jnp.array(params)
    for gradient in normal(1, (3, 5)):
        params, state = step(params, state, gradient)
    np.testing.assert_allclose(params, expected[-1], atol=1e-6)


@each_link
def test_without_params_it_says_so_in_the_words_of_optax(name):
    tx = LINKS[name](0.1, penalties.l1())
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@each_link
def test_bad_settings_are_refused_by_name(name):
    link = LINKS[name]
    if name in ("aprox", "proximal_schedule_free"):
        link = lambda rate, penalty: getattr(transforms, name)(optax.sgd(0.1), penalty, rate)
    for rate in (-0.1, float("nan"), jnp.ones(2)):
        with pytest.raises(ValueError, match=rf"{name}: learning_rate must be"):
            link(rate, penalties.l1())
    with pytest.raises(ValueError, match=rf"{name}: penalty must be a Penalty"):
        link(0.1, 0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: transforms.dual_averaging_adam(0.1, penalties.l1(), forgetting=0.5), "forgetting"),
        (lambda: transforms.dual_averaging_adam(0.1, penalties.l1(), memory=0), "memory"),
        (lambda: transforms.dual_averaging_adam(0.1, penalties.l1(), floor=-1.0), "floor"),
        (lambda: transforms.ftrl_proximal(0.1, penalties.l1(), beta=0.0), "beta"),
        (lambda: transforms.adagrad_rda(0.1, penalties.l1(), -1.0), "initial_accumulator_value"),
        (lambda: transforms.rmda(0.1, penalties.l1(), restart_every=0), "restart_every"),
        (lambda: transforms.ramda(0.1, penalties.l1(), mixing=-0.5), "mixing"),
        (lambda: transforms.aprox(0.1, penalties.l1(), 0.1), "inner"),
        (lambda: transforms.proximal_schedule_free(0.1, penalties.l1(), 0.1), "inner"),
        (lambda: transforms.proximal_schedule_free_adam(0.1, penalties.l1(), 1.0), "b1"),
    ],
)
def test_other_bad_settings_too(build, message):
    with pytest.raises(ValueError, match=message):
        build()
