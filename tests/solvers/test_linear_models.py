"""Sparse linear models: working sets find the solution of the whole problem, of dense and sparse features."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

from proxlm import penalties, solvers
from proxlm.solvers import _face, _problem, _quasi_newton
from tests.arrays import normal

FEATURES = np.asarray(normal(0, (40, 90)))
TARGETS = FEATURES[:, :6] @ np.array([2, -1, 3, 1, -2, 1.5], np.float32) + 0.1 * np.asarray(normal(1, (40,)))
SQUARES = solvers.LinearLoss(lambda eta, y: 0.5 * jnp.square(eta - y))
LOGISTIC = solvers.LinearLoss(lambda eta, y: jnp.logaddexp(0.0, -y * eta))
RULE = solvers.working_sets((8, 32))


def solve(fun, targets, params, penalty, features: Any = FEATURES, rule: Any = RULE, **options):
    return solvers.proximal_gradient(fun, params, penalty, features, targets, rule=rule, **options)


def test_working_sets_solve_the_whole_problem():
    one = solvers.working_sets((16,))
    found = solve(SQUARES, TARGETS, jnp.zeros(90), penalties.l1(0.3), rule=one)
    whole = solve(SQUARES, TARGETS, jnp.zeros(90), penalties.l1(0.3), rule=None)
    assert found.converged and found.evaluations < whole.evaluations
    np.testing.assert_allclose(found.params, whole.params, atol=2e-4)
    np.testing.assert_allclose(found.objective, whole.objective, rtol=1e-6)


@pytest.mark.slow
def test_more_nonzeros_than_a_set_holds():
    found = solve(SQUARES, TARGETS, jnp.zeros(90), penalties.l1(1e-2), rule=solvers.working_sets((8,)))
    whole = solve(SQUARES, TARGETS, jnp.zeros(90), penalties.l1(1e-2), rule=None)
    assert jnp.sum(found.params != 0) > 16
    np.testing.assert_allclose(found.objective, whole.objective, rtol=1e-4)


@pytest.mark.slow
def test_penalties_across_coordinates_converge_by_plain_steps():
    group = penalties.group_lasso(0.5, axis=None)
    found = solve(SQUARES, TARGETS, jnp.zeros(90), group, max_iterations=3000)
    whole = solve(SQUARES, TARGETS, jnp.zeros(90), group, rule=None)
    np.testing.assert_allclose(found.objective, whole.objective, rtol=1e-4)


@pytest.mark.slow
def test_an_intercept_a_loss_weights_and_strengths_of_each_coefficient():
    signs = np.sign(TARGETS + 1.0)
    weights = np.linspace(0.5, 1.5, 40, dtype=np.float32)
    start = {"coef": jnp.zeros(90), "intercept": jnp.zeros(())}
    strengths = jnp.linspace(0.02, 0.08, 90)
    parts = {"coef": penalties.l1(strengths), "intercept": penalties.zero()}
    penalty = penalties.separable_sum(parts, {"coef": "coef", "intercept": "intercept"})
    run = lambda rule: solvers.proximal_gradient(
        LOGISTIC, start, penalty, FEATURES, signs, weights, rule=rule, tolerance=1e-6
    )
    found, whole = run(RULE), run(None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), found.params, whole.params)
    assert found.params["intercept"] != 0


def test_sparse_features_are_the_dense_ones():
    dense = np.where(np.abs(FEATURES) > 1.0, FEATURES, 0.0)
    dense[:, 3] = 0.0
    features = solvers.SparseFeatures.of(sparse.csr_array(dense))
    weights, chosen = np.asarray(normal(2, (90,))), np.array([5, 3, 89])

    @jax.jit
    def of(weights, chosen):
        gradient = jax.grad(lambda w: SQUARES(w, features, TARGETS))(weights)
        return features @ weights, features.take(chosen) @ weights[:3], gradient

    product, part, gradient = of(weights, chosen)
    np.testing.assert_allclose(product, dense @ weights, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(part, dense[:, chosen] @ weights[:3], atol=1e-5)
    np.testing.assert_allclose(gradient, dense.T @ (dense @ weights - TARGETS) / 40, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a sparse matrix of SciPy"):
        solvers.SparseFeatures.of(dense)


@pytest.mark.slow
def test_sparse_features_have_the_same_solution():
    dense = np.where(np.abs(FEATURES) > 1.0, FEATURES, 0.0)
    features = solvers.SparseFeatures.of(sparse.csr_array(dense))
    found = solve(SQUARES, TARGETS, jnp.zeros(90), penalties.l1(0.3), features)
    whole = solve(SQUARES, TARGETS, jnp.zeros(90), penalties.l1(0.3), dense)
    np.testing.assert_allclose(found.params, whole.params, atol=2e-4)


def test_a_newton_step_ends_at_the_least_point_of_the_face_or_at_its_boundary():
    @jax.jit
    def step(x, hessian, slope):
        fun = lambda x: 0.5 * x @ hessian @ x - slope @ x
        objective = _problem.Objective(fun, penalties.elastic_net(0.1, 0.4))
        problem = _problem.flatten(objective, x)[0]._replace(hessian=hessian)
        point = problem.at(x)
        return point.total, _face.step(problem, point, point, _quasi_newton.init(2, x))[0]

    hessian = np.float32([[2.0, 0.5, 0.3], [0.5, 1.0, 0.2], [0.3, 0.2, 1.5]])
    _, there = step(np.float32([1.0, 0.0, 2.0]), hessian, np.float32([3.0, 9.0, 1.0]))
    first, third = np.linalg.solve([[2.4, 0.3], [0.3, 1.9]], [2.9, 0.9])
    np.testing.assert_allclose(there.x, [first, 0.0, third], rtol=1e-5)
    # The least point of this face is (10, -9), and (10, 0) is higher than (1, 0.5).
    tied = np.float32([[0.6, 0.9, 0.0], [0.9, 0.6, 0.0], [0.0, 0.0, 1.0]])
    before, there = step(np.float32([1.0, 0.5, 0.0]), tied, np.float32([2.0, 0.1, 0.0]))
    assert there.x[1] == 0 and there.total < before


def test_other_functions_are_refused():
    with pytest.raises(ValueError, match="fun must be a LinearLoss"):
        solve(lambda w, x, y: jnp.sum(w), TARGETS, jnp.zeros(90), penalties.l1(0.3))
