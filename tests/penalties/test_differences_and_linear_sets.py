"""Total variation, fused lasso, sets of linear equations and inequalities, transport plans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties as p
from tests.arrays import normal
from tests.penalties.penalty_case import Case, compiled, ramp

MATRIX = np.asarray(normal(20, (6, 12)))
OFFSET = np.abs(np.asarray(normal(21, (6,))))

CASES = {
    "total_variation": Case(lambda s: p.total_variation(s)),
    "total_variation_columns": Case(lambda s: p.total_variation(s, axis=0)),
    "fused_lasso": Case(lambda s: p.fused_lasso(0.5 * s, s)),
    "affine_set": Case(lambda s: p.affine_set(MATRIX[:3], OFFSET[:3]), is_set=True),
    "affine_set_dependent": Case(lambda s: p.affine_set(MATRIX[[0, 1, 0]], OFFSET[[0, 1, 0]]), is_set=True),
    "polyhedron": Case(lambda s: p.polyhedron(MATRIX, OFFSET, equations=2), is_set=True),
    "box_section": Case(lambda s: p.box_section(MATRIX[0].reshape(4, 3), 0.3, -1.0, ramp()), is_set=True),
    "transport": Case(lambda s: p.transport(np.float32([1, 2, 3, 4]), np.float32([5, 3, 2])), is_set=True),
}


def test_a_sequence_is_denoised_to_the_optimality_of_its_dual():
    y = np.asarray(normal(22, (60,)), np.float64) + np.repeat([0.0, 3.0, 1.0], 20)
    with jax.enable_x64(True):
        z = np.asarray(jax.jit(p.total_variation(0.8).prox)(jnp.asarray(y), 1.0))
    # z = y - Dᵀu: u, the running sum of y - z, is within ±λ, and at ±λ where z falls or rises.
    u, rise = np.cumsum(z - y)[:-1], np.diff(z)
    assert abs(np.sum(z - y)) < 1e-12 and np.abs(u).max() <= 0.8 + 1e-12
    np.testing.assert_allclose(u[rise != 0], 0.8 * np.sign(rise[rise != 0]), atol=1e-12)
    assert 1 < np.count_nonzero(rise) < 30


def test_a_polyhedron_is_met_at_its_optimality_conditions():
    rows, bounds = np.asarray(normal(23, (30, 12)), np.float64), np.abs(np.asarray(normal(24, (30,))))
    x = 3.0 * np.asarray(normal(25, (12,)), np.float64)
    with jax.enable_x64(True):
        z = np.asarray(jax.jit(p.polyhedron(rows, bounds).prox)(jnp.asarray(x), 1.0))
    over = rows @ z - bounds
    assert over.max() < 1e-9
    met = over > -1e-8
    prices = np.linalg.lstsq(rows[met].T, x - z, rcond=None)[0]
    assert prices.min() > -1e-8 and met.sum() > 1
    np.testing.assert_allclose(rows[met].T @ prices, x - z, atol=1e-8)


def test_doubly_stochastic_matrices():
    x = 2.0 * normal(26, (5, 5))

    @jax.jit
    def project(x):
        moved, back = jax.vjp(lambda x: p.birkhoff().prox(x, 1.0), x)
        return moved, p.birkhoff().value(moved), back(jnp.ones((5, 5)))[0]

    moved, value, slope = map(np.asarray, project(x))
    np.testing.assert_allclose(moved.sum(0), 1.0, atol=1e-5)
    np.testing.assert_allclose(moved.sum(1), 1.0, atol=1e-5)
    assert moved.min() >= 0 and value == 0
    # The nearest: x less the result is α_i + β_j where that is above 0, and less elsewhere.
    gap, live = np.asarray(x - moved), np.asarray(moved > 0)
    rows, columns = np.nonzero(live)
    design = np.concatenate([np.eye(5)[rows], np.eye(5)[columns]], axis=1)
    prices = np.linalg.lstsq(design, gap[live], rcond=None)[0]
    np.testing.assert_allclose(design @ prices, gap[live], atol=1e-5)
    np.testing.assert_allclose(slope.sum(), 0.0, atol=1e-4)  # sums stay


@pytest.mark.slow
def test_doubly_stochastic_matrices_obey_every_law():
    report = p.check(compiled(p.birkhoff()), normal(0, (3, 3)), step_size=0.6, is_set=True)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: p.transport(np.ones(2), np.ones(3)), "column_sums must be of total 2.0"),
        (lambda: p.birkhoff().prox(jnp.ones((2, 3)), 1.0), r"must be \[n, n\]"),
        (lambda: p.affine_set(np.ones((1, 3)), np.ones(1)).prox(jnp.ones(2), 1.0), r"must be \[m, 2\]"),
        (lambda: p.polyhedron(np.ones(3), 1.0), r"matrix.shape must be \[m, n\]"),
        (lambda: p.total_variation(axis=1.5), "axis must be an integer"),
        (lambda: p.total_variation(axis=1).prox(jnp.ones(3), 1.0), "axis must be different axes"),
    ],
)
def test_bad_sets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
