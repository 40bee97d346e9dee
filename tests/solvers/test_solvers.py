"""Solvers: solutions known in closed form, optimality conditions, derivatives, why they stop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties, solvers
from proxlm.solvers import _extrapolation, _quasi_newton
from tests.arrays import numpy_normal as normal

FEATURES = normal(0, (40, 12))
TARGETS = FEATURES[:, :3] @ np.float32([2.0, -1.0, 1.5]) + np.float32(0.1) * normal(1, (40,))
RULES = {
    "ista": solvers.ista(),
    "fista": solvers.fista(),
    "fista_without_restart": solvers.fista(restart=False),
    "anderson": solvers.anderson(),
    "barzilai_borwein": solvers.barzilai_borwein(),
    "spectral_steps_alone": solvers.barzilai_borwein(memory=0),
}


def least_squares(weights):
    return 0.5 * jnp.mean(jnp.square(FEATURES @ weights - TARGETS))


def logistic(weights):
    return jnp.mean(jnp.logaddexp(0.0, -jnp.sign(TARGETS) * (FEATURES @ weights)))


def minimise(fun, start, penalty, **options):
    """The solution of one compiled program, in NumPy."""
    solve = jax.jit(lambda start: solvers.proximal_gradient(fun, start, penalty, **options))
    return jax.tree.map(np.asarray, solve(start))


@functools.cache
def elastic_net(fun, rule):
    """One program for all strengths."""
    return jax.jit(
        lambda most, *strengths: solvers.proximal_gradient(
            fun, jnp.zeros(12), penalties.elastic_net(*strengths), rule=RULES[rule], max_iterations=most
        )
    )


def solved(fun, rule, *strengths, most=5000):
    """The solution of an elastic net: the lasso and ridge in one."""
    return jax.tree.map(np.asarray, elastic_net(fun, rule)(most, *strengths))


def assert_optimal_for_the_lasso(fun, weights, strength, atol=2e-5):
    slope, live = np.asarray(jax.jit(jax.grad(fun))(weights)), weights != 0
    np.testing.assert_allclose(slope[live], -strength * np.sign(weights[live]), atol=atol)
    assert np.abs(slope[~live]).max() <= strength + atol


FUNCTIONS = {"least_squares": least_squares, "logistic": logistic}
# Rules without restart or memory, and the other loss, say the same of the lasso; more is said of each below.
FAST = [(name, "least_squares") for name in RULES if "without" not in name]
FAST += [("barzilai_borwein", "logistic")]
SLOW = [(name, fun) for name in RULES for fun in FUNCTIONS if (name, fun) not in FAST]


@pytest.mark.parametrize(("rule", "fun"), [*FAST, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)])
def test_the_lasso_ends_where_its_optimality_conditions_hold(rule, fun):
    fun = FUNCTIONS[fun]
    solution = solved(fun, rule, 0.05, 0.0)
    assert solution.converged, solution.reason
    assert_optimal_for_the_lasso(fun, solution.params, 0.05)
    total = float(jax.jit(fun)(solution.params)) + 0.05 * np.sum(np.abs(solution.params))
    assert solution.objective == pytest.approx(total, rel=1e-6)


def test_extrapolation_finds_the_fixed_point_of_an_affine_map():
    # In n dimensions n + 1 steps say all about it.
    with jax.enable_x64(True):
        matrix, offset = 0.3 * np.float64(normal(2, (3, 3))), np.arange(1.0, 4.0)

        @jax.jit
        def four_steps(x):
            history = _extrapolation.init(4, x)
            for _ in range(4):
                image = matrix @ x + offset
                history, x = _extrapolation.push(history, x, image), image
            return x, _extrapolation.extrapolate(history)

        plain, extrapolated = four_steps(np.zeros(3))
        fixed = np.linalg.solve(np.eye(3) - matrix, offset)
        assert np.abs(plain - fixed).max() > 1e-2
        np.testing.assert_allclose(extrapolated, fixed, atol=1e-8)


def test_the_quasi_newton_direction_is_that_of_dense_updates():
    moves, slope = np.float64(normal(3, (3, 4))), np.float64(normal(4, (4,)))
    bends = moves @ np.diag([1.0, 2.0, 5.0, 9.0])

    @jax.jit
    def direction(slope):
        pairs = _quasi_newton.init(5, slope)
        for pair in zip(moves, bends, strict=True):
            pairs = _quasi_newton.push(pairs, *pair)
        return _quasi_newton.direction(pairs, slope, jnp.ones(4, bool))

    inverse = np.eye(4) * (moves[-1] @ bends[-1]) / (bends[-1] @ bends[-1])
    for move, bend in zip(moves, bends, strict=True):
        turn = np.eye(4) - np.outer(move, bend) / (move @ bend)
        inverse = turn @ inverse @ turn.T + np.outer(move, move) / (move @ bend)
    with jax.enable_x64(True):
        np.testing.assert_allclose(direction(slope), inverse @ slope, rtol=1e-9)


def test_extrapolation_spares_most_gradients_where_the_problem_is_ill_conditioned():
    with jax.enable_x64(True):
        curvatures = np.geomspace(1e-3, 1.0, 12)
        fun = lambda x: 0.5 * jnp.sum(curvatures * jnp.square(x - 1.0))
        plain, extrapolated = (
            minimise(fun, np.zeros(12), penalties.l1(1e-5), rule=r, max_iterations=50_000, tolerance=1e-8)
            for r in (solvers.ista(), solvers.anderson())
        )
        assert plain.converged and extrapolated.converged
        np.testing.assert_allclose(extrapolated.params, 1.0 - 1e-5 / curvatures, atol=1e-4)
        assert extrapolated.evaluations < 0.2 * plain.evaluations


def test_an_extrapolation_that_goes_up_is_not_taken():
    # Where the slope hardly changes, a secant through two gradients overshoots: from 2.05 to -15.
    fun = lambda x: jnp.sum(jnp.sqrt(1.0 + jnp.square(x)))
    found = minimise(
        fun, np.float32([3.0]), penalties.zero(), rule=solvers.anderson(2), step_size=1.0, max_iterations=2
    )
    x = 3.0
    for _ in range(2):
        x -= x / np.sqrt(1.0 + x**2)
    np.testing.assert_allclose(found.params, [x], rtol=1e-5)


def test_without_a_kink_the_sign_may_change_and_what_no_gradient_moves_stays():
    # The sum of the logits is not identified: all gradients are orthogonal to it.
    shares, start = np.float32([0.1, 0.6, 0.3]), np.float32([2.0, -1.5, -0.5])

    def fun(x):
        loss = jax.nn.logsumexp(x["free"]) - shares @ x["free"]
        return loss + 0.5 * jnp.sum(jnp.square(x["held"] - 1)), {"count": jnp.int32(7)}

    parts = {"free": penalties.zero(), "held": penalties.l1(0.25)}
    penalty = penalties.separable_sum(parts, {"free": "free", "held": "held"})
    start = {"free": start, "held": -np.ones(1, np.float32)}
    found = minimise(fun, start, penalty, tolerance=1e-6, has_aux=True)
    np.testing.assert_allclose(found.params["free"], np.log(shares) - np.log(shares).mean(), atol=1e-4)
    np.testing.assert_allclose(found.params["held"], [0.75], atol=1e-5)
    assert found.aux["count"] == 7


def test_a_restart_of_the_momentum_is_worth_half_of_the_iterations():
    curvatures = np.geomspace(1e-3, 1.0, 30)
    fun = lambda x: 0.5 * jnp.sum(curvatures * jnp.square(x - 1.0))
    options = {"max_iterations": 4000, "tolerance": 1e-6}
    with jax.enable_x64(True):
        restarted, plain = (
            minimise(fun, np.zeros(30), penalties.zero(), rule=solvers.fista(restart), **options)
            for restart in (True, False)
        )
    assert restarted.converged and restarted.iterations < 0.6 * plain.iterations


SOME = ("ista", "anderson", "barzilai_borwein")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in RULES if name not in SOME]


@pytest.mark.parametrize("rule", [*SOME, *OTHERS])
def test_ridge_ends_at_its_closed_form(rule):
    solution = solved(least_squares, rule, 0.0, 0.3)
    exact = np.linalg.solve(FEATURES.T @ FEATURES / 40 + 0.3 * np.eye(12), FEATURES.T @ TARGETS / 40)
    np.testing.assert_allclose(solution.params, exact, atol=2e-5)


# By default the momentum is compared with that by hand.
@pytest.mark.slow
def test_a_known_strong_convexity_is_used():
    hessian = np.asarray(FEATURES.T @ FEATURES / 40, np.float64)
    lowest = float(np.linalg.eigvalsh(hessian)[0])
    rule = solvers.fista(restart=False, strong_convexity=lowest, grow=1.0)
    solution = minimise(least_squares, np.zeros(12), penalties.l1(0.05), rule=rule, max_iterations=2000)
    assert solution.converged
    assert_optimal_for_the_lasso(least_squares, solution.params, 0.05)


def test_the_momentum_for_a_known_strong_convexity_by_hand():
    curvatures, centre, t = np.array([0.1, 0.4, 1.0]), np.array([3.0, -2.0, 0.1]), 0.9
    fun = lambda x: 0.5 * jnp.sum(curvatures * jnp.square(x - centre))
    rule = solvers.fista(restart=False, strong_convexity=0.1, grow=1.0)
    options = {"step_size": t, "backtracking": None, "tolerance": 0.0, "max_iterations": 4}
    found = minimise(fun, np.zeros(3), penalties.l1(0.05), rule=rule, **options)
    x = y = np.zeros(3)
    momentum = (1 - (t * 0.1) ** 0.5) / (1 + (t * 0.1) ** 0.5)
    for _ in range(4):
        z = y - t * curvatures * (y - centre)
        new = z - np.clip(z, -0.05 * t, 0.05 * t)
        x, y = new, new + momentum * (new - x)
    np.testing.assert_allclose(found.params, x, rtol=1e-5)


def test_a_box_is_solved_without_a_residual():
    target = np.float32([2.0, -3.0, 0.5])
    box = penalties.Penalty(lambda x: 0.0 * jnp.sum(x), lambda x, t: jnp.clip(x, -1.0, 1.0))
    fun = lambda x: 0.5 * jnp.sum(jnp.square(x - target))
    solution = minimise(fun, np.zeros(3), box)
    assert solution.converged
    np.testing.assert_allclose(solution.params, [1.0, -1.0, 0.5], atol=1e-5)


@pytest.mark.slow
def test_vmap_over_strengths_is_the_loop():
    strengths = jnp.array([0.01, 0.1, 0.5])
    solve = lambda s: solvers.proximal_gradient(least_squares, jnp.zeros(12), penalties.l1(s))
    together = jax.jit(jax.vmap(solve))(strengths)
    for i, strength in enumerate(strengths):
        alone = solve(strength)
        np.testing.assert_allclose(together.params[i], alone.params, atol=5e-5)
        assert together.converged[i]
    assert len(set(together.iterations.tolist())) > 1


@pytest.mark.parametrize("forwards", [pytest.param(True, marks=pytest.mark.slow), False])
def test_float64_goes_on_to_1e_12_and_the_solution_can_be_differentiated_in_strength_and_data(forwards):
    with jax.enable_x64(True):
        features, targets = np.float64(FEATURES), np.float64(TARGETS)
        fun = lambda w, targets: 0.5 * jnp.mean(jnp.square(features @ w - targets))

        def solve(theta):
            loss = lambda w: fun(w, theta[1:])
            penalty = penalties.elastic_net(theta[0], 0.1)
            found = solvers.proximal_gradient(loss, jnp.zeros(12), penalty, tolerance=1e-12)
            return found.params, found.converged

        @jax.jit
        def with_jacobian(theta):
            if forwards:
                return solve(theta), jax.jacfwd(lambda theta: solve(theta)[0])(theta)
            params, pull, converged = jax.vjp(solve, theta, has_aux=True)
            return (params, converged), jax.vmap(pull)(jnp.eye(12))[0]

        theta = np.concatenate([[0.05], targets])
        (weights, converged), jacobian = jax.tree.map(np.asarray, with_jacobian(theta))
        assert weights.dtype == np.float64 and converged
        ridged = lambda w: fun(w, targets) + 0.05 * jnp.sum(jnp.square(w))
        assert_optimal_for_the_lasso(ridged, weights, 0.05, atol=2e-12)
        for column in (0, 1, 7):
            nudge = 1e-4 * (np.arange(theta.size) == column)
            ahead, behind = (np.asarray(with_jacobian(theta + x)[0][0]) for x in (nudge, -nudge))
            np.testing.assert_allclose(jacobian[:, column], (ahead - behind) / 2e-4, atol=1e-7)
        assert np.any(jacobian[:, 0] != 0)


# By default the same in float64 with a ridge.
@pytest.mark.slow
def test_a_loss_on_the_solution_has_a_gradient():
    held_out = lambda w: jnp.mean(jnp.square(FEATURES[:5] @ w - TARGETS[:5]))
    solve = lambda s: solvers.proximal_gradient(least_squares, jnp.zeros(12), penalties.l1(s), tolerance=1e-6)
    risk = lambda s: held_out(solve(s).params)
    slope, risk = jax.jit(jax.grad(risk))(0.2), jax.jit(risk)
    finite = (float(risk(0.21)) - float(risk(0.19))) / 0.02
    assert float(slope) == pytest.approx(finite, rel=0.02)


def test_the_largest_strength_is_where_the_first_weight_appears():
    largest = lambda make: float(jax.jit(lambda w: solvers.strength_max(least_squares, w, make))(np.ones(12)))
    slope = FEATURES.T @ TARGETS / 40
    assert largest(penalties.l1) == pytest.approx(np.max(np.abs(slope)), rel=1e-5)
    whole = lambda s: penalties.group_lasso(s, axis=None, weight="none")
    assert largest(whole) == pytest.approx(np.linalg.norm(slope), rel=1e-5)
    assert largest(penalties.squared_l2) == np.inf


def test_a_path_is_what_each_strength_gives_and_is_cheaper():
    top = np.max(np.abs(FEATURES.T @ TARGETS)) / 40
    strengths = np.float32(1.0001 * top * np.geomspace(1.0, 1e-2, 8))
    path = jax.jit(lambda s: solvers.path(least_squares, jnp.zeros(12), penalties.l1, s))(strengths)
    path = jax.tree.map(np.asarray, path)
    assert np.all(path.converged)
    support = np.sum(path.params != 0, axis=1)
    assert support[0] == 0
    assert 3 < support[-1] <= 12
    alone = [solved(least_squares, "barzilai_borwein", s, 0.0) for s in strengths.tolist()]
    np.testing.assert_allclose(path.params, [found.params for found in alone], atol=2e-4)
    assert np.sum(path.evaluations) < sum(found.evaluations for found in alone)


def test_running_out_of_iterations_is_said_and_a_solution_is_seen_at_once():
    solve = functools.partial(solved, least_squares, "barzilai_borwein")
    stopped, found = solve(0.01, 0.0, most=2), solve(100.0, 0.0)
    assert stopped.iterations == 2 and not stopped.converged
    assert "max_iterations" in stopped.reason
    assert found.iterations == 0 and found.converged


def test_an_objective_that_is_not_finite_is_said():
    fun = lambda x: jnp.sum(jnp.sqrt(x - 5.0))
    solution = minimise(fun, np.zeros(2), penalties.l1(0.1), rule=solvers.ista(), step_size=1.0)
    assert "not finite" in solution.reason
    assert solution.iterations <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": 0.1}, r"penalty must be a Penalty"),
        ({"tolerance": -1.0}, r"tolerance must be a number ≥ 0"),
        ({"max_iterations": float("nan")}, r"max_iterations must be an integer ≥ 0"),
        ({"step_size": 0.0}, r"step_size must be a number > 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    given = {"penalty": penalties.l1(0.1)} | options
    with pytest.raises(ValueError, match=message):
        solvers.proximal_gradient(least_squares, jnp.zeros(12), **given)


def test_a_path_wants_a_vector():
    with pytest.raises(ValueError, match=r"a vector, got \(\)"):
        solvers.path(least_squares, jnp.zeros(12), penalties.l1, jnp.float32(1.0))
