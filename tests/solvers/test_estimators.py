"""Estimators in scikit-learn's manner: closed forms, paths, cross-validation, scikit-learn's own checks."""

import numpy as np
import pytest

from proxlm import penalties
from proxlm.solvers.estimators import Classifier, Regressor
from tests.arrays import normal

FEATURES = np.asarray(normal(0, (60, 5)))
TARGETS = 2.0 * FEATURES[:, 0] + 0.3 * np.asarray(normal(1, (60,))) + 1.0


def test_ridge_is_its_closed_form_and_the_intercept_bears_no_penalty():
    model = Regressor(penalties.squared_l2, strength=0.5).fit(FEATURES, TARGETS)
    centred, y = FEATURES - FEATURES.mean(0), TARGETS - TARGETS.mean()
    exact = np.linalg.solve(centred.T @ centred / 60 + 0.5 * np.eye(5), centred.T @ y / 60)
    np.testing.assert_allclose(model.coef_, exact, atol=1e-4)
    assert model.intercept_ == pytest.approx(TARGETS.mean() - FEATURES.mean(0) @ exact, abs=1e-4)


@pytest.mark.slow
def test_cross_validation_finds_the_strength_between_noise_and_shrinkage():
    losses = Regressor().cross_validate(FEATURES, TARGETS, np.array([1.0, 0.05]), folds=3).mean(axis=1)
    assert losses.shape == (2,) and losses[1] < 0.2 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", [Regressor(strength=0.01), Classifier(strength=0.001)])
def test_scikit_learn_checks_pass(model):
    from sklearn.utils.estimator_checks import check_estimator  # imports all models of scikit-learn

    check_estimator(model, on_skip=None)  # those of array API inputs are skipped without SCIPY_ARRAY_API
