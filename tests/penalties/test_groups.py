"""Penalties on groups: how trees are cut, sparse groups, and any penalty on the norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm.penalties import _slots, base
from proxlm.penalties.coordinatewise import convex as norms
from proxlm.penalties.groups import _norm_prox_in_metric, _partition, grouping
from proxlm.penalties.groups import penalties as groups
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import SHAPE, Case, compiled, in_numpy, ramp

HEADS = grouping.heads(2, axis=0)
TILES = grouping.blocks((2, 3), (0, 1))


def mcp(strength, gamma=3.0):
    """The minimax concave penalty on numbers, for t < γ."""

    def value(x, strength):
        size = jnp.minimum(jnp.abs(x), gamma * strength)
        return jnp.sum(strength * size - size**2 / (2 * gamma))

    def prox(x, t, strength):
        soft = x - jnp.clip(x, -t * strength, t * strength)
        return jnp.where(jnp.abs(x) >= gamma * strength, x, soft / (1 - t / gamma))

    def residual(x, v, strength):
        slope = jnp.maximum(strength - jnp.abs(x) / gamma, 0.0) * jnp.sign(x)
        return v - jnp.where(x == 0, jnp.clip(v, -strength, strength), slope)

    given = {"strength": (strength, _slots.coordinates)}
    return base.leafwise("mcp", value, prox, given, _slots.coordinates, residual)


def group_mcp(strength, axis=0, weight="sqrt_size", gamma=3.0):
    slope = _norm_prox_in_metric.Slope(strength, 1 / gamma)
    return groups.group(mcp(strength, gamma), axis, weight, slope)


def balls(axis, radius):
    """The prox of the conjugate of groups along an axis: projections on balls."""

    def project(y, s):
        del s
        norm = np.linalg.norm(y, axis=axis, keepdims=True)
        return y * np.minimum(1.0, radius / norm)

    return project


def sparse_dual(y, s):
    """Of sparse groups along axis 0: y less the prox of sg at y, by Moreau for s = 1 alone."""
    soft = np.sign(y) * np.maximum(np.abs(y) - 0.35, 0)
    norm = np.linalg.norm(soft, axis=0, keepdims=True)
    return y - soft * np.maximum(1 - 0.7 / np.maximum(norm, 1e-30), 0)


# A line for each way to cut an array; tests/penalties/test_laws.py puts all of them through its laws.
CASES = {
    "group_columns": Case(groups.group_lasso, metric=True, dual_prox=balls(0, 0.7 * 2.0)),
    "group_rows_unweighted": Case(
        lambda s: groups.group_lasso(s, -1, "none"), metric=True, dual_prox=balls(1, 0.7)
    ),
    "group_by_strength": Case(lambda s: groups.group_lasso(s * ramp()[:1]), metric=True),
    "group_whole": Case(
        lambda s: groups.group_lasso(s, None), metric=True, dual_prox=balls((0, 1), 0.7 * 12**0.5)
    ),
    "group_of_one": Case(lambda s: groups.group_lasso(s, ()), metric=True),
    "group_heads": Case(lambda s: groups.group_lasso(s, HEADS), metric=True),
    "group_slices": Case(lambda s: groups.group_lasso(s, grouping.slices(1)), metric=True),
    "group_blocks": Case(lambda s: groups.group_lasso(s, grouping.blocks(2, 0)), metric=True),
    "group_tiles": Case(lambda s: groups.group_lasso(s, TILES, "none"), metric=True),
    "group_squared_l2": Case(lambda s: groups.group(norms.squared_l2(s), 0)),
    "group_mcp": Case(group_mcp, convex=False, metric=True, largest_step=2.9),
    "group_mcp_unweighted": Case(
        lambda s: group_mcp(s, 1, "none"), convex=False, metric=True, largest_step=2.9
    ),
    "sparse_group": Case(groups.sparse_group_lasso, metric=True),
    "sparse_group_tiles": Case(lambda s: groups.sparse_group_lasso(s, 0.2, TILES, "none"), metric=True),
}


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_a_sparse_group_by_hand():
    x = np.float32([[3.5, 0.4], [-4.5, 0.5]])
    penalty = compiled(groups.sparse_group_lasso(2.0, 0.25, axis=0, weight="none"))
    # Soft threshold 0.5: (3, -4), (0, 0). Then the norm of 5 loses 1.5.
    np.testing.assert_allclose(penalty.prox(x, 1.0), [[2.1, 0.0], [-2.8, 0.0]], rtol=1e-6)
    expected = 0.5 * 8.9 + 1.5 * (32.5**0.5 + 0.41**0.5)
    assert penalty.value(x) == pytest.approx(expected, rel=1e-6)


def test_the_other_order_is_beaten():
    x = np.float32([2.0, 0.7, 0.7, 0.7, 0.7])
    penalty = compiled(groups.sparse_group_lasso(1.0, 0.5, weight="none"))
    norm = np.linalg.norm(x)
    swapped = np.maximum(x * (1 - 0.5 / norm) - 0.5, 0)
    objective = lambda z: penalty.value(z) + 0.5 * np.sum((z - x) ** 2)
    assert objective(swapped) > objective(penalty.prox(x, 1.0)) + 1e-3


def test_sparse_groups_lie_between_the_lasso_and_the_group_lasso():
    x = normal(0, SHAPE)
    for mix, other in [(1.0, norms.l1(0.7)), (0.0, groups.group_lasso(0.7, HEADS))]:
        penalty, other = compiled(groups.sparse_group_lasso(0.7, mix, HEADS)), compiled(other)
        np.testing.assert_allclose(penalty.prox(x, 0.5), other.prox(x, 0.5), atol=1e-6)
        assert penalty.value(x) == pytest.approx(float(other.value(x)), rel=1e-6)


def test_any_penalty_on_norms_by_hand():
    x, penalty = np.float32([[3.0, 0.6], [4.0, 0.8]]), compiled(group_mcp(2.0, 0, "none"))
    # Norms 5 and 1. MCP with strength 2 and γ = 3: 5 < γ·2, (5 - 1)/(1 - 0.5/3) = 4.8; 1 is dead.
    np.testing.assert_allclose(penalty.prox(x, 0.5), [[2.88, 0.0], [3.84, 0.0]], rtol=1e-6)
    value = penalty.value(x)
    assert value == pytest.approx((2 * 5 - 25 / 6) + (2 - 1 / 6), rel=1e-6)
    # With weights it acts on the root mean squares 5/√2 and 1/√2, twice.
    value = compiled(group_mcp(2.0, 0)).value(x)
    assert value == pytest.approx(2 * ((2 * 5 / 2**0.5 - 25 / 12) + (2 / 2**0.5 - 1 / 12)), rel=1e-6)


def test_a_group_of_equal_coordinates_counts_as_its_coordinates():
    x = np.full(SHAPE, -1.3, np.float32)
    for phi in (norms.l1(0.7), mcp(0.7), norms.squared_l2(0.7)):
        carried, phi = compiled(groups.group(phi, TILES)), compiled(phi)
        assert carried.value(x) == pytest.approx(float(phi.value(x)), rel=1e-6)
        np.testing.assert_allclose(carried.prox(x, 0.5), phi.prox(x, 0.5), rtol=1e-6)


def test_groups_of_other_sizes_have_other_weights():
    x = {"a": jnp.ones((4, 2)), "b": jnp.ones((9, 1)), "c": None, "d": jnp.ones((4, 1))}
    assert compiled(groups.group_lasso(1.0)).value(x) == pytest.approx(2 * 4 + 9 + 4)
    strength = {"a": 1.0, "b": 2.0, "c": {"hidden": 5.0}, "d": 0.0}
    assert compiled(groups.group_lasso(strength)).value(x) == pytest.approx(2 * 4 + 2 * 9)


@pytest.mark.parametrize("make", [groups.group_lasso, groups.sparse_group_lasso, group_mcp])
def test_gradient_at_the_zero_group_is_finite(make):
    # jaxopt 0.8.5 prox_group_lasso: NaN.
    @jax.jit
    def slopes(x, t):
        penalty = make(0.1)
        total = lambda x, t: jnp.sum(penalty.prox(x, t))
        return *jax.grad(total, (0, 1))(x, t), jax.grad(penalty.value)(x)

    for size in (0.0, 1e-25):
        for t in (0.5, 0.0):
            assert all(np.all(np.isfinite(slope)) for slope in slopes(np.full((4, 1), size, np.float32), t))


@pytest.mark.parametrize("name", ["group_columns", "group_tiles", "group_mcp", "sparse_group"])
def test_tiny_and_zero_groups_are_spared(name):
    prox = in_numpy(lambda x, t, s: CASES[name].make(s).prox(x, t))
    # jaxopt 0.8.5 prox_group_lasso: zero.
    x, zero = 1e-25 * normal(1, SHAPE), np.zeros(SHAPE, np.float32)
    for t in (0.5, ramp()):
        np.testing.assert_array_equal(bits(prox(x, t, 0.0)), bits(x))
    # torchao's ProxGroupLasso and nemos: 0 / 0.
    for t in (0.0, 0 * ramp()):
        np.testing.assert_array_equal(prox(zero, t, 0.7), 0)


def test_norms_are_right_at_any_usual_scale():
    x, prox = normal(2, SHAPE), in_numpy(lambda x, s: groups.group_lasso(s).prox(x, 0.5))
    for scale in (1e-15, 1e-6, 1e6, 1e15):
        moved, expected = prox(scale * x, 0.7 * scale), scale * prox(x, 0.7)
        np.testing.assert_allclose(moved, expected, rtol=2e-6, atol=1e-6 * scale)


def test_groups_too_long_for_their_square_are_not_moved():
    x, prox = 1e25 * normal(3, SHAPE), compiled(groups.group_lasso(0.7)).prox
    np.testing.assert_array_equal(bits(prox(x, 0.5)), bits(x))
    infinite = np.float32([[np.inf], [1.0]])
    np.testing.assert_array_equal(prox(infinite, 0.5), infinite)


def distance_by_descent(penalty, x, v):
    """The distance of v to ∂g(x) as a limit: (x + s v - prox_sg(x + s v))/s for small s is P(v)."""
    step = 1e-6
    moved = x + step * v
    return v - (moved - penalty.prox(moved, step)) / step


@pytest.mark.parametrize("name", ["group_columns", "group_heads", "group_mcp", "sparse_group"])
def test_residual_is_what_the_nearest_subgradient_leaves(name):
    # For x != 0 the projection is the gradient; for a zero group the rest is at right angles.
    x = normal(4, SHAPE) * np.float32([[1.0, 0.0, 1.0]]) * np.float32([[1.0], [1.0], [0.0], [1.0]])
    penalty, v = CASES[name].make(0.7), 3.0 * normal(5, SHAPE)
    with jax.enable_x64(True):
        expected = distance_by_descent(compiled(CASES[name].make(0.7)), np.float64(x), np.float64(v))
    np.testing.assert_allclose(jax.jit(penalty.residual)(x, v), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["group_columns", "group_tiles", "group_mcp", "sparse_group_tiles"])
def test_residual_is_zero_for_the_subgradient_that_the_prox_proves(name):
    penalty, x = CASES[name].make(0.7), normal(6, SHAPE) * np.float32([[1.0, 0.1, 1.0]])
    x[2:] *= 0.1
    moved = compiled(penalty).prox(x, 0.5)
    assert np.any(moved == 0)
    np.testing.assert_allclose(jax.jit(penalty.residual)(moved, (x - moved) / 0.5), 0, atol=2e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: groups.group_lasso(-1.0), r"group_lasso: strength must be a number ≥ 0"),
        (lambda: groups.group_lasso(axis=0.5), r"group_lasso: axis must be an integer"),
        (lambda: groups.group_lasso(weight="size"), r"weight must be one of .*sqrt_size"),
        (lambda: groups.sparse_group_lasso(float("nan")), r"sparse_group_lasso: strength must"),
        (lambda: groups.sparse_group_lasso(1.0, 1.5), r"mix must be a number in \[0, 1\], got 1.5"),
        (lambda: groups.group(norms.l1), r"group: penalty must be a Penalty"),
        (lambda: groups.group(norms.l1(), weight="size"), r"group: weight must be one of"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_that_do_not_fit_are_refused():
    x = {"w": jnp.ones(SHAPE)}
    with pytest.raises(
        ValueError, match=r"group_lasso: strength at w must be .*\(1, 3\), got shape \(4, 1\)"
    ):
        groups.group_lasso({"w": jnp.ones((4, 1))}).prox(x, 0.1)
    with pytest.raises(ValueError, match=r"group_lasso: step_size at w must be .*\(4, 3\), got shape \(2,\)"):
        groups.group_lasso().prox(x, {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"group: step_size must be one number"):
        groups.group(norms.squared_l2()).prox(x, {"w": jnp.ones(SHAPE)})
    with pytest.raises(ValueError, match=r"sparse_group_lasso: step_size must be a number ≥ 0"):
        groups.sparse_group_lasso().prox(x, -0.1)


def test_groupings_survive_inject_hyperparams():
    def make(strength, over):
        penalty = groups.group_lasso(strength, over)
        return optax.stateless(lambda updates, _: penalty.prox(updates, 1.0))

    tx = optax.inject_hyperparams(make)(strength=0.7, over=HEADS)
    x = normal(7, SHAPE)
    moved, _ = jax.jit(tx.update)(x, tx.init(x))
    np.testing.assert_allclose(moved, compiled(groups.group_lasso(0.7, HEADS)).prox(x, 1.0), rtol=1e-6)
    assert isinstance(HEADS, _partition.Grouping)


def test_derivative_in_the_strength():
    # x (1 - λ/5) sums to 7 - 7λ/5, also where nothing moves.
    total = lambda s: jnp.sum(groups.group_lasso(s, weight="none").prox(np.float32([3.0, 4.0]), 1.0))
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(total)))(np.float32([0.0, 0.5])), -1.4, rtol=1e-6)
