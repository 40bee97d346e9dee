"""Linear models in scikit-learn's manner, over any penalty; needs the extra `estimators`.

- `Regressor`: Gaussian, Huber or Poisson losses
- `Classifier`: two classes, the logistic loss

>>> import numpy as np
>>> from proxlm import penalties
>>> features, targets = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([1.0, 3.0, 5.0, 7.0])
>>> model = Regressor(penalties.l1, strength=0.125).fit(features, targets)
>>> model.coef_.round(3).tolist(), round(model.intercept_, 3)
([1.9], 1.15)
"""

import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation, penalties
from proxlm.solvers.regularisation_path import path
from proxlm.solvers.solver import Options, Solution, proximal_gradient

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "proxlm.solvers.estimators needs scikit-learn: pip install 'proxlm[estimators]'"
    ) from error

__all__ = ["LOSSES", "Classifier", "Regressor"]

LOSSES: dict[str, Callable] = {
    "gaussian": lambda eta, y: 0.5 * jnp.square(y - eta),
    "huber": lambda eta, y: jnp.where(
        jnp.abs(y - eta) <= 1.35, 0.5 * jnp.square(y - eta), 1.35 * jnp.abs(y - eta) - 0.91125
    ),
    "poisson": lambda eta, y: jnp.exp(eta) - y * eta,
    "logistic": lambda eta, y: jnp.logaddexp(0.0, eta) - y * eta,
}


