"""Solvers step by step and their options: other data, stopping, penalties without a value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties, solvers
from proxlm.solvers import _compiled
from tests.arrays import normal

FEATURES = np.asarray(normal(0, (40, 6)))
TARGETS = FEATURES[:, :2] @ np.float32([2.0, -1.0]) + 0.1 * np.asarray(normal(1, (40,)))


def distance(x, target):
    return 0.5 * jnp.sum(jnp.square(x - target))


def least_squares(weights, features, targets):
    return 0.5 * jnp.sum(jnp.square(features @ weights - targets))


@pytest.mark.parametrize("rule", [None, solvers.ista(), solvers.fista()], ids=["default", "ista", "fista"])
def test_a_step_on_other_data_takes_their_gradient(rule):
    solver = solvers.Solver(distance, penalties.zero(), rule=rule, step_size=0.5, backtracking=None)
    start = jnp.zeros(1)
    state = solver.init(start, 10.0)
    params, state = solver.update(start, state, -10.0)
    np.testing.assert_allclose(params, [-5.0])
    params, _ = solver.update(params, state, -10.0)
    assert -10.0 <= params[0] < -7.0


@pytest.mark.parametrize(
    "rule", [solvers.barzilai_borwein(), solvers.anderson()], ids=["spectral", "anderson"]
)
def test_memories_of_other_data_are_dropped(rule):
    solver = solvers.Solver(distance, penalties.l1(1.0), rule=rule, step_size=0.5)
    params = jnp.zeros(3)
    state = solver.run(params, jnp.array([10.0, 5.0, 0.5])).state
    for _ in range(12):
        params, state = solver.update(params, state, jnp.array([-10.0, 0.5, 5.0]))
    np.testing.assert_allclose(params, [-9.0, 0.0, 4.0], atol=1e-4)
    assert state.status == 0


def test_what_a_rule_remembers_is_of_the_last_steps():
    run = lambda rule: solvers.Solver(distance, penalties.zero(), rule=rule, step_size=0.1)
    # the search of a step compares with the last objectives
    solver, params = run(solvers.barzilai_borwein(patience=2, memory=0)), jnp.full(2, 8.0)
    state, target, seen = solver.init(params, jnp.arange(2.0)), jnp.arange(2.0), []
    for _ in range(3):
        params, state = solver.update(params, state, target)
        seen.append(distance(params, target))
    np.testing.assert_allclose(state.moving.memory.totals, seen[-2:], rtol=1e-6)
    # momentum begins anew at params that another one moved
    solver = run(solvers.fista(restart=False))
    state = solver.init(params, target)
    for moved in (0.0, 0.0, 1.0):
        params, state = solver.update(params + moved, state, target)
    np.testing.assert_allclose(state.moving.memory.weight, 0.5 * (1.0 + np.sqrt(5.0)), rtol=1e-6)


def test_without_a_tolerance_the_number_of_iterations_is_exact():
    solve = lambda tolerance: solvers.proximal_gradient(
        distance, jnp.zeros(2), penalties.l1(1.0), 3.0, tolerance=tolerance, max_iterations=12
    )
    assert solve(None).iterations == 12 and solve(None).status == 1
    assert solve(0.0).iterations < 12


def test_steps_are_the_run_and_go_on_from_it():
    solver = solvers.Solver(least_squares, penalties.l1(4.0), max_iterations=4, tolerance=0.0)
    data, params = (FEATURES, TARGETS), np.zeros(6, np.float32)
    found = solver.run(params, *data)
    state, update = jax.jit(solver.init)(params, *data), jax.jit(solver.update)
    for _ in range(4):
        assert state.status == 4
        params, state = update(params, state, *data)
    assert state.status == found.status == 1
    np.testing.assert_allclose(params, found.params, atol=1e-6)
    assert state.iterations == found.state.iterations == 4
    further, _ = update(found.params, found.state, *data)
    objective = lambda x: 0.5 * np.sum(np.square(FEATURES @ x - TARGETS)) + 4.0 * np.sum(np.abs(x))
    assert objective(further) <= found.objective + 1e-5


def test_a_second_call_is_not_compiled_again_unless_something_changed():
    shift = {"by": 0.0}
    fun = lambda x, target: distance(x, target + shift["by"])
    solve = lambda target: solvers.proximal_gradient(fun, jnp.zeros(2), penalties.l1(1.0), target).params[0]
    compiled = _compiled._jitted("run", _compiled._compiles_faster())
    before = compiled._cache_size()
    assert [round(float(solve(target)), 4) for target in (3.0, 5.0)] == [2.0, 4.0]
    assert compiled._cache_size() == before + 1
    shift["by"] = 1.0  # a function's surroundings belong to what is asked
    assert round(float(solve(3.0)), 4) == 3.0


def test_options_of_the_compiler_are_for_an_outermost_program_on_cpu_that_knows_them(monkeypatch):
    fast = _compiled._compiles_faster()
    assert fast == (jax.default_backend() == "cpu")
    solve = lambda: solvers.proximal_gradient(distance, jnp.zeros(2), penalties.l1(1.0), 3.0).params
    assert jax.eval_shape(solve).shape == (2,)
    monkeypatch.setattr(_compiled, "OPTIONS", {"xla_no_such_option": False})
    assert not _compiled._knows_options.__wrapped__("cpu")


def test_a_given_gradient_and_any_aux():
    aux = lambda x: {"count": jnp.int32(7), "none": None, "pair": (2.5, x > 0)}
    fun = lambda x: ((distance(x, 3.0), aux(x)), x - 3.0)
    found = solvers.proximal_gradient(fun, jnp.zeros(1), penalties.l1(1.0), has_aux=True, value_and_grad=True)
    np.testing.assert_allclose(found.params, [2.0], atol=1e-5)
    assert found.aux["count"] == 7 and found.aux["pair"][0] == 2.5 and found.aux["pair"][1].all()


def test_integer_params_are_refused():
    message = "params at w must be of real floating-point, got int32. Convert it"
    with pytest.raises(ValueError, match=message):
        solvers.proximal_gradient(lambda p: jnp.sum(p["w"]), {"w": jnp.arange(3)}, penalties.l1(1.0))


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(None, id="default"),
        pytest.param(solvers.fista(), id="fista"),
        pytest.param(solvers.ista(), id="ista", marks=pytest.mark.slow),
    ],
)
def test_the_precision_of_the_dtype_ends_the_iteration_at_the_best_point(rule):
    features = np.asarray(normal(2, (2000, 50)))
    targets = features[:, :3] @ np.float32([2.0, -1.0, 1.0]) + np.asarray(normal(3, (2000,)))
    found = solvers.proximal_gradient(
        least_squares, jnp.zeros(50), penalties.l1(200.0), features, targets, rule=rule
    )
    assert "precision" in found.reason
    assert found.evaluations < 60
    with jax.enable_x64(True):
        data = features.astype(np.float64), targets.astype(np.float64)
        exact = solvers.proximal_gradient(least_squares, jnp.zeros(50), penalties.l1(200.0), *data)
    np.testing.assert_allclose(found.params, exact.params, atol=3e-7)
    relative = solvers.proximal_gradient(
        least_squares,
        jnp.zeros(50),
        penalties.l1(200.0),
        features,
        targets,
        rule=rule,
        relative_tolerance=1e-5,
    )
    assert relative.converged and relative.iterations < found.iterations


def test_a_prox_without_a_value_finds_the_solution():
    prox = lambda x, t: jax.tree.map(lambda leaf: jnp.sign(leaf) * jnp.maximum(jnp.abs(leaf) - 4 * t, 0), x)
    solve = lambda g: solvers.proximal_gradient(
        least_squares, jnp.zeros(6), g, FEATURES, TARGETS, relative_tolerance=1e-6
    )
    found, known = solve(penalties.Penalty(None, prox)), solve(penalties.l1(4.0))
    assert found.iterations < 50
    np.testing.assert_allclose(found.params, known.params, atol=1e-5)
    with pytest.raises(ValueError, match="one that needs no value of the penalty"):
        solvers.Solver(distance, penalties.Penalty(None, prox), rule=solvers.anderson())


def test_the_error_without_a_residual_is_that_of_the_subgradient_of_the_prox():
    target = jnp.array([3.0, 0.5])
    norm = penalties.l1(1.0)._replace(residual=None)
    fun = lambda x: 2.0 * distance(x, target)
    found = solvers.proximal_gradient(
        fun, jnp.zeros(2), norm, rule=solvers.ista(), step_size=0.25, max_iterations=1
    )
    np.testing.assert_allclose(found.params, [1.25, 0.0])  # from a gradient of (-6, -1), less the threshold
    assert found.error == pytest.approx(abs(2 * (1.25 - 3.0) + 1.0))


def test_the_limits_of_a_step_hold():
    steps = []
    solve = lambda **options: solvers.proximal_gradient(
        lambda x: 2.0 * distance(x, 1.0),
        jnp.zeros(2),
        penalties.zero(),
        rule=solvers.ista(grow=1.0),
        **options,
    )
    solve(step_size=8.0, max_step_size=0.1, max_iterations=3, callback=lambda it: steps.append(it.step_size))
    jax.effects_barrier()
    np.testing.assert_allclose(steps, 3 * [0.1])
    shortened = solve(step_size=8.0, backtracking=solvers.Backtracking(factor=0.25), max_iterations=1)
    assert shortened.step_size == 0.5 and shortened.evaluations == 1 + 3
    assert solve(step_size=8.0, backtracking=solvers.Backtracking(limit=2), max_iterations=1).step_size == 4.0


def test_a_metric_undoes_bad_scaling():
    curvatures = jnp.geomspace(1e-2, 1e2, 6)
    fun = lambda x: 0.5 * jnp.sum(curvatures * jnp.square(x - 1.0))
    solve = lambda metric: solvers.proximal_gradient(
        fun, jnp.zeros(6), penalties.l1(1e-3), rule=solvers.ista(), metric=metric
    )
    scaled = solve(curvatures)
    np.testing.assert_allclose(scaled.params, 1.0 - 1e-3 / curvatures, atol=1e-3)
    assert scaled.iterations < 20 and solve(None).iterations > 100


def test_a_start_outside_the_set_comes_in():
    found = solvers.proximal_gradient(lambda x: distance(x, 3.0), jnp.full(2, 9.0), penalties.box(-1.0, 1.0))
    assert found.converged
    np.testing.assert_allclose(found.params, 1.0)
