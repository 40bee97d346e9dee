"""Groups by labels and lists of indices, non-negative groups, weights of coordinates, complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties
from proxlm.penalties import grouping
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import compiled

# Six coordinates: groups of three, one and one, and one coordinate in none.
LABELS = np.array([2, 0, 2, -1, 1, 2])
STRENGTHS = np.array([0.5, 0.0, 1.5], np.float32)
X = np.float32([3.0, -1.0, 0.5, 7.0, 0.25, -2.0])


def loop(x, threshold_of):
    """The group lasso in float64, a group at a time; thresholds may be infinite."""
    moved = np.array(x, np.float64)
    for group in range(3):
        own = LABELS == group
        norm = np.linalg.norm(moved[own], axis=None)
        moved[own] *= max(1 - threshold_of(group, own.sum() * moved[0].size) / norm, 0) if norm else 0
    return moved


@pytest.mark.parametrize("weight", ["none", "sqrt_size"])
def test_labels_make_groups_of_unequal_size(weight):
    width = lambda size: size**0.5 if weight == "sqrt_size" else 1.0
    penalty = compiled(penalties.group_lasso(STRENGTHS, grouping.by_label(LABELS), weight))
    expected = loop(X, lambda group, size: 0.6 * STRENGTHS[group] * width(size))
    np.testing.assert_allclose(penalty.prox(X, 0.6), expected, atol=1e-6)
    np.testing.assert_allclose(penalty.prox(X, np.full(6, 0.6, np.float32)), expected, atol=1e-6)
    norms = [
        np.linalg.norm(np.asarray(X)[LABELS == group]) * width(np.sum(LABELS == group)) for group in range(3)
    ]
    assert penalty.value(X) == pytest.approx(np.dot(STRENGTHS, norms), rel=1e-6)
    mcp = lambda over, x: penalties.group_mcp(0.5, 3.0, over, weight).value(x)
    parts = [X[LABELS == group] for group in range(3)]
    whole, one_by_one = jax.jit(
        lambda x, parts: (mcp(grouping.by_label(LABELS), x), sum(mcp(None, part) for part in parts))
    )(X, parts)
    assert float(whole) == pytest.approx(float(one_by_one), rel=1e-6)


def test_labels_along_an_axis_group_whole_rows():
    x = normal(1, (6, 4))
    expected = loop(x, lambda group, size: 0.6 * size**0.5)
    for over in (
        grouping.by_label(LABELS.tolist(), axis=0),
        grouping.by_label({"w": LABELS[:, None]}),
        grouping.by_index([[1], [4], [0, 2, 5]], size=6, axis=0),
    ):
        moved = compiled(penalties.group_lasso(1.0, over)).prox({"w": x}, 0.6)["w"]
        np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert over.split("test", {"w": x}).sizes["w"].tolist() == [4, 4, 12]
    other = compiled(penalties.group_lasso(1.0, grouping.by_label(LABELS, axis=-1))).prox(x.T, 0.6)
    np.testing.assert_allclose(other.T, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grouping.by_label([0.5, 1.0]), "by_label: labels must be known integers"),
        (lambda: jax.jit(lambda n: grouping.by_label(n).sizes)(jnp.arange(3)), "labels must be known"),
        (lambda: grouping.by_index([[0, 1], [1]], 3), "by_index: groups must be .* got 1 in list 1"),
        (lambda: grouping.by_index([[0, 3]], 3), r"lists of different integers in \[0, 3\), got 3"),
        (
            lambda: penalties.group_lasso(1.0, grouping.by_label([0, 1])).value({"w": X}),
            r"group_lasso: labels at w must be of a shape that broadcasts to \(6,\), got shape \(2,\)",
        ),
        (lambda: grouping.linked({"w": grouping.by_label([0, 1])}), "must be groupings of single leaves"),
    ],
)
def test_labels_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_coordinates_of_sparse_groups_have_weights_of_their_own():
    weights, mix = np.float32([0.0, 1.0, 2.0, 1.0, 0.0, 0.5]), np.float32([0.5, 0.25, 0.0])
    over = grouping.by_label(LABELS)
    penalty = compiled(penalties.sparse_group_lasso(0.8, mix, over, "none", coordinate_weight=weights))
    own_mix = np.append(mix, 0.0)[LABELS]
    pull = 0.5 * 0.8 * own_mix * np.asarray(weights)
    soft = np.sign(X) * np.maximum(np.abs(X) - pull, 0)
    expected = loop(soft, lambda group, size: 0.5 * 0.8 * (1 - float(mix[group])))
    np.testing.assert_allclose(penalty.prox(X, 0.5), expected, atol=1e-6)
    norms = [np.linalg.norm(np.asarray(X)[LABELS == group]) for group in range(3)]
    value = 0.8 * (np.sum(own_mix * weights * np.abs(X)) + np.dot(1 - mix, norms))
    assert penalty.value(X) == pytest.approx(float(value), rel=1e-6)
    free = compiled(penalties.sparse_group_lasso(0.8, 1.0, None, coordinate_weight=np.float32([0.0, 1.0])))
    np.testing.assert_allclose(free.prox(np.float32([0.1, 0.1]), 1.0), [0.1, 0.0])


EVERY = np.maximum(LABELS, 0)  # a coordinate in no group would be missed by a law on NaN
CHECKED = {
    "labels": (penalties.group_lasso(0.7, grouping.by_label(EVERY)), {}),
    "sparse": (
        penalties.sparse_group_lasso(
            0.7, jnp.array([0.5, 0.25, 0.0]), grouping.by_label(EVERY), coordinate_weight=jnp.abs(X)
        ),
        {},
    ),
    "non_negative": (penalties.restrict_to_non_negative(penalties.group_lasso(0.7, None)), {}),
    "non_negative_sparse": (penalties.restrict_to_non_negative(penalties.sparse_group_lasso(0.7, 0.5)), {}),
    "non_negative_mcp": (
        penalties.restrict_to_non_negative(penalties.group_mcp(0.7, axis=None)),
        {"convex": False},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_they_obey_the_laws(name):
    penalty, known = CHECKED[name]
    report = penalties.check(penalty, X, metric=True, **known)
    assert report.passed, str(report)


def test_a_non_negative_group_is_the_group_of_what_is_positive():
    penalty = penalties.restrict_to_non_negative(penalties.group_lasso(1.0, axis=None, weight="none"))
    residual, penalty = jax.jit(penalty.residual), compiled(penalty)
    np.testing.assert_allclose(penalty.prox(np.float32([3.0, -9.0, 4.0]), 2.5), [1.5, 0.0, 2.0])
    assert penalty.value(np.float32([3.0, 0.0, 4.0])) == 5
    assert penalty.value(np.float32([3.0, -1e-3, 4.0])) == np.inf
    left = residual(np.float32([3.0, 0.0, 4.0]), np.float32([0.6, -2.0, 1.8]))
    np.testing.assert_allclose(left, [0.0, 0.0, 1.0], atol=1e-6)


def test_a_complex_number_is_a_group_of_its_two_parts():
    z, steps = np.complex64([3.0 + 4.0j, 0.3 - 0.4j, 0.0j]), np.float32([1.0, 0.25, 1.0])
    in_parts = lambda z: np.stack([z.real, z.imag], axis=-1)
    parts = in_parts(z)
    for make in (
        lambda axis: penalties.group_lasso(0.8, axis),
        lambda axis: penalties.group_mcp(0.8, 3.0, axis, weight="none"),
    ):
        of_complex, of_parts = compiled(make(())), compiled(make(-1))
        for step, step_of_parts in ((0.5, 0.5), (steps, np.stack([steps, steps], axis=-1))):
            expected = of_parts.prox(parts, step_of_parts)
            np.testing.assert_allclose(in_parts(of_complex.prox(z, step)), expected, atol=1e-6)
        assert of_complex.value(z) == pytest.approx(float(of_parts.value(parts)), rel=1e-6)
    whole = compiled(penalties.group_lasso(1.0, axis=None))
    np.testing.assert_allclose(in_parts(whole.prox(z, 0.5)), whole.prox(parts, 0.5), atol=1e-6)
    with pytest.raises(ValueError, match=r"l1: x must be .*complex64.*group_lasso\(strength, axis=\(\)\)"):
        penalties.l1(1.0).prox(z, 0.5)


def test_a_complex_number_is_a_coordinate_of_a_sparse_group():
    z = np.complex64([[3.0 + 4.0j, 0.3 - 0.4j], [-6.0 + 8.0j, 0.0]])
    penalty = penalties.sparse_group_lasso(2.0, 0.25, axis=0, weight="none")

    @jax.jit
    def all_of(z):
        moved = penalty.prox(z, 1.0)
        in_metric = penalty.prox(z, jnp.ones(z.shape))
        return penalty.value(z), moved, in_metric, penalty.residual(moved, z - moved)

    value, moved, in_metric, left = map(np.asarray, all_of(z))
    # Sizes 5, 10 and .5 lose .5; then the norm of (4.5, 9.5) loses 1.5.
    shorter = 1 - 1.5 / np.hypot(4.5, 9.5)
    expected = shorter * np.array([[0.9 * z[0, 0], 0.0], [0.95 * z[1, 0], 0.0]])
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    np.testing.assert_allclose(in_metric, expected, atol=1e-5)
    np.testing.assert_allclose(left, 0.0, atol=2e-6)
    assert value == pytest.approx(0.5 * 15.5 + 1.5 * (125**0.5 + 0.5), rel=1e-6)
