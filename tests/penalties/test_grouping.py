"""Partitions of trees into groups, against explicit loops over the groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm.penalties.groups import _partition, grouping
from proxlm.penalties.groups import penalties as groups
from tests.arrays import numpy_normal as normal
from tests.penalties.penalty_case import compiled

D, H, WIDTH, F, E, L = 5, 2, 3, 4, 3, 2


def mask(leaf, index):
    chosen = np.zeros(leaf.shape, bool)
    chosen[index] = True
    return chosen


def loop(x, masks):
    """The group lasso by a loop over the groups; x and each mask are dicts of arrays.

    The threshold lies between the middle ones of the groups' norms over their weights, so that
    about half of them die. Returns it, Σ w |x_G| and the shortened x.
    """
    x = {name: np.array(leaf, np.float64) for name, leaf in x.items()}
    weights = [sum(chosen.sum() for chosen in group.values()) ** 0.5 for group in masks]
    squares = [sum((x[k][chosen] ** 2).sum() for k, chosen in group.items()) for group in masks]
    ratios = np.sqrt(squares) / weights
    threshold = np.sort(ratios)[len(masks) // 2 - 1 :][:2].mean()
    for group, ratio in zip(masks, ratios, strict=True):
        for name, chosen in group.items():
            x[name][chosen] *= max(1 - threshold / ratio, 0)
    return threshold, np.sum(np.sqrt(squares) * weights), x


def check(over, x, masks, apart=()):
    """Compares value, prox and the metric prox of a constant step with the loop."""
    threshold, total, expected = loop({k: x[k] for k in x if k not in apart}, masks)
    penalty = groups.group_lasso(2 * threshold, over)

    @jax.jit
    def compute(x):
        steps = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), x)
        return penalty.value(x), penalty.prox(x, 0.5), penalty.prox(x, steps)

    value, *moved = jax.tree.map(np.asarray, compute(x))
    assert value == pytest.approx(2 * threshold * total, rel=1e-5)
    for result in moved:
        for name, leaf in expected.items():
            np.testing.assert_allclose(result[name], leaf, atol=2e-6)
            np.testing.assert_array_equal(result[name] == 0, leaf == 0)
        for name in apart:
            np.testing.assert_array_equal(result[name], x[name])


def test_heads_of_a_packed_kernel_hold_query_key_and_value():
    x = {"qkv": normal(0, (D, 3 * H * WIDTH))}
    place = lambda p, h: slice((p * H + h) * WIDTH, (p * H + h + 1) * WIDTH)
    together = [
        {"qkv": sum(mask(x["qkv"], np.s_[:, place(p, h)]) for p in range(3)).astype(bool)} for h in range(H)
    ]
    check(grouping.heads(H, packed=3), x, together)
    apart = [{"qkv": mask(x["qkv"], np.s_[:, place(p, h)])} for p in range(3) for h in range(H)]
    check(grouping.heads(3 * H), x, apart)


def test_heads_of_stacked_layers_are_apart():
    x = {"out": normal(0, (L, H * WIDTH, D))}
    masks = [
        {"out": mask(x["out"], np.s_[i, h * WIDTH : (h + 1) * WIDTH])} for i in range(L) for h in range(H)
    ]
    check(grouping.heads(H, axis=1, apart=0), x, masks)


def test_blocks_are_neighbours_along_an_axis():
    x = {"w": normal(0, (6, 4))}
    rows = [{"w": mask(x["w"], np.s_[i, 2 * j : 2 * j + 2])} for i in range(6) for j in range(2)]
    check(grouping.blocks(2), x, rows)
    tiles = [
        {"w": mask(x["w"], np.s_[3 * i : 3 * i + 3, 2 * j : 2 * j + 2])} for i in range(2) for j in range(2)
    ]
    check(grouping.blocks((3, 2), (0, 1)), x, tiles)
    bands = [{"w": mask(x["w"], np.s_[3 * i : 3 * i + 3])} for i in range(2)]
    check(grouping.blocks((3, None), (0, 1)), x, bands)


def test_slices_are_experts():
    x = {"up": normal(0, (E, D, F))}
    check(grouping.slices(0), x, [{"up": mask(x["up"], e)} for e in range(E)])


def test_an_expert_reaches_across_its_kernels():
    x = {"experts/up": normal(0, (E, D, F)), "experts/down": normal(1, (E, F, D)), "router": normal(2)}
    masks = [{name: mask(x[name], e) for name in x if name != "router"} for e in range(E)]
    over = grouping.linked({"experts/up": 0, "experts/down": 0})
    check(over, x, masks, apart=["router"])


def test_a_neuron_reaches_across_its_kernels():
    x = {
        "up": normal(0, (D, F)),
        "gate": normal(1, (D, F)),
        "bias": normal(2, (F,)),
        "down": normal(3, (F, D)),
        "norm": normal(4, (D,)),
    }
    masks = [
        {
            "up": mask(x["up"], np.s_[:, j]),
            "gate": mask(x["gate"], np.s_[:, j]),
            "bias": mask(x["bias"], j),
            "down": mask(x["down"], j),
        }
        for j in range(F)
    ]
    over = grouping.linked({"up": 1, "gate": -1, "bias": 0, "down": 0})
    check(over, x, masks, apart=["norm"])


def test_neurons_of_stacked_layers():
    x = {"gate_up": normal(0, (L, D, 2, F)), "down": normal(1, (L, F, D))}
    masks = [
        {"gate_up": mask(x["gate_up"], np.s_[i, :, :, j]), "down": mask(x["down"], np.s_[i, j])}
        for i in range(L)
        for j in range(F)
    ]
    check(grouping.linked({"gate_up": (0, 3), "down": (0, 1)}), x, masks)
    # In another order the axes still match each other.
    check(grouping.linked({"gate_up": (3, 0), "down": (1, 0)}), x, masks)


def test_a_head_reaches_across_its_kernels():
    x = {"query": normal(0, (D, H * WIDTH)), "out": normal(1, (H * WIDTH, D))}
    place = lambda h: slice(h * WIDTH, (h + 1) * WIDTH)
    masks = [
        {"query": mask(x["query"], np.s_[:, place(h)]), "out": mask(x["out"], place(h))} for h in range(H)
    ]
    over = grouping.linked({"query": grouping.heads(H), "out": grouping.heads(H, axis=0)})
    check(over, x, masks)


def network():
    mlp = lambda seed: {"up": {"kernel": normal(seed, (3, 4))}, "down": {"kernel": normal(seed + 1, (4, 3))}}
    return {"block_0": {"mlp": mlp(0)}, "block_1": {"mlp": mlp(2)}, "head": normal(4, (3,))}


LINKED = grouping.linked({"mlp/up/kernel": 1, "mlp/down/kernel": 0})


def test_each_block_has_neurons_of_its_own():
    x = network()
    assert LINKED.split("test", x).sizes == {"block_0": 6, "block_1": 6}
    prox = compiled(groups.group_lasso(0.5, LINKED)).prox
    moved = prox(x, 1.0)
    for block in ("block_0", "block_1"):
        alone = prox({block: x[block]}, 1.0)
        np.testing.assert_array_equal(
            moved[block]["mlp"]["up"]["kernel"], alone[block]["mlp"]["up"]["kernel"]
        )
    strengths = {"block_0": np.float32([0.0, 0.0, 9.0, 9.0]), "block_1": 0.0}
    moved = compiled(groups.group_lasso(strengths, LINKED)).prox(x, 1.0)
    np.testing.assert_array_equal(
        moved["block_1"]["mlp"]["up"]["kernel"], x["block_1"]["mlp"]["up"]["kernel"]
    )
    np.testing.assert_array_equal(moved["block_0"]["mlp"]["up"]["kernel"][:, 2:], 0)
    np.testing.assert_array_equal(moved["block_0"]["mlp"]["down"]["kernel"][2:], 0)
    np.testing.assert_array_equal(
        moved["block_0"]["mlp"]["down"]["kernel"][:2], x["block_0"]["mlp"]["down"]["kernel"][:2]
    )


@pytest.mark.parametrize(
    "make", [groups.group_lasso, lambda s, over: groups.sparse_group_lasso(s, 0.5, over)]
)
def test_leaves_in_no_group_keep_their_bits_and_cost_nothing(make):
    x = network()
    x["head"] = np.float32([-0.0, 1e-25, 3.0])
    penalty = make(5.0, LINKED)
    steps = jax.tree.map(np.ones_like, x)
    for step_size in (1.0, steps):
        kept = jax.jit(penalty.prox)(x, step_size)["head"]
        np.testing.assert_array_equal(np.asarray(kept).view(np.int32), np.asarray(x["head"]).view(np.int32))
    gradient = jax.jit(jax.grad(penalty.value))(x)
    np.testing.assert_array_equal(gradient["head"], 0)
    np.testing.assert_array_equal(jax.jit(penalty.residual)(x, x)["head"], x["head"])


def test_linked_groups_work_inside_masked():
    x = network()
    penalty = groups.group_lasso(0.5, LINKED)
    inner = optax.stateless(lambda updates, _: penalty.prox(updates, 1.0))
    is_mlp = {
        "block_0": {"mlp": {"up": {"kernel": True}, "down": {"kernel": True}}},
        "block_1": {"mlp": {"up": {"kernel": False}, "down": {"kernel": False}}},
        "head": False,
    }
    tx = optax.masked(inner, is_mlp)
    moved, _ = jax.jit(tx.update)(x, tx.init(x))
    expected = compiled(penalty).prox(x, 1.0)
    chex_equal = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(chex_equal, moved["block_0"], expected["block_0"])
    jax.tree.map(chex_equal, moved["block_1"], x["block_1"])
    assert penalty.prox({"a": None, "b": optax.MaskedNode()}, 1.0) == {"a": None, "b": optax.MaskedNode()}
    assert penalty.value(None) == 0


def test_linked_groups_in_half_precision():
    x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), network())
    prox = compiled(groups.group_lasso(0.5, LINKED)).prox
    moved, wide = prox(x, 1.0), prox(jax.tree.map(lambda a: a.astype(np.float32), x), 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), moved, wide)


def test_linked_prox_has_a_symmetric_jacobian_and_vmaps():
    x = {"up": normal(5, (2, 3)), "down": normal(6, (3, 2))}
    over = grouping.linked({"up": 1, "down": 0})
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.array, x))

    def move(flat, strength):
        moved = groups.group_lasso(strength, over).prox(unravel(flat), 0.5)
        return jax.flatten_util.ravel_pytree(moved)[0]

    jacobian = jax.jit(jax.jacrev(move))(flat, 0.7)
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-6)
    spectrum = np.linalg.eigvalsh(np.asarray(jacobian))
    assert spectrum.min() >= -1e-6 and spectrum.max() <= 1 + 1e-6
    swept = jax.jit(jax.vmap(move, (None, 0)))(flat, np.float32([0.0, 0.7, 5.0]))
    np.testing.assert_array_equal(swept[0], flat)
    np.testing.assert_allclose(swept[1], jax.jit(move)(flat, 0.7), atol=1e-6)
    np.testing.assert_array_equal(swept[2], 0)


@pytest.mark.parametrize(
    "over", [grouping.axes(0), grouping.slices(0), grouping.blocks(2, 0), grouping.heads(2, 0)]
)
def test_scalars_and_empty_arrays_pass(over):
    penalty = groups.group_lasso(0.5, over)
    x = {"a": np.zeros(0, np.float32), "b": np.zeros((0, 3), np.float32), "c": np.zeros((4, 0), np.float32)}

    @jax.jit
    def all_of(x, ones, scalar):
        like = penalty.prox(x, 1.0), penalty.prox(x, ones), jax.grad(penalty.value)(x)
        return like, penalty.value(x), penalty.prox(scalar, 1.0)

    likes, value, scalar = all_of(x, jax.tree.map(np.ones_like, x), np.float32(2.0))
    assert all(jax.tree.map(np.shape, like) == jax.tree.map(np.shape, x) for like in likes)
    assert (float(value), float(scalar)) == (0.0, 1.5)


def test_sums_over_reshaped_axes_have_derivatives():
    x = normal(7, (4, 6))
    penalty = groups.group_lasso(0.5, grouping.blocks((2, 3), (0, 1)))
    expected = (
        0.5
        * 6**0.5
        * x
        / np.repeat(np.repeat(np.sqrt((np.asarray(x).reshape(2, 2, 2, 3) ** 2).sum((1, 3))), 2, 0), 3, 1)
    )
    np.testing.assert_allclose(jax.jit(jax.grad(penalty.value))(x), expected, rtol=1e-5)
    batched = jax.jit(jax.vmap(penalty.prox, (0, None)))(np.stack([x, 2 * x]), 0.5)
    np.testing.assert_allclose(batched[1], jax.jit(penalty.prox)(2 * x, 0.5), atol=1e-6)
    assert isinstance(jax.jit(lambda x, t: jax.jvp(penalty.prox, (x, t), (x, 1.0))[1])(x, 0.5), jax.Array)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (grouping.blocks(4, 0), r"x at mlp/kernel must be divisible by 4 along axis 0, got shape \(6, 5\)"),
        (
            grouping.heads(3, packed=2),
            r"x at mlp/kernel must be divisible by 6 along axis 1, got shape \(6, 5\)",
        ),
        (grouping.axes(2), r"axis must be .* at mlp/kernel, got \(2,\)"),
        (grouping.slices((0, 0)), r"axis must be .* at mlp/kernel, got \(0, 0\)"),
        (
            grouping.linked({"kernel": 0, "up": 1}),
            r"kernels must be endings of paths, such as mlp/kernel, got up",
        ),
        (
            grouping.linked({"kernel": 0, "mlp/kernel": 1}),
            r"kernels must be one ending for a path, got .* for mlp/kernel",
        ),
        (grouping.linked({"kernel": 2}), r"axis must be .* at mlp/kernel, got \(2,\)"),
    ],
)
def test_leaves_that_cannot_be_cut_are_named(over, message):
    with pytest.raises(ValueError, match="group_lasso: " + message):
        groups.group_lasso(0.1, over).prox({"mlp": {"kernel": jnp.ones((6, 5))}}, 0.1)


def test_links_that_do_not_match_are_named():
    x = network()
    del x["block_1"]["mlp"]["down"]
    with pytest.raises(ValueError, match=r"block_1/mlp/up/kernel without block_1/mlp/down"):
        groups.group_lasso(0.1, LINKED).value(x)
    wrong = grouping.linked({"up/kernel": 0, "down/kernel": 0})
    message = r"\(4,\) at block_0/mlp/down/kernel and \(3,\) at .*up/kernel"
    with pytest.raises(ValueError, match=message):
        groups.group_lasso(0.1, wrong).value(network())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grouping.heads(0), "heads: num_heads must be an integer ≥ 1"),
        (lambda: grouping.heads(2, packed=0.5), "heads: packed must be an integer ≥ 1"),
        (lambda: grouping.blocks(0), "blocks: size must be an integer ≥ 1"),
        (lambda: grouping.blocks((2, 2)), "blocks: size must be one entry for each axis"),
        (lambda: grouping.slices(0.5), "slices: axis must be an integer"),
        (lambda: grouping.linked({}), "linked: kernels must be a mapping"),
        (lambda: grouping.linked({"a": LINKED}), "linked: kernels must be groupings of single leaves.*for a"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_leaf_is_reduced_without_a_reshape_where_none_is_needed():
    columns = _partition.counting(jnp.ones((4, 3)), [1])
    assert _partition.counts(columns) == (1, 3)
    text = str(jax.make_jaxpr(lambda x: _partition.reduce_leaf(_partition.SUM, x, columns))(jnp.ones((4, 3))))
    assert "reduce_window" not in text and "reshape[" not in text
