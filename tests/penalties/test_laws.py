"""Laws that every penalty obeys, over the tables of cases of all the folders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm.penalties import check
from proxlm.penalties.checking import _laws, _penalty_under_test
from tests.arrays import normal
from tests.penalties import (
    penalty_case,
    test_boxes_and_halfspaces,
    test_calculus,
    test_cardinality,
    test_convex,
    test_differences_and_linear_sets,
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
    **test_differences_and_linear_sets.CASES,
    **test_singular_values.CASES,
    **test_nonconvex.CASES,
    **test_cardinality.CASES,
    **test_quantized.CASES,
    **test_calculus.CASES,
}
# A case for each proximal code path that the tests of its own folder leave to the laws; the others, and
# variants of these, obey the laws in `make test-slow`.
BY_DEFAULT = """
    l1 non_negative_l1 elastic_net squared_l2 group_columns group_squared_l2 group_mcp sparse_group linf
    total_variation polyhedron box_section
    box linf_ball halfspace simplex l2_ball l2_sphere nuclear stiefel
    l0 mcp top_k n_m levels
    shifted_l1 add_lineared_l1 l1_and_quadratic envelope_of_l1 conjugate_of_squared_l2 turned_l1
""".split()
# One of each family: what depends on the machinery that a family shares.
FAMILIES = "l1 mcp group_columns linf simplex box nuclear envelope_of_l1".split()
STEP_SIZE = 0.6


def each(by_default, cases=CASES):
    """Parametrises by the names of cases."""
    marks = lambda name: [] if name in by_default else [pytest.mark.slow]
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in cases])


every_case = each(FAMILIES)
every_function = each(FAMILIES, [name for name, case in CASES.items() if not case.is_set])


def test_the_cases_of_the_default_run_are_there():
    assert set(FAMILIES) < set(BY_DEFAULT) < set(CASES)


def bits(x):
    return np.asarray(x).view(np.uint32)


def step_of(name, step_size):
    return min(step_size, CASES[name].largest_step)


def holds_every_law(name, penalty):
    case = CASES[name]
    report = check(
        penalty,
        normal(0, SHAPE),
        step_size=step_of(name, STEP_SIZE),
        convex=case.convex,
        is_set=case.is_set,
        metric=case.metric,
        pointwise=case.pointwise and (lambda z: case.pointwise(z.reshape(-1, *SHAPE), 0.7).reshape(z.shape)),
        dual_prox=case.dual_prox and (lambda y, s: np.ravel(case.dual_prox(y.reshape(SHAPE), s))),
    )
    assert report.passed, f"\n{report}"


@each(BY_DEFAULT)
def test_every_law_of_a_proximal_operator_holds(name):
    holds_every_law(name, penalty_case.compiled(CASES[name].make(0.7)))


@each(("l1",))
def test_every_law_holds_op_by_op(name):
    holds_every_law(name, CASES[name].make(0.7))


@each(("mcp", "rank_ball", "binary"), [name for name, case in CASES.items() if not case.convex])
def test_what_is_not_convex_is_not_firmly_nonexpansive(name):
    penalty = CASES[name].make(0.7)
    flat = penalty._replace(
        prox=lambda x, t: penalty.prox(x.reshape(SHAPE), t).ravel(),
        value=lambda x: penalty.value(x.reshape(SHAPE)),
        residual=None,
    )
    x, others, noise = 1.5 * normal(1, (400, 12)), 1.5 * normal(2, (400, 12)), normal(3, (1, 12))
    tried = _penalty_under_test.under_test(flat, x, others, noise, step_of(name, STEP_SIZE))
    assert _laws.firm_nonexpansiveness(tried) > 1e-3


ROWS = 64


@functools.cache
def compiled(name):
    """(strengths, steps, points) ↦ values and results of the prox, row by row, in one program of a case."""

    def row(given):
        penalty = CASES[name].make(given[0])
        return penalty.value(given[2]), penalty.prox(given[2], given[1])

    program = jax.jit(lambda *rows: jax.lax.map(row, rows))

    def call(*rows):
        rows = [np.asarray(np.resize(a, (ROWS, *np.shape(a)[1:])), np.float32) for a in rows]
        return [np.asarray(a) for a in program(*rows)]

    return call


@every_function
def test_strength_zero_changes_no_bit(name):
    x = np.array([1e-25, 1e-3, 1.0, 1e20], np.float32)[:, None] * normal(6, SHAPE)
    inside = compiled(name)([0.0], [0.0], [x])[1][:1]  # in the domain, if there is one
    np.testing.assert_array_equal(bits(compiled(name)([0.0], [0.5], inside)[1][0]), bits(inside[0]))


@every_function
def test_a_huge_step_goes_to_a_minimiser(name):
    centre = compiled(name)([0.7], [1e30], [normal(8, SHAPE)])[1][0]
    around = centre + np.concatenate([np.zeros((1, *SHAPE)), normal(9, (ROWS - 1, *SHAPE))])
    values, _ = compiled(name)([0.7], [0.5], around)
    assert values[0] <= np.min(values[1:]) + 1e-6


@every_case
def test_vmap_over_strengths_is_the_loop(name):
    x, strengths, t = normal(13, SHAPE), np.array([0.0, 0.3, 2.0], np.float32), step_of(name, 0.5)
    make = CASES[name].make
    swept = jax.jit(jax.vmap(lambda s: (make(s).value(x), make(s).prox(x, t))))(strengths)
    values, moved = compiled(name)(strengths, [t], [x])
    np.testing.assert_allclose(swept[0], values[:3], rtol=1e-5)
    np.testing.assert_allclose(swept[1], moved[:3], atol=2e-6)


@every_case
def test_half_precision_is_the_float32_result_rounded(name):
    penalty, x = CASES[name].make(0.7), normal(12, SHAPE).astype(jnp.bfloat16)
    both = jax.jit(lambda x: (penalty.prox(x, 0.3), penalty.prox(x.astype(jnp.float32), 0.3)))
    moved, expected = both(x)
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved, expected.astype(jnp.bfloat16))
    assert jax.eval_shape(penalty.value, x).dtype == jnp.float32
    assert jax.eval_shape(lambda x: penalty.prox(x, 0.3), x.astype(jnp.float16)).dtype == jnp.float16


@every_case
def test_float64_stays_float64_and_is_more_exact(name):
    x = np.asarray(normal(14, SHAPE), np.float64)

    def both(x):
        penalty = CASES[name].make(0.7)
        moved = penalty.prox(x, 0.3)
        return moved, penalty.value(moved), penalty.prox(x.astype(jnp.float32), 0.3)

    with jax.enable_x64(True):
        moved, value, single = jax.jit(both)(x)
    assert moved.dtype == value.dtype == jnp.float64
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(moved, single, atol=1e-6, rtol=1e-6)


@every_case
def test_holes_cost_nothing(name):
    for nothing in (None, optax.MaskedNode()):
        assert CASES[name].make(0.7).value(nothing) == 0
        assert CASES[name].make(0.7).prox(nothing, 0.5) == nothing
