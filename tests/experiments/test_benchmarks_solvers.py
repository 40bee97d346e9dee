"""The benchmark of solvers: gaps that are true, and a line for everyone."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import clock, glms, solvers, sparse_problems

QUICK = clock.Settings("wall", repeats=1, seconds=0.0)
TOY = sparse_problems.Job(30, 20, nonzeros=3, strengths=4)
PROBLEMS = sparse_problems.problems(TOY)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gap_bounds_the_distance_to_the_optimum_and_closes_there(name):
    problem = PROBLEMS[name]
    with jax.enable_x64(True):
        best = solvers.ours(problem)(1e-9)
    assert 0 <= problem.gap(best, problem.strength) < 1e-8
    unit = problem.objective(np.zeros(20), problem.strength)
    for seed in range(3):
        weights = best + 0.1 * np.random.default_rng(seed).normal(size=20)
        worse = problem.objective(weights, problem.strength) - problem.objective(best, problem.strength)
        assert problem.gap(weights, problem.strength) >= worse / unit > 0


@pytest.mark.parametrize("name", PROBLEMS)
def test_zero_solves_the_problem_from_the_largest_strength_on(name):
    problem = PROBLEMS[name]
    zeros, largest = np.zeros(20), problem.largest_strength
    assert problem.gap(zeros, largest) == pytest.approx(0.0, abs=1e-12)
    assert problem.gap(zeros, 0.9 * largest) > 1e-4


@pytest.mark.slow
def test_every_solver_and_the_path_have_their_lines():
    models = glms.Job(30, 10, nonzeros=5)
    text = "\n".join(solvers.compare({"toy": TOY, "toy GLM": models}, QUICK))
    kinds = ("toy GLM", "logistic group lasso", "Poisson lasso", "Poisson group lasso")
    for word in (*PROBLEMS, "toy path", "4 strengths", "proxlm, the default rule", *kinds):
        assert word in text
