"""Structure over time: scheduled strengths, pruning, debiasing, and params that lie on sets exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import penalties, transforms
from proxlm.penalties.groups import grouping
from tests.arrays import numpy_normal as normal
from tests.transforms.walks import walk

NEURONS = grouping.linked({"up": 1, "down": 0})


def tree(seed=0):
    return {"w": normal(seed, (4, 3)), "b": {"c": normal(seed + 1, (3,))}}


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def prune(params, *args, **options):
    """Compiled, with results in NumPy."""
    compiled = jax.jit(lambda params: transforms.prune(params, *args, **options))
    return jax.tree.map(np.asarray, compiled(params))


def update(tx, updates, params):
    """The updates and the state after the first of them, compiled."""
    return jax.tree.map(np.asarray, jax.jit(tx.update)(updates, tx.init(params), params))


def still(count, shape=(1,)):
    return [np.zeros(shape, np.float32)] * count


# Scheduled strength


def test_a_scheduled_strength_is_read_before_the_count_moves(variant):
    make = lambda strength: transforms.apply_prox(penalties.l1(strength), 0.5)
    tx = transforms.scheduled(make, lambda count: 1.0 * count)
    path, state = variant(lambda start: walk(tx, start, still(4)))(jnp.array([9.0]))
    np.testing.assert_array_equal(np.concatenate(path), [9.0, 8.5, 7.5, 6.0])
    assert state.count == 4 == state.inner.count


def test_a_constant_schedule_is_the_link_itself():
    make = lambda strength: optax.chain(
        optax.adam(0.1), transforms.apply_prox(penalties.l1(strength), 0.1, every=2, anchored=True)
    )
    gradients = [tree(seed) for seed in range(4)]
    path, state = walk(transforms.scheduled(make, lambda count: 0.5), tree(9), gradients)
    expected, inner = walk(make(0.5), tree(9), gradients)
    assert_same_bits(path, expected)
    assert_same_bits(state.inner, inner)


def test_a_scheduled_strength_keeps_its_bits_beside_bfloat16_params():
    seen = []
    make = lambda strength: seen.append(strength) or optax.identity()
    transforms.scheduled(make, lambda count: jnp.float32(3e-4)).init(jnp.ones(2, jnp.bfloat16))
    assert seen[0].dtype == jnp.float32


def test_a_schedule_may_give_several_numbers():
    make = lambda both: transforms.apply_prox(penalties.elastic_net(*both), 1.0)
    tx = transforms.scheduled(make, lambda count: (1.0 * count, 3.0))
    path, _ = walk(tx, jnp.array([8.0]), still(2))
    np.testing.assert_allclose(np.concatenate(path), [2.0, 0.25])


def test_a_scheduled_link_is_handed_the_extra_arguments():
    tx = transforms.scheduled(transforms.scale_by_kl, lambda count: 0.1)
    updates, _ = jax.jit(tx.update)(np.ones(1), tx.init(np.ones(1)), approx_kl=0.2)
    np.testing.assert_allclose(updates, 0.5)


def test_only_functions_can_be_scheduled():
    with pytest.raises(ValueError, match=r"make must be a function"):
        transforms.scheduled(penalties.l1(1.0), lambda count: 1.0)
    with pytest.raises(ValueError, match=r"schedule must be a function"):
        transforms.scheduled(transforms.prune_to, 0.5)
    with pytest.raises(ValueError, match=r"make returns must be an optax.GradientTransformation"):
        transforms.scheduled(penalties.l1, lambda count: 1.0).init(jnp.ones(1))


# The ramp


def test_the_ramp_by_hand(variant):
    ramp = variant(transforms.cubic_sparsity(0.9, begin=10, end=30, initial=0.1))
    shares = [float(ramp(jnp.int32(n))) for n in (0, 10, 20, 25, 30, 99)]
    expected = [0.1, 0.1, 0.9 - 0.8 / 8, 0.9 - 0.8 / 64, 0.9, 0.9]
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"final": 80}, r"final must be one number in \[0, 1\], got 80"),
        ({"final": float("nan")}, r"final must be one number"),
        ({"initial": -0.1}, r"initial must be one number"),
        ({"begin": 5, "end": 5}, r"begin must be before end, got 5 and 5"),
        ({"begin": 0.5}, r"begin must be an integer"),
    ],
)
def test_a_ramp_goes_forward_between_shares(bad, words):
    with pytest.raises(ValueError, match=words):
        transforms.cubic_sparsity(**({"final": 0.8, "begin": 0, "end": 10} | bad))


# Pruning


def pruned(x, share):
    """The law in NumPy: a stable sort, the smallest and of equals the last."""
    flat = np.array(x).ravel()
    order = np.argsort(-np.abs(flat), kind="stable")
    flat[order[flat.size - round(share * flat.size) :]] = 0.0
    return flat.reshape(np.shape(x))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pruning_takes_the_smallest_of_each_leaf(dtype, variant):
    params = jax.tree.map(lambda x: x.astype(dtype), tree())
    prune = variant(transforms.prune)
    for share in (0.0, 0.3, 0.5, 1.0):
        got = prune(params, share)
        assert_same_bits(got, {"w": pruned(params["w"], share), "b": {"c": pruned(params["b"]["c"], share)}})
        assert got["w"].dtype == dtype


def test_pruning_keeps_the_first_of_equals_and_every_nan():
    assert prune(np.float32([1.0, -1.0, 1.0, 1.0]), 0.5).tolist() == [1.0, -1.0, 0.0, 0.0]
    kept = prune(np.float32([np.nan, 3.0, 1.0]), 1.0)
    np.testing.assert_array_equal(kept, [jnp.nan, 0.0, 0.0])


def test_one_budget_for_the_tree_takes_more_of_what_is_small():
    params = {"large": jnp.array([5.0, -4.0]), "small": jnp.array([[0.1, 3.0], [0.2, -0.3]])}
    got = prune(params, 0.5, budget="tree")
    assert_same_bits(got, {"large": params["large"], "small": jnp.array([[0.0, 3.0], [0.0, 0.0]])})


def test_groups_are_compared_by_their_root_mean_square():
    # |x_G| is 1.8 and 1: by the norm, the other group would go.
    params = {"a": jnp.full((4, 1), 0.9), "b": jnp.ones((1, 1))}
    got = prune(params, 0.5, grouping.axes(0), budget="tree")
    assert_same_bits(got, {"a": jnp.zeros((4, 1)), "b": params["b"]})


def test_neurons_go_with_all_their_kernels_and_leave_others_alone(variant):
    params = {"up": normal(0, (5, 4)), "down": normal(1, (4, 2)), "bias": np.full(2, 1e-9, np.float32)}
    got = variant(lambda x: transforms.prune(x, 0.5, NEURONS))(params)
    size = np.sum(params["up"] ** 2, axis=0) + np.sum(params["down"] ** 2, axis=1)
    live = size >= np.sort(size)[2]
    np.testing.assert_array_equal(got["up"], params["up"] * live[None, :])
    np.testing.assert_array_equal(got["down"], params["down"] * live[:, None])
    np.testing.assert_array_equal(got["bias"], params["bias"])


@pytest.mark.slow
def test_pruning_at_many_shares_at_once_is_the_loop():
    shares, params = jnp.linspace(0.0, 1.0, 6), tree()
    swept = jax.vmap(lambda share: transforms.prune(params, share, budget="tree"))(shares)
    for i, share in enumerate(shares):
        row = jax.tree.map(lambda leaf: leaf[i], swept)  # noqa: B023
        assert_same_bits(row, transforms.prune(params, share, budget="tree"))
        zeros = sum(int(jnp.sum(leaf == 0)) for leaf in jax.tree.leaves(row))
        assert zeros == round(15 * float(share))


def test_empty_leaves_and_trees_are_passed_over():
    for budget in ("leaf", "tree"):
        assert transforms.prune({}, 0.5, budget=budget) == {}
        got = prune({"a": np.ones((0, 2), np.float32), "b": None}, 0.5, budget=budget)
        assert got["a"].shape == (0, 2) and got["b"] is None


@pytest.mark.parametrize("over", [None, grouping.axes(0)])
def test_a_chain_ends_at_what_pruning_gives(over, variant):
    params, updates = tree(), tree(3)
    tx = transforms.prune_to(0.5, over)
    moved, state = variant(tx.update)(updates, tx.init(params), params)
    target, got = jax.tree.map(np.add, params, updates), jax.tree.map(np.add, params, moved)
    assert_same_bits(got, prune(target, 0.5, over))
    assert state.count == 1 and state.kept is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("every", [1, 3])
def test_a_ramp_reaches_its_share_in_exact_zeros(dtype, every, variant):
    ramp = transforms.cubic_sparsity(0.8, begin=2, end=6)
    tx = optax.chain(optax.adam(0.1), transforms.prune_to(ramp, every=every))
    gradients = normal(1, (9, 20)).astype(dtype)
    run = variant(lambda start: walk(tx, start, gradients)[0])
    zeros = [int(np.sum(np.asarray(x) == 0)) for x in run(normal(0, (20,)).astype(dtype))]
    chosen = [n // every * every for n in range(9)]
    assert zeros == [round(20 * float(ramp(n))) for n in chosen]
    assert zeros[-1] == 16


def test_pruned_weights_return_only_when_there_is_a_choice():
    step = [jnp.array([0.0, 3.0])] * 3
    free, _ = walk(transforms.prune_to(0.5), jnp.array([2.0, -1.5]), [jnp.zeros(2), *step])
    assert np.stack(free).tolist() == [[2, 0], [0, 3], [0, 6], [0, 9]]
    tx = transforms.prune_to(0.5, every=3)
    bound, _ = walk(tx, jnp.array([2.0, -1.5]), [jnp.zeros(2), *step])
    assert np.stack(bound).tolist() == [[2, 0], [2, 0], [2, 0], [0, 3]]


def test_a_weight_that_starts_at_zero_is_not_taken_for_pruned():
    tx = transforms.prune_to(transforms.cubic_sparsity(0.5, begin=4, end=6), every=4)
    path, _ = walk(tx, jnp.zeros(4), [jnp.ones(4)] * 3)
    assert path[-1].tolist() == [3.0] * 4


def test_what_is_kept_passes_bit_for_bit():
    params, updates = tree(5), jax.tree.map(lambda u: 1e-3 * u, tree(2))
    for every in (1, 2):
        tx = transforms.prune_to(0.0, every=every)
        assert_same_bits(update(tx, updates, params)[0], updates)


@pytest.mark.parametrize("make", [transforms.prune_to, lambda s, **k: transforms.prune({}, s, **k)])
def test_pruning_refuses_what_makes_no_sense(make):
    with pytest.raises(ValueError, match=r"sparsity must be one number in \[0, 1\], got 80"):
        make(80)
    with pytest.raises(ValueError, match=r"over must be a grouping or None, got 0"):
        make(0.5, over=0)
    with pytest.raises(ValueError, match=r"budget must be one of .*, got 'layer'"):
        make(0.5, budget="layer")


def test_the_choice_is_made_at_whole_numbers_of_updates():
    for every in (0, 1.5, None):
        with pytest.raises(ValueError, match=r"every must be an integer ≥ 1"):
            transforms.prune_to(0.5, every=every)


STILL = transforms.apply_prox(penalties.l1(0.0), 0.1)

# Debiasing


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_frozen_zeros_stay_and_others_pass_bit_for_bit(dtype, variant):
    params = jnp.array([0.0, 2.0, 0.0, -3.0], dtype)
    updates = jnp.array([1e-3, 1e-3, jnp.nan, 5.0], dtype)
    tx = transforms.freeze_zeros(1)
    early, state = variant(tx.update)(updates, tx.init(params), params)
    late, _ = variant(tx.update)(updates, state, params)
    assert early.dtype == late.dtype == dtype
    wide = lambda x: x.astype(jnp.float32)  # NumPy knows no NaN in bfloat16
    np.testing.assert_array_equal(wide(early), wide(updates))
    np.testing.assert_array_equal(wide(late), wide(jnp.where(params == 0, 0, updates)))


def test_a_zero_in_a_live_group_is_free():
    params = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    tx = transforms.freeze_zeros(over=grouping.axes(0))
    updates, _ = update(tx, np.ones((2, 2), np.float32), params)
    assert updates.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    linked = transforms.freeze_zeros(over=NEURONS)
    params = {"up": jnp.array([[0.0, 0.0]]), "down": jnp.array([[2.0], [0.0]]), "bias": jnp.zeros(1)}
    updates, _ = update(linked, jax.tree.map(np.ones_like, params), params)
    assert updates["up"].tolist() == [[1.0, 0.0]]
    assert updates["down"].tolist() == [[1.0], [0.0]]
    assert updates["bias"].tolist() == [1.0]


def test_debiasing_is_the_prox_and_then_the_base_on_what_is_left(variant):
    prox = transforms.apply_prox(penalties.l1(0.8), 0.5)
    gradients, start = normal(0, (6, 30)), normal(1, (30,))
    tx = optax.chain(optax.sgd(0.5), transforms.debias(prox, 3))
    path, state = jax.tree.map(np.asarray, variant(lambda start: walk(tx, start, gradients))(start))
    expected, _ = walk(optax.chain(optax.sgd(0.5), prox), start, gradients[:3])
    np.testing.assert_allclose(np.stack(path[:3]), np.stack(expected), atol=1e-6)
    live = path[2] != 0
    assert 5 < np.sum(live) < 25
    for n in (3, 4, 5):
        np.testing.assert_array_equal(path[n] != 0, live)
        free = np.where(live, path[n - 1] - 0.5 * gradients[n], 0.0)
        np.testing.assert_allclose(path[n], free, atol=1e-6)
    assert state[1].count == 6


@pytest.mark.parametrize("start", [2, pytest.param(jnp.int32(2), marks=pytest.mark.slow)])
def test_debiasing_a_whole_optimizer_is_that_optimizer_without_its_penalty_on_the_support(start):
    rate, gradients = lambda count: 0.3 / (1 + count), [tree(seed) for seed in range(5)]
    penalty = penalties.l1(1.5)
    adam = optax.scale_by_adam()
    made = {
        "proximal_step": lambda g: transforms.proximal_step(g, rate),
        "proximal_adam": lambda g: transforms.proximal_adam(rate, g),
        "scheduled": lambda g: transforms.scheduled(lambda t: transforms.proximal_step(g, t), rate),
    }
    for make in made.values():
        around = (lambda tx: optax.chain(adam, tx)) if make is made["proximal_step"] else lambda tx: tx
        path, _ = walk(around(transforms.debias(make(penalty), start)), tree(9), gradients)
        before, state = walk(around(make(penalty)), tree(9), gradients[:2])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), path[1], before[1])
        free = jax.jit(around(make(penalties.zero())).update)
        for i in (2, 3, 4):
            updates, state = free(gradients[i], state, path[i - 1])
            expected = jax.tree.map(lambda p, u: np.where(p == 0, 0.0, p + u), path[i - 1], updates)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), path[i], expected)
        assert any(np.any(leaf == 0) for leaf in jax.tree.leaves(path[-1]))


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(0.1),
        optax.sgd(0.1),
        optax.chain(optax.sgd(0.1), transforms.apply_prox(penalties.l1(), 0.1)),
        optax.masked(transforms.proximal_step(penalties.l1(), 0.1), True),
        transforms.rda(0.1, penalties.l1()),
    ],
)
def test_debiasing_refuses_what_cannot_go_on_without_a_penalty(tx):
    with pytest.raises(ValueError, match=r"can go on without its penalty.*last part of a chain"):
        transforms.debias(tx, 2).init(jnp.ones(3))


def test_debiasing_is_a_strength_that_falls_to_zero_and_frozen_zeros():
    base, gradients = optax.sgd(0.3), [tree(seed) for seed in range(5)]
    make = lambda strength: transforms.apply_prox(penalties.l1(strength), 0.3)
    fall = lambda count: jnp.where(count < 2, 1.5, 0.0)
    apart = optax.chain(base, transforms.scheduled(make, fall), transforms.freeze_zeros(2))
    together = optax.chain(base, transforms.debias(make(1.5), 2))
    one, other = (walk(tx, tree(9), gradients)[0] for tx in (apart, together))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)
    assert any(np.any(leaf == 0) for leaf in jax.tree.leaves(one[-1]))


@pytest.mark.parametrize("tx", [transforms.debias(STILL, 1), transforms.freeze_zeros(1)])
def test_debiasing_emits_in_the_dtype_of_the_params(tx):
    params = jnp.array([1.0, 0.0], jnp.bfloat16)
    state = tx.init(params)
    for expected in ([0.5, 0.5], [0.5, 0.0]):
        updates, state = tx.update(jnp.full((2,), 0.5), state, params)
        assert updates.dtype == jnp.bfloat16
        np.testing.assert_array_equal(updates, jnp.array(expected, jnp.bfloat16))


def test_debiasing_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"penalised must be an optax.GradientTransformation"):
        transforms.debias(penalties.l1(1.0), 3)
    for make in (transforms.freeze_zeros, lambda s, *o: transforms.debias(STILL, s, *o)):
        for start in (-1, 0.5, None):
            with pytest.raises(ValueError, match=r"start must be an integer ≥ 0"):
                make(start)
        with pytest.raises(ValueError, match=r"over must be a grouping or None, got 1"):
            make(3, 1)


@pytest.mark.parametrize(
    "tx",
    [
        transforms.prune_to(0.5),
        transforms.freeze_zeros(),
        transforms.debias(STILL, 1),
        transforms.project(penalties.box(0.0, 1.0)),
    ],
)
def test_links_that_need_params_say_so_in_the_words_of_optax(tx):
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


# Exact sets and levels

LEVELS = (-0.73, 0.0, 0.31, 0.73)
SETS = {"box": penalties.box(-0.73, 0.31), "levels": penalties.quantization_grid(LEVELS)}


def test_a_projection_needs_no_learning_rate(variant):
    params, updates = 5 * normal(0, (200,)), normal(1, (200,))
    for constraint in SETS.values():
        run = lambda tx: variant(tx.update)(updates, tx.init(params), params)[0]
        one, other = run(transforms.project(constraint)), run(transforms.apply_prox(constraint, 0.01))
        assert_same_bits(one, other)
        got = params + np.asarray(one)
        np.testing.assert_allclose(got, constraint.prox(params + updates, 1.0), atol=1e-6)


def test_a_projection_every_k_projects_at_each_kth():
    tx = transforms.project(penalties.box(-1.0, 1.0), every=2)
    path, _ = walk(tx, jnp.array([0.0]), [jnp.array([3.0])] * 4)
    assert np.concatenate(path).tolist() == [3.0, 1.0, 4.0, 1.0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", SETS)
def test_snapping_repairs_what_adding_an_update_misses(name, dtype, variant):
    constraint, start = SETS[name], (5 * normal(0, (4000,))).astype(dtype)
    tx = transforms.project(constraint)
    missed = start + update(tx, normal(1, (4000,)).astype(dtype), start)[0]
    exact = np.asarray(jax.jit(constraint.prox)(missed, 1.0))
    assert np.any(missed != exact)
    project_exactly = variant(lambda x: transforms.project_exactly(x, constraint))
    snapped = np.asarray(project_exactly(missed))
    np.testing.assert_array_equal(snapped, exact)
    np.testing.assert_array_equal(project_exactly(snapped), snapped)
    allowed = np.array(LEVELS, np.float32).astype(dtype)
    if name == "levels":
        assert set(np.unique(snapped)) == set(allowed)
    else:
        assert np.min(snapped) == allowed[0] and np.max(snapped) == allowed[2]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_applying_with_a_prox_is_the_prox_to_the_last_bit(dtype, variant):
    params, updates = 5 * normal(0, (4000,)).astype(dtype), normal(1, (4000,)).astype(dtype)
    wide = params.astype(np.float32) + updates.astype(np.float32)
    for penalty in (*SETS.values(), penalties.l1(0.7)):
        apply = lambda p, u: transforms.apply_prox_updates(p, u, penalty, 0.5)  # noqa: B023
        exact = np.asarray(jax.jit(penalty.prox)(wide, 0.5)).astype(dtype)
        np.testing.assert_array_equal(variant(apply)(params, updates), exact)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_applying_without_a_penalty_is_applying(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), tree())
    got = jax.jit(lambda p, u: transforms.apply_prox_updates(p, u, penalties.zero()))(params, tree(2))
    assert_same_bits(got, jax.jit(optax.apply_updates)(params, tree(2)))


def test_applying_takes_a_step_for_each_weight():
    steps = jnp.array([0.0, 1.0, 2.0])
    got = transforms.apply_prox_updates(jnp.ones(3), jnp.ones(3), penalties.l1(0.5), steps)
    assert got.tolist() == [2.0, 1.5, 1.0]


def test_only_a_penalty_can_be_snapped_to():
    for use in (
        lambda p: transforms.project_exactly(jnp.ones(1), p),
        transforms.project,
        lambda p: transforms.apply_prox_updates(jnp.ones(1), jnp.ones(1), p),
    ):
        with pytest.raises(ValueError, match=r"must be a Penalty, got 0\.5"):
            use(0.5)


def test_what_is_known_to_be_no_set_is_no_constraint():
    box, l1 = penalties.box(0.0, 1.0), penalties.l1(0.1)
    own = penalties.Penalty(None, lambda x, t: jnp.clip(x, 0.0, 1.0))
    of = lambda penalty: penalties.separable_sum({0: box, "a": penalty}, [0])
    for constraint in (box, own, of(box), penalties.zero(), penalties.stiefel(), penalties.conjugate(l1)):
        transforms.project(penalties.translate(constraint, 0.0))
    elastic = penalties.spectral(penalties.elastic_net(0.1))
    for penalty in (of(l1), elastic, penalties.slope(jnp.ones(2)), penalties.add_quadratic(box, 1.0)):
        with pytest.raises(ValueError, match=r"project: constraint must be a set, .* use apply_prox or"):
            transforms.project(penalty)
