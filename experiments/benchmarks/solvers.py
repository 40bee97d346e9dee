"""Solvers to a duality gap: single problems and paths of strengths, beside coordinate descent.

The problems are a lasso and a sparse logistic regression in float64, on correlated normal features
or on sparse ones. A solver is given ever smaller tolerances until its relative gap, which is
computed here, is reached; that tolerance is then timed. Peers: skglm, celer and scikit-learn, of
generalised linear models NeMoS and jaxopt, where installed.

CPU milliseconds to a relative gap of 1e-6, medians of n=3 in turns, two shared Xeon cores under load 16
(sparse lassos with the best: n=7, load 11; sparse logistic: n=5, one pinned core, load 4), JAX 0.10.2,
skglm 0.5, celer 0.7.4; compilation left out:

| problem | nonzeros | proxlm | skglm | celer | liblinear |
| --- | --- | --- | --- | --- | --- |
| lasso 1000 x 5000, λmax/10 | 201 | 80 | 95 | 161 | |
| lasso 1000 x 5000, λmax/100 | 872 | 694 | 761 | 756 | |
| logistic 1000 x 5000, λmax/10 | 413 | 243 | 162 | 1067 | 824 |
| lasso 2000 x 10000, 1 % nonzero, λmax/10 | 64 | 14 (12) | 12 (8.5) | 11 (10) | |
| lasso 2000 x 10000, 1 % nonzero, λmax/100 | 1467 | 139 (131) | 100 (73) | 104 (90) | |
| logistic 2000 x 10000, 1 % nonzero, λmax/10 | 1112 | 73 (58) | 50 (36) | 149 (107) | 47 (37) |

A path of 100 lassos 1000 x 5000, from λmax to λmax/100, takes proxlm 7.3 to 7.5 s to a gap of 3.6e-7,
skglm 8.0 to 10.1 s to 2.4e-7 (n=3 and 2 in turns, load 16). On one
pinned core under load 10, proxlm takes 5.1 s to 2.4e-6, celer 4.6 to 1.2e-5 and 7.0 to 1.7e-6 (n=1).

Generalised linear models of 2000 x 200, groups of five, neighbouring features correlated by .9, λmax/100,
to an objective 1e-6 above the least in units of its fall from 0; one pinned core under load 4 to 5, n=5 in
turns, NeMoS 0.2.8, jaxopt 0.8.5, median (best):

| problem | proxlm, the default rule | NeMoS FISTA | jaxopt ProximalGradient |
| --- | --- | --- | --- |
| logistic lasso | 19 (18) | 203 (182) | 118 (117) |
| logistic group lasso | 32 (31) | 221 (217) | 174 (168) |
| Poisson lasso | 18 (17) | 156 (153) | 132 (130) |
| Poisson group lasso | 52 (50) | 236 (232) | 190 (186) |
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import clock, glms
from experiments.benchmarks.sparse_problems import (
    LOSSES,
    Job,
    Problem,
    coordinate_descent,
    installed,
    problems,
)
from experiments.support.run import tables
from proxlm import penalties, solvers

TOLERANCES = 10.0 ** -np.arange(1, 11)
GAP = 1e-6
JOBS = {
    "small": Job(100, 200, nonzeros=10, strengths=20),
    "large": Job(1000, 5000),
    "sparse": Job(2000, 10_000, sizes=(256, 2048), density=0.01),
    "generalised linear": glms.Job(),
}


def ours(problem: Problem, rule: solvers.Rule | None = None) -> Callable[[float], np.ndarray]:
    """tolerance, in units of the strength ↦ weights."""
    features, targets = problem.data

    @jax.jit
    def solve(features, targets, strength, tolerance):
        return solvers.proximal_gradient(
            LOSSES[problem.loss],
            jnp.zeros(features.shape[1]),
            penalties.l1(strength),
            features,
            targets,
            rule=rule,
            tolerance=tolerance * strength,
            max_iterations=2_000,
            implicit=False,
        ).params

    return lambda tolerance: np.asarray(solve(features, targets, problem.strength, tolerance))


def solvers_of(problem: Problem, job: Job) -> dict[str, Callable[[float], np.ndarray]]:
    """Ours and those that are installed."""
    found = {
        "proxlm": ours(problem, solvers.working_sets(job.sizes)),
        "proxlm, the default rule": ours(problem),
    }
    return found | {by: coordinate_descent(problem, by) for by in installed()}


def within_gap(title: str, solvers: dict, gap: Callable[[np.ndarray], float], tolerances=TOLERANCES):
    """Calls with the largest tolerance whose gap will do, those gaps, and a line for each that has none."""
    calls, gaps, missed = {}, {}, []
    for by, solve in solvers.items():
        reached = ((tolerance, gap(solve(tolerance))) for tolerance in tolerances)
        tolerance, gaps[by] = next((pair for pair in reached if pair[1] <= GAP), (0.0, np.inf))
        if tolerance:
            calls[by] = functools.partial(solve, float(tolerance))
        else:
            missed.append(f"{title}: {by} does not reach the gap")
    return calls, gaps, missed


def compare(jobs: Mapping[str, Job | glms.Job], settings: clock.Settings) -> Iterator[str]:
    """The tables of all the jobs."""
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers that do not reach a tolerance
        for name, job in jobs.items():
            if isinstance(job, glms.Job):
                yield generalised(name, job, settings)
                continue
            drawn = problems(job)
            yield single(name, job, drawn, settings)
            yield paths(name, job, drawn["lasso, λmax/10"], settings)


def single(name: str, job: Job, drawn: dict[str, Problem], settings: clock.Settings) -> str:
    """Seconds to the gap, one strength at a time."""
    rows, missed = [], []
    for title, problem in drawn.items():
        gap = functools.partial(problem.gap, strength=problem.strength)
        calls, gaps, late = within_gap(title, solvers_of(problem, job), gap)
        rows, missed = rows + rows_of(title, calls, gaps, settings), missed + late
    headers = [f"{name} problems", "by", "ms", "(best)", "time / proxlm", "(best)", "gap"]
    caption = f"{job.examples} x {job.features}, to a relative duality gap of {GAP:.0e}, float64"
    return "\n".join([tables.table(rows, headers), caption, *missed])


def generalised(name: str, job: glms.Job, settings: clock.Settings) -> str:
    """Milliseconds to the gap: a row for each problem, a column for each solver."""
    rows, missed = [], []
    for title, problem in glms.problems(job).items():
        # Half decades, since the solvers stop by different measures.
        found = within_gap(title, glms.solvers_of(problem), problem.gap, 10.0 ** -np.arange(0, 11, 0.5))
        timings = clock.measure(found[0], settings)
        cell = lambda by: f"{1e3 * timings[by].median:.1f} ({1e3 * timings[by].best:.1f})"  # noqa: B023
        rows.append([title, *(cell(by) if by in timings else "" for by in found[1])])
        headers, missed = [f"{name} problems", *found[1]], missed + found[2]
    caption = (
        f"{job.examples} x {job.features}, ms (best) to {GAP:.0e} of the fall from 0 to the least, float64"
    )
    return "\n".join([tables.table(rows, headers), caption, *missed])


def paths(name: str, job: Job, problem: Problem, settings: clock.Settings) -> str:
    """Seconds for all strengths of a path, each started from the last; the gap is the largest."""
    strengths = problem.largest_strength * np.geomspace(1.0, job.shortest, job.strengths)
    worst = lambda solved: max(
        problem.gap(weights, strength) for weights, strength in zip(solved, strengths, strict=True)
    )
    calls, gaps, missed = within_gap("path", path_solvers(problem, strengths, job), worst)
    rows = rows_of(f"{job.strengths} strengths", calls, gaps, settings)
    headers = [f"{name} path", "by", "ms", "(best)", "time / proxlm", "(best)", "largest gap"]
    return "\n".join([tables.table(rows, headers), *missed])


def path_solvers(problem: Problem, strengths: np.ndarray, job: Job) -> dict:
    """tolerance ↦ weights [K, p]."""
    features, targets = problem.data

    @jax.jit
    def solve(features, targets, strengths, tolerance):
        return solvers.path(
            LOSSES[problem.loss],
            jnp.zeros(features.shape[1]),
            penalties.l1,
            strengths,
            features,
            targets,
            rule=solvers.working_sets(job.sizes),
            tolerance=tolerance * strengths[-1],
            max_iterations=10_000,
            implicit=False,
        ).params

    found = {"proxlm": lambda tol: np.asarray(solve(features, targets, strengths, tol))}
    if importlib.util.find_spec("skglm"):
        import skglm

        model = lambda tol: skglm.Lasso(fit_intercept=False, tol=tol)
        found["skglm"] = lambda tol: model(tol).path(problem.features, problem.targets, strengths)[1].T
    if importlib.util.find_spec("celer"):
        import celer

        found["celer"] = lambda tol: (
            celer.celer_path(problem.features, problem.targets, "lasso", alphas=strengths, tol=tol)[1].T
        )
    if importlib.util.find_spec("sklearn"):
        from sklearn import linear_model

        found["scikit-learn"] = lambda tol: (
            linear_model.lasso_path(
                problem.features,
                problem.targets,
                alphas=strengths,  # pyright: ignore[reportArgumentType]
                tol=tol,
                max_iter=100_000,
            )[1].T
        )
    return found


def rows_of(title, calls, gaps, settings):
    """Lines of a table, each a multiple of ours."""
    timings = clock.measure(calls, settings)
    ratios = clock.ratios(clock.seconds_of(timings), "proxlm")
    return [
        [title, by, 1e3 * t.median, 1e3 * t.best, *ratios[by], f"{gaps[by]:.0e}"] for by, t in timings.items()
    ]
