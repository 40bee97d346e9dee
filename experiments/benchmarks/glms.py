"""Logistic and Poisson regressions with few nonzero weights or groups of them, beside NeMoS and jaxopt."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import penalties, solvers

LOSSES = {
    "logistic": lambda eta, y: jnp.logaddexp(0.0, eta) - y * eta,
    "Poisson": lambda eta, y: jnp.exp(eta) - y * eta,
}
PENALTIES = {"lasso": penalties.l1, "group lasso": functools.partial(penalties.group_lasso, axis=1)}
MAX_ITERATIONS = 5_000


@dataclasses.dataclass(frozen=True)
class Job:
    """Problems of one size, whose neighbouring features correlate."""

    examples: int = 2000
    features: int = 200
    group: int = 5  # features in one
    nonzeros: int = 20
    correlation: float = 0.9
    share: float = 0.01  # the strength, in units of the least whose solution is 0


@dataclasses.dataclass(frozen=True)
class Problem:
    """Features [n, p], targets [n], a loss of weights [groups, group], and the penalty on these."""

    features: jax.Array
    targets: jax.Array
    loss: Callable[..., jax.Array]
    make_penalty: Callable[[Any], penalties.Penalty]
    strength: float
    start: jax.Array

    @property
    def penalty(self) -> penalties.Penalty:
        """g at the strength."""
        return self.make_penalty(self.strength)

    def objective(self, weights: Any) -> float:
        """The mean loss plus the penalty."""
        return float(self.loss(weights, self.features, self.targets) + self.penalty.value(weights))

    @functools.cached_property
    def least(self) -> float:
        """The objective where our solver stands still."""
        return self.objective(ours(self)(1e-10))

    def gap(self, weights: Any) -> float:
        """The objective above the least one, in units of that at 0."""
        return (self.objective(weights) - self.least) / (self.objective(self.start) - self.least)


def problems(job: Job) -> dict[str, Problem]:
    """The losses with the penalties; in float64 if JAX is so set."""
    drawn = {}
    for loss in LOSSES:
        features, targets = (jnp.asarray(array, float) for array in draw(job, loss))
        start = jnp.zeros((job.features // job.group, job.group))
        mean = functools.partial(_mean, LOSSES[loss])
        for name, make in PENALTIES.items():
            strength = job.share * float(solvers.strength_max(mean, start, make, features, targets))
            drawn[f"{loss} {name}"] = Problem(features, targets, mean, make, strength, start)
    return drawn


def _mean(loss, weights, features, targets):
    return jnp.mean(loss(features @ jnp.ravel(weights), targets))


def draw(job: Job, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, p] and targets [n] of a model whose first weights are not zero."""
    random = np.random.default_rng(0)
    features = random.standard_normal((job.examples, job.features))
    for j in range(1, job.features):
        kept = job.correlation * features[:, j - 1]
        features[:, j] = kept + np.sqrt(1.0 - job.correlation**2) * features[:, j]
    signal = features[:, : job.nonzeros] @ random.standard_normal(job.nonzeros)
    signal /= signal.std()
    if loss == "Poisson":
        return features, random.poisson(np.exp(signal))
    return features, random.random(job.examples) < 1.0 / (1.0 + np.exp(-3.0 * signal))


def solvers_of(problem: Problem) -> dict[str, Callable[[float], jax.Array]]:
    """tolerance ↦ weights, of ours and of the peers that are installed."""
    found = {"proxlm": ours}
    if importlib.util.find_spec("nemos"):
        found["NeMoS FISTA"] = nemos
    if importlib.util.find_spec("jaxopt"):
        found["jaxopt"] = jaxopt
    return {by: make(problem) for by, make in found.items()}


def ours(problem: Problem) -> Callable[[float], jax.Array]:
    """The default rule; the tolerance is in units of the strength."""
    return _compiled(
        problem,
        lambda data, tolerance: (
            solvers.proximal_gradient(
                problem.loss,
                problem.start,
                problem.penalty,
                *data,
                tolerance=tolerance * problem.strength,
                max_iterations=MAX_ITERATIONS,
                implicit=False,
            ).params
        ),
    )


def nemos(problem: Problem) -> Callable[[float], jax.Array]:
    """NeMoS's own solver of penalised models, FISTA on optimistix, with our prox."""
    from nemos import solvers as registry

    class Regularizer:
        def get_proximal_operator(self, params, strength):
            return lambda params, strength, scaling=1.0: problem.penalty.prox(params, scaling)

    spec = registry.get_solver("ProximalGradient[optimistix]")
    kind: Any = getattr(spec, "implementation", spec)
    options = {"rtol": 0.0, "maxiter": MAX_ITERATIONS, "init_params": problem.start}
    given = problem.loss, Regularizer(), problem.strength, False
    solve = lambda data, tolerance: kind(*given, tol=tolerance, **options).run(problem.start, *data)[0]
    return _compiled(problem, solve)


def jaxopt(problem: Problem) -> Callable[[float], jax.Array]:
    """jaxopt's ProximalGradient, accelerated, with our prox."""
    import jaxopt

    prox = lambda weights, _, scaling=1.0: problem.penalty.prox(weights, scaling)
    kind = functools.partial(jaxopt.ProximalGradient, problem.loss, prox=prox, maxiter=MAX_ITERATIONS)
    solve = lambda data, tolerance: kind(tol=tolerance).run(problem.start, None, *data).params
    return _compiled(problem, solve)


def _compiled(problem, solve):
    solve = jax.jit(solve)
    return lambda tolerance: jax.block_until_ready(solve((problem.features, problem.targets), tolerance))
