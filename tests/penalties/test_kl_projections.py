"""Projections by the KL divergence: their sets hold, and no way into the set goes down."""

import jax
import numpy as np
import pytest

from proxlm.penalties.sets.kl_projections import kl_box_section, kl_transport
from tests.arrays import normal

LOG_X = 3.0 * np.asarray(normal(0, (6,)))


def assert_nearest(p, log_x, others):
    """The derivative of the divergence, log p - log x, has no descent towards another point of the set."""
    slope = np.log(p) - log_x
    for other in others:
        assert np.sum(slope * (other - p)) >= -1e-5


@pytest.mark.parametrize(
    "upper", [np.inf, 0.3, np.linspace(0.2, 0.6, 6, dtype=np.float32)], ids=["simplex", "caps", "each"]
)
def test_a_box_section_holds_its_bounds_and_sum_and_is_nearest(upper):
    lower = np.float32(0.0) if np.ndim(upper) == 0 else np.float32(0.05)
    p = np.asarray(jax.jit(kl_box_section)(LOG_X, 1.0, lower, upper))
    assert p.sum() == pytest.approx(1.0, abs=1e-6) and (p >= lower).all() and (p <= upper).all()
    if np.all(np.isinf(upper)):
        np.testing.assert_allclose(p, jax.nn.softmax(LOG_X), rtol=1e-5)
    random = np.random.default_rng(0)
    points = [
        np.asarray(kl_box_section(np.float32(4 * random.normal(size=6)), 1.0, lower, upper)) for _ in range(9)
    ]
    assert_nearest(p, LOG_X, points)


def test_a_box_section_has_the_derivative_of_its_free_entries():
    weights = np.float32([1.0, -2.0, 3.0])
    fun = lambda log_x: weights @ kl_box_section(log_x, 1.0, 0.0, 0.5)
    log_x = np.float32(np.log([8.0, 1.0, 2.0]))  # p = (1/2, 1/6, 1/3)
    expected = 0.5 * np.array([0.0, (1 / 3) * (2 / 3) * (-2 - 3), (1 / 3) * (2 / 3) * (3 + 2)])
    np.testing.assert_allclose(jax.grad(fun)(log_x), expected, atol=1e-6)


def test_a_transport_plan_has_its_sums_and_is_nearest():
    rows, columns = np.float32([0.2, 0.3, 0.5]), np.float32([0.6, 0.4])
    log_x = np.asarray(normal(1, (3, 2)))
    plan = np.asarray(jax.jit(kl_transport)(log_x, rows, columns))
    np.testing.assert_allclose(plan.sum(1), rows, atol=1e-5)
    np.testing.assert_allclose(plan.sum(0), columns, atol=1e-6)
    swap = 0.02 * np.array([[1, -1], [-1, 1], [0, 0]])
    assert_nearest(plan, log_x, [plan + swap, plan - swap, np.outer(rows, columns)])
    with pytest.raises(ValueError, match=r"log_x\.shape must be of the sums"):
        kl_transport(log_x, columns, rows)
