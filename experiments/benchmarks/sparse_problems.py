"""A lasso and a sparse logistic regression with known duality gaps, and peers that solve them."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from proxlm import solvers

LOSSES = {
    "lasso": solvers.LinearLoss(lambda eta, y: 0.5 * jnp.square(eta - y)),
    "logistic": solvers.LinearLoss(lambda eta, y: jnp.logaddexp(0.0, -y * eta)),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """Problems of one size, and the path."""

    examples: int
    features: int
    nonzeros: int = 50
    strengths: int = 100
    shortest: float = 0.01  # the last strength of the path, in units of the first
    sizes: tuple[int, ...] = (256, 1024)  # of the working sets
    density: float = 1.0  # share of the features that are not zero; below 1 they are a sparse matrix


@dataclasses.dataclass(frozen=True)
class Problem:
    """Features [n, p], targets [n], the loss ("lasso" or "logistic") and the strength λ."""

    features: Any
    targets: np.ndarray
    loss: str
    strength: float = 0.0

    @property
    def data(self):
        """Features and targets as the solvers take them."""
        sparse = not isinstance(self.features, np.ndarray)
        features = solvers.SparseFeatures.of(self.features) if sparse else jnp.asarray(self.features)
        return features, jnp.asarray(self.targets)

    @property
    def largest_strength(self) -> float:
        """The least λ whose solution is 0."""
        slope = self.features.T @ self.targets / len(self.targets)
        return np.abs(slope).max() * (1.0 if self.loss == "lasso" else 0.5)

    def objective(self, weights: np.ndarray, strength: float) -> float:
        """The loss plus λ Σ|w_i|."""
        predicted, cost = self.features @ weights, strength * np.abs(weights).sum()
        if self.loss == "lasso":
            return 0.5 * np.mean((self.targets - predicted) ** 2) + cost
        return np.mean(np.logaddexp(0.0, -self.targets * predicted)) + cost

    def gap(self, weights: np.ndarray, strength: float) -> float:
        """The duality gap in units of the objective at 0, by a feasible rescaled dual point."""
        targets, predicted = self.targets, self.features @ weights
        if self.loss == "lasso":
            slopes = targets - predicted
        else:
            slopes = targets / (1.0 + np.exp(targets * predicted))
        correlations = np.abs(self.features.T @ slopes / len(targets))
        slopes = slopes * min(1.0, strength / correlations.max())
        missing = self.objective(weights, strength) - self._dual(slopes)
        return missing / self.objective(np.zeros_like(weights), strength)

    def _dual(self, slopes):
        if self.loss == "lasso":
            return 0.5 * np.mean(self.targets**2 - (self.targets - slopes) ** 2)
        chance = np.clip(self.targets * slopes, 1e-300, 1.0 - 1e-16)
        return -np.mean(chance * np.log(chance) + (1.0 - chance) * np.log1p(-chance))


def problems(job: Job) -> dict[str, Problem]:
    """Neighbouring features correlate by one half; the noise has a third of the signal's size."""
    lasso, logistic = (draw(job, seed, loss) for seed, loss in enumerate(["lasso", "logistic"]))
    at = lambda problem, share: dataclasses.replace(problem, strength=share * problem.largest_strength)
    return {
        "lasso, λmax/10": at(lasso, 0.1),
        "lasso, λmax/100": at(lasso, 0.01),
        "logistic, λmax/10": at(logistic, 0.1),
    }


def draw(job: Job, seed: int, loss: str) -> Problem:
    """A problem whose strength is still to be chosen."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((job.examples, job.features))
    if job.density < 1:
        from scipy import sparse

        features = sparse.csc_array(features * (random.random(features.shape) < job.density))
    else:
        for j in range(1, job.features):
            features[:, j] = 0.5 * features[:, j - 1] + np.sqrt(0.75) * features[:, j]
        features = np.asfortranarray(features)
    weights = np.zeros(job.features)
    chosen = random.choice(job.features, job.nonzeros, False)
    weights[chosen] = random.choice([-1.0, 1.0], job.nonzeros)
    signal = features @ weights
    noisy = signal + random.standard_normal(job.examples) * signal.std() / 3.0
    targets = noisy if loss == "lasso" else np.where(noisy > 0, 1.0, -1.0)
    return Problem(features, targets, loss)


def coordinate_descent(problem: Problem, library: str) -> Callable[[float], np.ndarray]:
    """tolerance ↦ weights, by skglm, celer or scikit-learn."""
    inverse = 1.0 / (len(problem.targets) * problem.strength)
    lasso = {"alpha": problem.strength, "fit_intercept": False}

    def solve(tolerance):
        if library == "skglm":
            import skglm

            kind = skglm.Lasso if problem.loss == "lasso" else skglm.SparseLogisticRegression
            model = kind(**lasso, tol=tolerance)
        elif library == "celer":
            import celer

            logistic = functools.partial(celer.LogisticRegression, C=inverse)
            kind = celer.Lasso if problem.loss == "lasso" else logistic
            model = kind(**(lasso if problem.loss == "lasso" else {}), tol=tolerance)
        else:
            from sklearn import linear_model

            if problem.loss == "lasso":
                model = linear_model.Lasso(**lasso, tol=tolerance, max_iter=100_000)
            else:
                model = linear_model.LogisticRegression(
                    C=inverse,
                    l1_ratio=1,
                    solver="liblinear",
                    fit_intercept=False,
                    tol=tolerance,
                    max_iter=100_000,
                )
        return np.ravel(model.fit(problem.features, problem.targets).coef_)

    return solve


def installed() -> list[str]:
    """The peers that can be imported."""
    names = {"skglm": "skglm", "celer": "celer", "scikit-learn": "sklearn"}
    return [by for by, module in names.items() if importlib.util.find_spec(module)]
