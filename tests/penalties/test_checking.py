"""The check of a user's own penalty: what is right passes, and each planted fault is caught."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties
from tests.arrays import normal
from tests.penalties.penalty_case import compiled

X = normal(0, (4, 3))


def lasso(prox):
    """The value of l1(0.7), with another prox."""
    return penalties.l1(0.7)._replace(prox=prox, residual=None)


def grouped(prox):
    """The value of a sparse group lasso over columns, with another prox."""
    l1, group = penalties.l1(0.7), penalties.group_lasso(0.5, axis=0, weight="none")
    return penalties.Penalty(lambda x: l1.value(x) + group.value(x), prox)


def on_simplex(prox):
    """The indicator of the simplex, with another projection."""

    def value(x):
        inside = jnp.all(x >= -1e-4) & (jnp.abs(jnp.sum(x) - 1) < 1e-4)
        return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, jnp.where(inside, 0.0, jnp.inf))

    return penalties.Penalty(value, prox)


def in_ball(prox):
    """The indicator of the l1 ball of radius 1, with another projection."""

    def value(x):
        size = jnp.sum(jnp.abs(x))
        return jnp.where(jnp.isnan(size), jnp.nan, jnp.where(size <= 1 + 1e-4, 0.0, jnp.inf))

    return penalties.Penalty(value, prox)


def soft(x, threshold):
    return x - jnp.clip(x, -threshold, threshold)


def shorten(x, threshold):
    norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=0, keepdims=True), 1e-30))
    return jnp.where(norm <= threshold, 0.0, x * (1 - threshold / norm))


def renormalised(x, t):
    positive = jnp.maximum(x, 0)
    return positive / jnp.maximum(jnp.sum(positive), 1e-9)


def scaled_into_ball(x, t):
    return x / jnp.maximum(jnp.sum(jnp.abs(x)), 1.0)


def column_norms(x):
    return jnp.linalg.norm(x, axis=0, keepdims=True)


def group_value(x):
    return 0.7 * jnp.sum(column_norms(x))


MUTANTS = {  # name: (penalty, what check is told, a law that must break)
    "strength_forgotten": (lasso(lambda x, t: soft(x, t)), {}, "optimality"),
    "step_size_forgotten": (lasso(lambda x, t: soft(x, 0.7)), {}, "optimality"),
    "twice_the_threshold": (lasso(lambda x, t: soft(x, 1.4 * t)), {}, "optimality"),
    "one_per_cent_off": (lasso(lambda x, t: soft(x, 0.707 * t)), {}, "optimality"),
    "hard_for_soft": (
        lasso(lambda x, t: jnp.where(jnp.abs(x) > 0.7 * t, x, 0.0)),
        {},
        "firm_nonexpansiveness",
    ),
    "shrinkage_of_the_ridge": (lasso(lambda x, t: x / (1 + 0.7 * t)), {}, "optimality"),
    "subgradient_step": (lasso(lambda x, t: x - 0.7 * t * jnp.sign(x)), {}, "optimality"),
    "zeros_negative": (
        lasso(lambda x, t: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.7 * t, 0.0)),
        {},
        "positive_zeros",
    ),
    "nan_swallowed": (lasso(lambda x, t: jnp.nan_to_num(soft(x, 0.7 * t))), {}, "nan_in_nan_out"),
    "nan_derivative_at_zero": (
        penalties.Penalty(group_value, lambda x, t: x * jnp.maximum(1 - 0.7 * t / column_norms(x), 0)),
        {},
        "finite_derivatives",
    ),
    "order_of_the_sparse_group_swapped": (
        grouped(lambda x, t: soft(shorten(x, 0.5 * t), 0.7 * t)),
        {},
        "optimality",
    ),
    "simplex_by_renormalising": (on_simplex(renormalised), {"is_set": True}, "symmetric_jacobian"),
    "ball_by_scaling": (in_ball(scaled_into_ball), {"is_set": True}, "symmetric_jacobian"),
    "value_of_another_strength": (
        penalties.l1(0.7)._replace(value=penalties.l1(0.8).value),
        {},
        "envelope_gradient",
    ),
    "square_without_its_half": (
        penalties.squared_l2(0.7)._replace(prox=penalties.squared_l2(1.4).prox),
        {},
        "stationarity",
    ),
    "metric_ignored": (lasso(lambda x, t: soft(x, 0.7 * jnp.mean(t))), {"metric": True}, "metric_optimality"),
    "half_precision_promoted": (lasso(lambda x, t: soft(x.astype(jnp.float32), 0.7 * t)), {}, "dtypes"),
    "not_idempotent": (in_ball(lambda x, t: 0.9 * scaled_into_ball(x, t)), {"is_set": True}, "idempotence"),
}


BY_DEFAULT = ("nan_derivative_at_zero", "ball_by_scaling", "metric_ignored")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.slow]) for name in MUTANTS]
)
def test_a_planted_fault_is_caught(name):
    penalty, told, law = MUTANTS[name]
    report = penalties.check(penalty, X, **told)
    assert law in report.broken, f"\n{report}"


@pytest.mark.slow
def test_what_was_replaced_in_the_mutants_was_right():
    right = {
        "lasso": (lasso(lambda x, t: soft(x, 0.7 * t)), {"metric": True}),
        "sparse group": (grouped(lambda x, t: shorten(soft(x, 0.7 * t), 0.5 * t)), {}),
    }
    for name, (penalty, told) in right.items():
        report = penalties.check(penalty, X, **told)
        assert report.passed, f"{name}\n{report}"


def test_a_brute_force_grid_and_a_conjugate_see_the_same_fault():
    wrong = lasso(lambda x, t: soft(x, 0.8 * t))
    report = penalties.check(
        wrong, jnp.ones(4), pointwise=lambda z: 0.7 * np.abs(z), dual_prox=lambda y, s: np.clip(y, -0.7, 0.7)
    )
    assert {"grid", "moreau"} <= set(report.broken)


def test_a_report_reads_like_a_verdict():
    bad = str(penalties.check(lasso(lambda x, t: soft(x, 0.8 * t)), jnp.ones(3)))
    line = next(line for line in bad.split("\n") if line.startswith("BROKEN optimality"))
    assert "nowhere below F(prox(x))" in line
    assert bad.endswith("broken: optimality, envelope_gradient")


@pytest.mark.parametrize(
    "project", [optax.projections.projection_l2_ball, optax.projections.projection_simplex]
)
def test_a_projection_in_the_place_of_a_prox_takes_the_step_for_its_radius(project):
    report = penalties.check(on_simplex(project), jnp.ones(4), is_set=True)
    assert report.remedy.startswith("prox(x, t) projects x onto a set of radius t")
    assert str(report).endswith("prox=lambda x, t: projection(x, radius).")
    on_unit = on_simplex(lambda x, t: optax.projections.projection_simplex(x, 1.0))
    assert penalties.check(on_unit, jnp.ones(4), is_set=True).remedy == ""


def test_trees_with_holes_can_be_checked():
    example = {"a": jnp.ones(3), "b": [None, jnp.ones((2, 2), jnp.bfloat16)]}
    report = penalties.check(compiled(penalties.elastic_net(0.3, 0.2)), example, metric=True)
    assert report.passed, f"\n{report}"


def test_points_are_as_large_as_the_example():
    seen = []

    def spy(x, t):
        seen.append(x)
        return x

    tiny = penalties.zero()._replace(prox=spy)
    penalties.check(tiny, 1e-4 * jnp.ones(3))
    sizes = [float(jnp.max(jnp.abs(x))) for x in seen if not isinstance(x, jax.core.Tracer)]
    assert sizes
    assert max(sizes) < 1e-2


@pytest.mark.parametrize(("example", "size"), [({}, 0), (jnp.ones(600), 600)])
def test_an_example_of_the_wrong_size_is_refused(example, size):
    with pytest.raises(ValueError, match=rf"example must be of 1 to 512 coordinates, got {size} coord"):
        penalties.check(penalties.l1(), example)


def test_what_is_no_penalty_is_refused():
    with pytest.raises(ValueError, match=r"check: penalty must be a Penalty"):
        penalties.check(penalties.l1, jnp.ones(3))