class _LinearModel(BaseEstimator):
    """Weights that minimise the mean loss plus a penalty, which leaves the intercept out."""

    loss = "gaussian"

    def __init__(
        self,
        penalty: Callable[[Any], penalties.Penalty] = penalties.l1,
        strength: float = 1.0,
        *,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ) -> None:
        """Keeps the settings as they are given."""
        self.penalty = penalty
        self.strength = strength
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Finds the weights; X [n, p], y [n]."""
        features, targets = self._read(X, y)
        data = features, targets, jnp.ones(len(targets), features.dtype)
        label = type(self).__name__
        _validation.a_function(label, "A function of the strength, as penalties.l1.", penalty=self.penalty)
        _validation.scalar(label, tol=self.tol)
        _validation.at_least(0, label, tol=np.nan if self.tol is None else self.tol)
        _validation.to_int(0, label, max_iter=self.max_iter)
        start, penalty = self._start(features), self._on_coef(self.strength)
        found = proximal_gradient(self._fun, start, penalty, *data, **self._options())
        self.coef_ = np.asarray(found.params["coef"], np.float64)
        self.intercept_ = float(found.params["intercept"])
        self.n_iter_ = max(1, int(found.iterations))
        return self

    def path(self, X: Any, y: Any, strengths: Any, weights: Any = None) -> Solution:
        """The solutions for all strengths, each begun from the last; params coef [K, p], intercept [K]."""
        features, targets = self._read(X, y)
        weights = jnp.ones(len(targets)) if weights is None else jnp.asarray(weights)
        return self._path(features, targets, weights, jnp.asarray(strengths))

    def cross_validate(self, X: Any, y: Any, strengths: Any, folds: int = 5, seed: int = 0) -> np.ndarray:
        """Mean loss on what a fold leaves out, [K, folds]; all paths are one program."""
        features, targets = self._read(X, y)
        folds = _validation.to_int(2, "cross_validate", folds=folds)
        chosen = np.random.default_rng(seed).permutation(len(targets)) % folds
        left_out = jnp.asarray(chosen == np.arange(folds)[:, None], features.dtype)

        def held_out(weights):
            params = self._path(features, targets, 1.0 - weights, jnp.asarray(strengths)).params
            return jax.vmap(lambda params: self._fun(params, features, targets, weights))(params)

        return np.asarray(jax.jit(jax.vmap(held_out, out_axes=1))(left_out))

    def _path(self, features, targets, weights, strengths):
        data = features, targets, weights
        return path(self._fun, self._start(features), self._on_coef, strengths, *data, **self._options())

    def _options(self) -> Options:
        return {"relative_tolerance": self.tol, "tolerance": 0.0, "max_iterations": self.max_iter}

    @property
    def _fun(self):
        return _objective(self.loss, self.fit_intercept)

    def _on_coef(self, strength):
        parts = {"coef": self.penalty(strength), "intercept": penalties.zero()}
        return penalties.separable_sum(parts, {"coef": "coef", "intercept": "intercept"})

    def _start(self, features):
        return {
            "coef": jnp.zeros(features.shape[1], features.dtype),
            "intercept": jnp.zeros((), features.dtype),
        }

    def _read(self, X, y):
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=self.loss != "logistic")
        return jnp.asarray(X), jnp.asarray(self._encode(y), jnp.asarray(X).dtype)

    def _encode(self, y):
        return y

    def _eta(self, X):
        check_is_fitted(self)
        rows: Any = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return rows @ self.coef_ + self.intercept_


class Regressor(RegressorMixin, _LinearModel):
    """Regression: the mean loss of X w + b plus a penalty on w.

    Args:
      penalty: strength ↦ penalty, as penalties.l1.
      strength: λ ≥ 0, in units of the mean loss.
      loss: "gaussian", ½(y - η)²; "huber", that up to 1.35 and linear beyond; "poisson", of y ≥ 0 with the
        mean exp η.
      fit_intercept: whether there is a b; it bears no penalty.
      tol: for the error, relative to the gradient at the start.

    >>> Regressor(loss="huber").loss
    'huber'
    """

    def __init__(
        self,
        penalty: Callable[[Any], penalties.Penalty] = penalties.l1,
        strength: float = 1.0,
        *,
        loss: str = "gaussian",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ) -> None:
        """Keeps the settings as they are given."""
        super().__init__(penalty, strength, fit_intercept=fit_intercept, tol=tol, max_iter=max_iter)
        self.loss = loss

    def predict(self, X: Any) -> np.ndarray:
        """The mean of y at X [n, p], [n]."""
        eta = self._eta(X)
        return np.exp(eta) if self.loss == "poisson" else eta

    def _encode(self, y):
        _validation.one_of(("gaussian", "huber", "poisson"), "Regressor", loss=self.loss)
        if self.loss == "poisson":
            _validation.at_least(0, "Regressor", y=y)
        return y


class Classifier(ClassifierMixin, _LinearModel):
    """Logistic regression with two classes: the mean loss of X w + b plus a penalty on w.

    Args:
      penalty: strength ↦ penalty, as penalties.l1.
      strength: λ ≥ 0, in units of the mean loss.
      fit_intercept: whether there is a b; it bears no penalty.
      tol: for the error, relative to the gradient at the start.

    >>> Classifier(strength=0.1).strength
    0.1
    """

    loss = "logistic"

    def decision_function(self, X: Any) -> np.ndarray:
        """The logarithm of the odds of the second class, [n]."""
        return self._eta(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, [n, 2]."""
        second = 1.0 / (1.0 + np.exp(-self._eta(X)))
        return np.stack([1.0 - second, second], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The more probable class of each row, [n]."""
        second = self._eta(X) > 0
        return self.classes_[second.astype(int)]

    def _encode(self, y):
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier: y must be of two classes, got 1 class.")
        return codes

    def __sklearn_tags__(self) -> Any:
        """Two classes alone."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


@functools.cache
def _objective(loss, fit_intercept):
    """The mean loss: one function for each kind, so that a second fit compiles nothing."""
    each = LOSSES[loss]

    def fun(params, features, targets, weights):
        intercept = params["intercept"] if fit_intercept else 0.0
        eta = features @ params["coef"] + intercept
        return jnp.sum(weights * each(eta, targets)) / jnp.sum(weights)

    return fun
