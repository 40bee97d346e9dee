"""Solvers: solutions known in closed form, optimality conditions, derivatives, why they stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties, solvers
from proxlm.solvers import _extrapolation
from tests.arrays import normal

FEATURES = normal(0, (40, 12))
NOISE = 0.1 * np.asarray(normal(1, (40,)))
TARGETS = jnp.array(np.asarray(FEATURES)[:, :3] @ np.float32([2.0, -1.0, 1.5]) + NOISE)
RULES = {
    "ista": solvers.ista(),
    "fista": solvers.fista(),
    "fista_without_restart": solvers.fista(restart=False),
    "anderson": solvers.anderson(),
    "barzilai_borwein": solvers.barzilai_borwein(),
    "spectral_steps_alone": solvers.barzilai_borwein(memory=0),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def least_squares(weights):
    return 0.5 * jnp.mean(jnp.square(FEATURES @ weights - TARGETS))


def logistic(weights):
    return jnp.mean(jnp.logaddexp(0.0, -jnp.sign(TARGETS) * (FEATURES @ weights)))


def assert_optimal_for_the_lasso(fun, weights, strength, atol=2e-5):
    slope, live = np.asarray(jax.grad(fun)(weights)), np.asarray(weights != 0)
    np.testing.assert_allclose(slope[live], -strength * np.sign(np.asarray(weights)[live]), atol=atol)
    assert np.abs(slope[~live]).max() <= strength + atol


@every_rule
@pytest.mark.parametrize("fun", [least_squares, logistic])
def test_the_lasso_ends_where_its_optimality_conditions_hold(rule, fun):
    solve = lambda: solvers.proximal_gradient(
        fun, jnp.zeros(12), penalties.l1(0.05), rule=rule, max_iterations=5000
    )
    solution = jax.jit(solve)()
    assert solution.converged, solution.reason
    assert_optimal_for_the_lasso(fun, solution.params, 0.05)
    assert solution.objective == pytest.approx(
        float(fun(solution.params) + 0.05 * jnp.sum(jnp.abs(solution.params))), rel=1e-6
    )


def test_extrapolation_finds_the_fixed_point_of_an_affine_map():
    # In n dimensions n + 1 steps say all about it.
    with jax.enable_x64(True):
        matrix, offset = 0.3 * np.asarray(normal(2, (3, 3)), np.float64), jnp.arange(1.0, 4.0)
        history, x = _extrapolation.init(4, offset), jnp.zeros(3)
        for _ in range(4):
            image = matrix @ x + offset
            history, x = _extrapolation.push(history, x, image), image
        fixed = np.linalg.solve(np.eye(3) - matrix, offset)
        assert np.abs(x - fixed).max() > 1e-2
        np.testing.assert_allclose(_extrapolation.extrapolate(history), fixed, atol=1e-8)


def test_extrapolation_spares_most_gradients_where_the_problem_is_ill_conditioned():
    with jax.enable_x64(True):
        curvatures = jnp.geomspace(1e-3, 1.0, 12)
        fun = lambda x: 0.5 * jnp.sum(curvatures * jnp.square(x - 1.0))
        solve = lambda rule: solvers.proximal_gradient(
            fun, jnp.zeros(12), penalties.l1(1e-5), rule=rule, max_iterations=50_000, tolerance=1e-8
        )
        plain, extrapolated = (
            jax.jit(solve, static_argnums=0)(r) for r in (solvers.ista(), solvers.anderson())
        )
        assert plain.converged and extrapolated.converged
        np.testing.assert_allclose(extrapolated.params, 1.0 - 1e-5 / curvatures, atol=1e-4)
        assert extrapolated.evaluations < 0.2 * plain.evaluations


def test_an_extrapolation_that_goes_up_is_not_taken():
    # Where the slope hardly changes, a secant through two gradients overshoots: from 2.05 to -15.
    fun = lambda x: jnp.sum(jnp.sqrt(1.0 + jnp.square(x)))
    found = solvers.proximal_gradient(
        fun, jnp.array([3.0]), penalties.zero(), rule=solvers.anderson(2), step_size=1.0, max_iterations=2
    )
    x = 3.0
    for _ in range(2):
        x -= x / np.sqrt(1.0 + x**2)
    np.testing.assert_allclose(found.params, [x], rtol=1e-5)


def test_a_restart_of_the_momentum_is_worth_half_of_the_iterations():
    curvatures = jnp.geomspace(1e-3, 1.0, 30)
    fun = lambda x: 0.5 * jnp.sum(curvatures * jnp.square(x - 1.0))
    solve = lambda restart: solvers.proximal_gradient(
        fun, jnp.zeros(30), penalties.zero(), rule=solvers.fista(restart), max_iterations=4000, tolerance=1e-6
    )
    with jax.enable_x64(True):
        restarted, plain = (jax.jit(solve, static_argnums=0)(restart) for restart in (True, False))
    assert restarted.converged and restarted.iterations < 0.6 * plain.iterations


@every_rule
def test_ridge_ends_at_its_closed_form(rule):
    solve = lambda: solvers.proximal_gradient(
        least_squares, jnp.zeros(12), penalties.squared_l2(0.3), rule=rule, max_iterations=5000
    )
    solution = jax.jit(solve)()
    features, targets = np.asarray(FEATURES), np.asarray(TARGETS)
    exact = np.linalg.solve(features.T @ features / 40 + 0.3 * np.eye(12), features.T @ targets / 40)
    np.testing.assert_allclose(solution.params, exact, atol=2e-5)


def test_a_known_strong_convexity_is_used():
    hessian = np.asarray(FEATURES.T @ FEATURES / 40, np.float64)
    lowest = float(np.linalg.eigvalsh(hessian)[0])
    rule = solvers.fista(restart=False, strong_convexity=lowest, grow=1.0)
    solution = solvers.proximal_gradient(
        least_squares, jnp.zeros(12), penalties.l1(0.05), rule=rule, max_iterations=2000
    )
    assert solution.converged
    assert_optimal_for_the_lasso(least_squares, solution.params, 0.05)


def test_float64_goes_on_to_1e_12():
    with jax.enable_x64(True):
        features, targets = np.asarray(FEATURES, np.float64), np.asarray(TARGETS, np.float64)
        fun = lambda w: 0.5 * jnp.mean(jnp.square(features @ w - targets))
        solution = solvers.proximal_gradient(fun, jnp.zeros(12), penalties.l1(0.05), tolerance=1e-12)
        assert solution.params.dtype == jnp.float64
        assert solution.converged
        assert_optimal_for_the_lasso(fun, solution.params, 0.05, atol=2e-12)


def test_a_box_is_solved_without_a_residual():
    target = jnp.array([2.0, -3.0, 0.5])
    box = penalties.Penalty(lambda x: 0.0 * jnp.sum(x), lambda x, t: jnp.clip(x, -1.0, 1.0))
    fun = lambda x: 0.5 * jnp.sum(jnp.square(x - target))
    solution = solvers.proximal_gradient(fun, jnp.zeros(3), box)
    assert solution.converged
    np.testing.assert_allclose(solution.params, [1.0, -1.0, 0.5], atol=1e-5)


def test_trees_and_auxiliary_outputs():
    target = {"a": jnp.array([3.0, 0.1]), "b": {"c": jnp.array([[-2.0]])}}

    def fun(params):
        gaps = jax.tree.map(lambda p, t: jnp.sum(jnp.square(p - t)), params, target)
        return 0.5 * jax.tree.reduce(jnp.add, gaps), {"count": jnp.int32(7)}

    start = jax.tree.map(jnp.zeros_like, target)
    solution = jax.jit(lambda: solvers.proximal_gradient(fun, start, penalties.l1(1.0), has_aux=True))()
    np.testing.assert_allclose(solution.params["a"], [2.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(solution.params["b"]["c"], [[-1.0]], atol=1e-5)
    assert solution.aux["count"] == 7


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
def test_the_solution_can_be_differentiated_in_strength_and_data(forwards):
    with jax.enable_x64(True):
        features, targets = np.asarray(FEATURES, np.float64), jnp.asarray(TARGETS, jnp.float64)

        def solve(theta):
            strength, targets = theta[0], theta[1:]
            fun = lambda w: 0.5 * jnp.mean(jnp.square(features @ w - targets))
            return solvers.proximal_gradient(
                fun, jnp.zeros(12), penalties.elastic_net(strength, 0.1), tolerance=1e-12
            ).params

        theta = jnp.concatenate([jnp.array([0.05]), targets])
        jacobian = jax.jit((jax.jacfwd if forwards else jax.jacrev)(solve))(theta)
        theta, solve = np.asarray(theta), jax.jit(solve)
        for column in (0, 1, 7):
            nudge = 1e-4 * (np.arange(theta.size) == column)
            finite = (solve(theta + nudge) - solve(theta - nudge)) / 2e-4
            np.testing.assert_allclose(jacobian[:, column], finite, atol=1e-7)
        assert jnp.any(jacobian[:, 0] != 0)


def test_a_loss_on_the_solution_has_a_gradient():
    held_out = lambda w: jnp.mean(jnp.square(FEATURES[:5] @ w - TARGETS[:5]))
    solve = lambda s: solvers.proximal_gradient(least_squares, jnp.zeros(12), penalties.l1(s), tolerance=1e-6)
    risk = lambda s: held_out(solve(s).params)
    slope, risk = jax.jit(jax.grad(risk))(0.2), jax.jit(risk)
    finite = (risk(0.21) - risk(0.19)) / 0.02
    assert slope == pytest.approx(float(finite), rel=0.02)


def test_the_largest_strength_is_where_the_first_weight_appears():
    top = solvers.strength_max(least_squares, jnp.ones(12), penalties.l1)
    slope = jax.grad(least_squares)(jnp.zeros(12))
    assert top == pytest.approx(float(jnp.max(jnp.abs(slope))), rel=1e-6)
    groups = solvers.strength_max(
        least_squares, jnp.ones(12), lambda s: penalties.group_lasso(s, axis=None, weight="none")
    )
    assert groups == pytest.approx(float(jnp.linalg.norm(slope)), rel=1e-6)
    assert solvers.strength_max(least_squares, jnp.ones(12), penalties.squared_l2) == jnp.inf


def test_a_path_is_what_each_strength_gives_and_is_cheaper():
    top = solvers.strength_max(least_squares, jnp.zeros(12), penalties.l1)
    strengths = top * jnp.geomspace(1.0, 1e-2, 8)
    path = jax.jit(lambda s: solvers.path(least_squares, jnp.zeros(12), penalties.l1, s))(strengths)
    assert jnp.all(path.converged)
    support = jnp.sum(path.params != 0, axis=1)
    assert support[0] == 0
    assert 3 < support[-1] <= 12
    solve = lambda s: solvers.proximal_gradient(least_squares, jnp.zeros(12), penalties.l1(s))
    alone = jax.jit(jax.vmap(solve))(strengths)
    np.testing.assert_allclose(path.params, alone.params, atol=2e-4)
    assert jnp.sum(path.evaluations) < jnp.sum(alone.evaluations)


def test_running_out_of_iterations_is_said():
    solution = solvers.proximal_gradient(least_squares, jnp.zeros(12), penalties.l1(0.01), max_iterations=2)
    assert solution.iterations == 2
    assert not solution.converged
    assert "max_iterations" in solution.reason


def test_a_solution_is_seen_at_once():
    start = jnp.zeros(12)
    solution = solvers.proximal_gradient(least_squares, start, penalties.l1(100.0))
    assert solution.iterations == 0
    assert solution.converged


def test_an_objective_that_is_not_finite_is_said():
    fun = lambda x: jnp.sum(jnp.sqrt(x - 5.0))
    solution = solvers.proximal_gradient(fun, jnp.zeros(2), penalties.l1(0.1), step_size=1.0)
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
