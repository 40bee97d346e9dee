"""Laws that every penalty obeys, over the tables of all the rooms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm.penalties import check
from proxlm.penalties.checking import _laws, _subject
from tests.arrays import normal
from tests.penalties import (
    test_boxes_and_halfspaces,
    test_calculus,
    test_cardinality,
    test_convex,
    test_groups,
    test_nonconvex,
    test_quantized,
    test_simplices_and_balls,
    test_singular_values,
    test_sorted_norms,
)
from tests.penalties.penalty_case import SHAPE

CASES = {
    **test_convex.CASES,
    **test_groups.CASES,
    **test_sorted_norms.CASES,
    **test_boxes_and_halfspaces.CASES,
    **test_simplices_and_balls.CASES,
    **test_singular_values.CASES,
    **test_nonconvex.CASES,
    **test_cardinality.CASES,
    **test_quantized.CASES,
    **test_calculus.CASES,
}
# Other axes, shapes of numbers or settings of a case above: they obey the laws in `make test-slow`.
VARIANTS = """
    slope_rows slope_largest slope_constant sparse_simplex_columns nuclear_of_each_column
    schatten_two_thirds reshaped_group linf_by_strength l1_sphere_columns linf_rows
    capped_simplex_rows nuclear_transposed simplex_by_radius top_k_columns group_mcp_unweighted
    spectral_of_l1 sparse_group_tiles group_whole group_rows_unweighted l_half_by_coordinate
    n_m_rows group_by_strength mcp_by_column log_sum_small_epsilon l2_sphere_columns l2_ball_rows
    prox_quant_rows mcp_small_gamma scad_small_a l1_by_coordinate l1_by_column
    squared_l2_by_coordinate ternary_columns box_above nuclear_qr group_tiles whole_norm
    simplex_rows group_columns envelope_of_group shifted_group
""".split()
STEP_SIZE = 0.6


def each(cases):
    """Parametrises by cases; variants are slow."""
    marks = lambda name: [pytest.mark.slow] if name in VARIANTS else []
    params = [pytest.param(case, id=name, marks=marks(name)) for name, case in cases.items()]
    return pytest.mark.parametrize("case", params)


every_case = each(CASES)
every_function = each({name: case for name, case in CASES.items() if not case.is_set})


def test_variants_are_cases():
    assert set(VARIANTS) < set(CASES)


def scales():
    return jnp.array([1e-25, 1e-3, 1.0, 1e20])[:, None]


def bits(x):
    return np.asarray(x).view(np.uint32)


@every_case
def test_every_law_of_a_proximal_operator_holds(case):
    report = check(
        case.make(0.7),
        normal(0, SHAPE),
        step_size=min(STEP_SIZE, case.largest_step),
        convex=case.convex,
        is_set=case.is_set,
        metric=case.metric,
        pointwise=case.pointwise and (lambda z: case.pointwise(z.reshape(-1, *SHAPE), 0.7).reshape(z.shape)),
        dual_prox=case.dual_prox and (lambda y, s: np.ravel(case.dual_prox(y.reshape(SHAPE), s))),
    )
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if not case.convex],
    ids=[name for name, case in CASES.items() if not case.convex],
)
def test_what_is_not_convex_is_not_firmly_nonexpansive(case):
    penalty, t = case.make(0.7), min(STEP_SIZE, case.largest_step)
    flat = penalty._replace(
        prox=lambda x, t: penalty.prox(x.reshape(SHAPE), t).ravel(),
        value=lambda x: penalty.value(x.reshape(SHAPE)),
        residual=None,
    )
    x, others, noise = 1.5 * normal(1, (400, 12)), 1.5 * normal(2, (400, 12)), normal(3, (1, 12))
    assert _laws.firm_nonexpansiveness(_subject.subject_of(flat, x, others, noise, t)) > 1e-3


@every_function
def test_strength_zero_changes_no_bit(case, variant):
    x = case.make(0.0).prox(scales() * normal(6, SHAPE), 0.0)  # in the domain, if there is one
    np.testing.assert_array_equal(bits(variant(case.make(0.0).prox)(x, 0.5)), bits(x))


@every_function
def test_step_size_zero_changes_no_bit(case):
    inside = case.make(0.7).prox(scales() * normal(6, SHAPE), 0.0)
    np.testing.assert_array_equal(bits(case.make(0.7).prox(inside, 0.0)), bits(inside))


@every_function
def test_a_huge_step_goes_to_a_minimiser(case):
    penalty = case.make(0.7)
    centre = penalty.prox(normal(8, SHAPE), 1e30)
    others = jax.vmap(penalty.value)(centre[None] + normal(9, (200, *SHAPE)))
    assert float(penalty.value(centre)) <= float(jnp.min(others)) + 1e-6


@every_case
def test_derivatives_at_and_near_zero_are_finite(case):
    @jax.jit
    def derivatives(x, t):
        penalty = case.make(0.7)
        return jax.grad(penalty.value)(x), jax.jacrev(penalty.prox)(x, t)

    for size in (0.0, 1e-25, 1e-21, 1e-19):
        for t in (0.0, min(0.5, case.largest_step)):
            slopes = derivatives(size * normal(11, SHAPE), t)
            assert all(jnp.all(jnp.isfinite(slope)) for slope in slopes), (size, t)


@every_case
def test_half_precision_is_the_float32_result_rounded(case):
    x = normal(12, SHAPE).astype(jnp.bfloat16)
    moved = case.make(0.7).prox(x, 0.3)
    assert moved.dtype == jnp.bfloat16
    assert case.make(0.7).value(x).dtype == jnp.float32
    expected = case.make(0.7).prox(x.astype(jnp.float32), 0.3)
    np.testing.assert_array_equal(moved, expected.astype(jnp.bfloat16))
    assert case.make(0.7).prox(x.astype(jnp.float16), 0.3).dtype == jnp.float16


@every_case
def test_float64_stays_float64_and_is_more_exact(case):
    x = np.asarray(normal(14, SHAPE), np.float64)
    single = case.make(0.7).prox(jnp.asarray(x, jnp.float32), 0.3)
    with jax.enable_x64(True):
        moved = case.make(0.7).prox(jnp.asarray(x), 0.3)
        value = case.make(0.7).value(moved)
        assert moved.dtype == value.dtype == jnp.float64
        np.testing.assert_allclose(moved, single, atol=1e-6, rtol=1e-6)


@every_case
def test_vmap_over_strengths_is_the_loop(case):
    x, strengths, t = normal(13, SHAPE), jnp.array([0.0, 0.3, 2.0]), min(0.5, case.largest_step)
    sweep = jax.vmap(lambda s: (case.make(s).value(x), case.make(s).prox(x, t)))
    values, moved = jax.jit(sweep)(strengths)
    for i, strength in enumerate((0.0, 0.3, 2.0)):
        np.testing.assert_allclose(values[i], case.make(strength).value(x), rtol=1e-5)
        np.testing.assert_allclose(moved[i], case.make(strength).prox(x, t), atol=2e-6)


@every_case
def test_holes_cost_nothing(case):
    for nothing in (None, optax.MaskedNode()):
        assert case.make(0.7).value(nothing) == 0
        assert case.make(0.7).prox(nothing, 0.5) == nothing
