"""Optimizers that end with a prox: where they end, and that without a penalty they are Optax's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties, transforms
from tests.arrays import numpy_normal as normal
from tests.transforms.walks import walk

STRENGTH = 0.3
SAMPLES, FEATURES, TRUE = 60, 20, 6


@functools.cache
def lasso():
    """Features of very different scales and targets from six of them; float64 NumPy."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.2, 5.0, FEATURES)
    features = rng.normal(size=(SAMPLES, FEATURES)) * rng.permutation(scales)
    truth = np.zeros(FEATURES)
    truth[:TRUE] = rng.normal(size=TRUE) + 1.0
    return features, features @ truth + 0.1 * rng.normal(size=SAMPLES)


@functools.cache
def coordinate_descent(strength=STRENGTH, sweeps=1000):
    """Minimises |Xw - y|²/2n + λ|w|₁ of the lasso exactly along one coordinate after another."""
    features, targets = lasso()
    weights, rest = np.zeros(FEATURES), targets.copy()
    curvature = np.mean(features**2, axis=0)
    for _ in range(sweeps):
        for j in range(FEATURES):
            pull = np.mean(features[:, j] * rest) + curvature[j] * weights[j]
            new = np.sign(pull) * max(abs(pull) - strength, 0.0) / curvature[j]
            rest -= features[:, j] * (new - weights[j])
            weights[j] = new
    return weights


def descend(tx, gradient, start, steps):
    """The params and the state after full-batch steps."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = lambda start: jax.lax.scan(step, (start, tx.init(start)), length=steps)[0]
    return jax.tree.map(np.asarray, jax.jit(run)(start))


def l1(strength=STRENGTH):
    return penalties.l1(strength)


ENDS = {
    "proximal_adam": lambda rate, lipschitz: transforms.proximal_adam(rate, l1()),
    "nadam": lambda rate, lipschitz: transforms.proximal_adam(rate, l1(), nesterov=True),
    # A floor that binds most weights: without shorter steps the strength would come out less.
    "floor": lambda rate, lipschitz: transforms.proximal_adam(rate, l1(), floor=2.0),
    "amsgrad": lambda rate, lipschitz: transforms.proximal(
        optax.amsgrad(rate), l1(), rate, preconditioner="amsgrad"
    ),
    "sgd": lambda rate, lipschitz: transforms.proximal_sgd(1 / lipschitz, l1()),
    "momentum": lambda rate, lipschitz: transforms.proximal_sgd(0.2 / lipschitz, l1(), 0.9),
    "nesterov": lambda rate, lipschitz: transforms.proximal_sgd(0.2 / lipschitz, l1(), 0.9, nesterov=True),
    "accelerated": lambda rate, lipschitz: transforms.accelerated_proximal_gradient(1 / lipschitz, l1()),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_is_the_lasso_of_an_independent_solver(name):
    features, targets = lasso()
    solution = coordinate_descent()
    assert 3 <= np.sum(solution != 0) <= FEATURES - 5
    objective = lambda w: np.mean((features @ w - targets) ** 2) / 2 + STRENGTH * np.abs(w).sum()
    with jax.enable_x64(True):
        loss = lambda w: jnp.mean(jnp.square(features @ w - targets)) / 2
        lipschitz = float(np.linalg.norm(features, ord=2) ** 2 / SAMPLES)
        tx = ENDS[name](optax.cosine_decay_schedule(0.05, 20_000), lipschitz)
        start = jnp.full(FEATURES, 0.5)
        weights, _ = descend(tx, jax.grad(loss), start, 20_000)
        assert weights.dtype == jnp.float64
        np.testing.assert_array_equal(weights != 0, solution != 0)
        assert objective(np.asarray(weights)) - objective(solution) <= 1e-10


def test_decoupled_ends_elsewhere_as_its_docstring_says():
    features, targets = lasso()
    gradient = jax.grad(lambda w: jnp.mean(jnp.square(features @ w - targets)) / 2)
    rate = optax.cosine_decay_schedule(0.05, 2000)
    tx = transforms.decoupled_proximal_adamw(rate, l1(), weight_decay=0.0)
    weights, _ = descend(tx, gradient, jnp.full(FEATURES, 0.5), 2000)
    solution = coordinate_descent()
    assert np.sum(weights != 0) > np.sum(solution != 0) + 3


BASES = {
    "adam": (transforms.proximal_adam, optax.adam, {}),
    "nadam": (transforms.proximal_adam, optax.adam, {"nesterov": True, "b1": 0.8, "b2": 0.9}),
    "adam, eps": (transforms.proximal_adam, optax.adam, {"eps": 1e-2, "eps_root": 1e-3}),
    "adam, half moment": (transforms.proximal_adam, optax.adam, {"mu_dtype": jnp.bfloat16}),
    "sgd": (transforms.proximal_sgd, optax.sgd, {}),
    "momentum": (transforms.proximal_sgd, optax.sgd, {"momentum": 0.9}),
    "nesterov": (transforms.proximal_sgd, optax.sgd, {"momentum": 0.9, "nesterov": True}),
    "adamw": (transforms.decoupled_proximal_adamw, optax.adamw, {"weight_decay": 0.1}),
    "adamw, masked": (transforms.decoupled_proximal_adamw, optax.adamw, {"mask": {"w": True, "b": False}}),
}


@pytest.mark.parametrize("name", BASES)
def test_strength_zero_is_the_base_optimizer(name):
    ours, theirs, options = BASES[name]
    rate = lambda count: 0.1 / (1.0 + count)
    # A gradient that is always 0, as of an unseen token.
    seen = (np.arange(5) > 0)[:, None]
    gradients = [{"w": seen * normal(i, (5, 8)), "b": normal(i, (8,))} for i in range(6)]
    start = {"w": normal(8, (5, 8)), "b": normal(9, (8,))}
    txs = ours(rate, penalties.l1(0.0), **options), theirs(rate, **options)
    with_prox, base = (walk(tx, start, gradients)[0] for tx in txs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), with_prox, base)


PULLS = [penalties.l1(1e12), penalties.squared_l2(1e20), penalties.group_lasso(1e12)]


@pytest.mark.parametrize("optimizer", ["proximal_sgd", "proximal_adam", "decoupled_proximal_adamw"])
def test_an_infinite_pull_to_the_anchor_returns_it(optimizer):
    make = getattr(transforms, optimizer)
    anchor = {"w": normal(0, (4, 3)), "b": normal(1, (3,))}
    for penalty in PULLS if optimizer == "proximal_adam" else PULLS[:1]:
        tx = make(0.1, penalty, anchored=True)
        gradient = lambda params: jax.tree.map(lambda p: p - 1.0, params)
        params, _ = descend(tx, gradient, anchor, 3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), params, anchor)


@pytest.mark.parametrize("penalty", [penalties.mcp(0.3, 3.0), penalties.l0(0.05)])
def test_full_batch_steps_never_raise_a_nonconvex_objective(penalty):
    features, targets = lasso()
    with jax.enable_x64(True):
        loss = lambda w: jnp.mean(jnp.square(features @ w - targets)) / 2
        rate = 0.99 * SAMPLES / float(np.linalg.norm(features, ord=2) ** 2)
        tx = transforms.proximal_sgd(rate, penalty)

        def step(carry, _):
            weights, state = carry
            updates, state = tx.update(jax.grad(loss)(weights), state, weights)
            weights = optax.apply_updates(weights, updates)
            return (weights, state), loss(weights) + penalty.value(weights)

        start = jnp.asarray(np.random.default_rng(1).normal(size=FEATURES))
        (weights, _), path = jax.lax.scan(step, (start, tx.init(start)), length=2000)
        path = np.concatenate([[loss(start) + penalty.value(start)], path])
        assert np.all(np.diff(path) <= 1e-13)
        assert path[-1] < 0.5 * path[0]
        assert 0 < np.sum(np.asarray(weights) == 0) < FEATURES


def test_the_threshold_sums_learning_rates_as_momentum_sums_gradients():
    tx = transforms.proximal_sgd(0.1, penalties.l1(1.0), momentum=0.5)
    path, _ = walk(tx, np.ones(1, np.float32), np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(-np.diff(np.ravel(path), prepend=1.0), [0.1, 0.15, 0.175], rtol=1e-5)


def test_accelerated_points_are_those_of_fista():
    curvature, centre, rate, strength = np.array([1.0, 4.0]), np.array([3.0, 0.2]), 0.2, 0.5
    tx = transforms.accelerated_proximal_gradient(rate, penalties.l1(strength), restart=False)
    params = jnp.array([1.0, -1.0])
    state, update = tx.init(params), jax.jit(tx.update)
    x = y = np.array([1.0, -1.0])
    theta = 1.0
    for _ in range(6):
        updates, state = update(np.float32(curvature * (params - centre)), state, params)
        params = np.asarray(params) + updates
        z = y - rate * curvature * (y - centre)
        new = np.sign(z) * np.maximum(np.abs(z) - rate * strength, 0)
        theta, old = (1 + np.sqrt(1 + 4 * theta**2)) / 2, theta
        x, y = new, new + (old - 1) / theta * (new - x)
        np.testing.assert_allclose(transforms.accelerated_params(state), x, atol=1e-5)
        np.testing.assert_allclose(params, y, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_accelerated_point_has_exact_zeros_and_the_params_follow(dtype):
    features, targets = (x.astype(np.float32) for x in lasso())
    gradient = jax.grad(lambda w: jnp.mean(jnp.square(features @ w - targets)) / 2)
    rate = SAMPLES / float(np.linalg.norm(features, ord=2) ** 2)
    tx = transforms.accelerated_proximal_gradient(rate, penalties.l1(STRENGTH))
    wide = lambda w: gradient(w.astype(jnp.float32)).astype(dtype)
    params, state = descend(tx, wide, jnp.full(FEATURES, 0.5, dtype), 1000)
    point = transforms.accelerated_params(state)
    assert point.dtype == dtype
    assert 5 <= np.sum(point == 0) < FEATURES
    np.testing.assert_array_equal(params == 0, point == 0)


def test_restarts_pay():
    features, targets = lasso()
    with jax.enable_x64(True):
        loss = lambda w: jnp.mean(jnp.square(features @ w - targets)) / 2
        solution = coordinate_descent()
        rate = SAMPLES / float(np.linalg.norm(features, ord=2) ** 2)

        def distance(restart):
            tx = transforms.accelerated_proximal_gradient(rate, l1(), restart=restart)
            _, state = descend(tx, jax.grad(loss), jnp.full(FEATURES, 0.5), 400)
            return np.abs(transforms.accelerated_params(state) - solution).max()

        assert distance(True) < 0.01 * distance(False)


def test_the_point_of_another_state_is_missed():
    with pytest.raises(ValueError, match=r"state of one accelerated_proximal_gradient, got 0"):
        transforms.accelerated_params(optax.sgd(0.1).init(jnp.ones(2)))


@pytest.mark.parametrize(
    "make",
    [
        transforms.proximal_sgd,
        transforms.proximal_adam,
        transforms.decoupled_proximal_adamw,
        transforms.accelerated_proximal_gradient,
    ],
)
def test_bad_settings_are_refused_in_the_name_of_the_optimizer(make):
    name = make.__name__
    with pytest.raises(ValueError, match=rf"{name}: penalty must be a Penalty"):
        make(0.1, 0.1)
    with pytest.raises(ValueError, match=rf"{name}: learning_rate must be"):
        make(-0.1, penalties.l1())


def test_momentum_of_one_is_refused():
    with pytest.raises(ValueError, match=r"proximal_sgd: momentum must be < 1, got 1.0"):
        transforms.proximal_sgd(0.1, penalties.l1(), 1.0)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (transforms.proximal_sgd, {"nesterov": True}, "nesterov must be left out without a momentum"),
        (transforms.proximal_sgd, {"accumulator_dtype": "float32"}, "accumulator_dtype must be left out"),
        (
            transforms.decoupled_proximal_adamw,
            {"weight_decay": 0.0, "mask": {"w": True}},
            "mask must be None at weight_decay=0",
        ),
    ],
)
def test_settings_that_would_do_nothing_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(0.1, penalties.l1(), **settings)


def test_bounds_of_steps_need_a_preconditioner():
    with pytest.raises(ValueError, match=r"floor, cap must be \(0, inf\) without one"):
        transforms.proximal(optax.sgd(0.1), penalties.l1(), 0.1, cap=1.0)


def test_a_penalty_without_a_metric_is_refused_at_init():
    tx = transforms.proximal_adam(0.1, penalties.nuclear(0.1))
    with pytest.raises(ValueError, match=r"no prox in a diagonal metric"):
        tx.init({"w": jnp.ones((3, 2))})


ADAMS = [
    transforms.proximal_adam,
    transforms.decoupled_proximal_adamw,
    transforms.dual_averaging_adam,
    transforms.proximal_schedule_free_adam,
]


@pytest.mark.parametrize("make", ADAMS)
def test_a_decay_that_half_precision_rounds_to_one_is_refused(make):
    params = jnp.ones(2, jnp.bfloat16)
    tx = optax.inject_hyperparams(lambda b2: make(0.1, l1(), b2=b2))(b2=0.999)
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got .*hyperparam_dtype=jnp.float32"):
        tx.init(params)
    make(0.1, l1(), b2=0.99).init(params)


@pytest.mark.parametrize("make", ADAMS[:2])
def test_an_eps_that_half_precision_rounds_to_zero_is_refused(make):
    params = {"half": jnp.ones(2, jnp.float16), "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"eps must be a number that float16 can hold.*eps=1e-4"):
        make(0.1, l1()).init(params)
    tx = make(0.1, l1(), eps=1e-4)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))
