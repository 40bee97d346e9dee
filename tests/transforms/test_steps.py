"""The proximal link: what it computes, and that it gets along with the rest of Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import proxlm
from proxlm import penalties, transforms
from tests.arrays import numpy_normal as normal
from tests.transforms.walks import walk


def path_of(*args, **extra_args):
    """The params after each update."""
    return walk(*args, **extra_args)[0]


def tree(seed=0):
    return {"w": normal(seed, (4, 3)), "b": {"c": normal(seed + 1, (3,))}}


def assert_trees_close(one, other, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


def soft(x, threshold):
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0.0)


def test_one_step_by_hand(variant):
    tx = proxlm.apply_prox(penalties.l1(2.0), 0.25)
    params, updates = jnp.array([1.0, 1.0, -2.0]), jnp.array([0.5, -0.75, 0.0])
    updates, state = variant(tx.update)(updates, tx.init(params), params)
    np.testing.assert_array_equal(updates, [0.0, -1.0, 0.5])
    assert state.count == 1
    assert state.anchor is None


def test_it_needs_params_and_says_so_in_the_words_of_optax():
    tx = proxlm.apply_prox(penalties.l1(), 0.1)
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_a_schedule_is_read_before_the_count_moves():
    schedule = lambda count: 0.5 * count
    tx = proxlm.apply_prox(penalties.l1(1.0), schedule)
    path = path_of(tx, jnp.array([9.0]), [jnp.zeros(1)] * 4)
    np.testing.assert_array_equal(np.concatenate(path), [9.0, 8.5, 7.5, 6.0])


@pytest.mark.parametrize("anchored", [False, True])
def test_learning_rate_zero_moves_nothing(anchored):
    tx = proxlm.apply_prox(penalties.group_lasso(5.0), lambda count: 0.0 * count, anchored=anchored)
    path = path_of(tx, tree(), [jax.tree.map(np.zeros_like, tree())] * 2)
    assert_trees_close(path[-1], tree())


@pytest.mark.parametrize("make", [penalties.l1, penalties.squared_l2, penalties.group_lasso])
@pytest.mark.parametrize("anchored", [False, True])
def test_strength_zero_arrives_at_the_bits_of_the_update(make, anchored, variant):
    tx = proxlm.apply_prox(make(0.0), 0.1, anchored=anchored)
    state, params, update = tx.init(tree(5)), tree(), variant(tx.update)
    for size in np.float32([1e-6, 1e-3, 1.0, 1e3]):
        updates = jax.tree.map(lambda u: size * u, tree(2))  # noqa: B023
        got = jax.tree.map(np.add, params, update(updates, state, params)[0])
        assert_trees_close(got, jax.tree.map(np.add, params, updates))


@pytest.mark.parametrize("anchored", [False, True])
def test_strength_zero_is_the_base_optimizer(anchored, variant):
    gradients = [tree(seed) for seed in range(5)]
    base = optax.adam(1e-2)
    linked = optax.chain(base, proxlm.apply_prox(penalties.l1(0.0), 1e-2, anchored=anchored))
    run = lambda tx: variant(lambda gradients: path_of(tx, tree(9), gradients))(gradients)
    # Compiled, the two programs are fused differently, which is worth an ulp a step.
    assert_trees_close(run(linked), run(base), atol=1e-6)


def test_every_k_takes_the_sum_of_the_learning_rates(variant):
    rates = jnp.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    updates = [0.01 * normal(seed, (5,)) for seed in range(6)]
    tx = proxlm.apply_prox(penalties.l1(0.5), lambda count: rates[count], every=3)
    params = normal(20, (5,))
    path = variant(lambda updates: path_of(tx, params, updates))(updates)
    for i, (update, after) in enumerate(zip(updates, path, strict=True)):
        params = params + update
        if i % 3 == 2:
            params = soft(params, 0.5 * (0.6 if i == 2 else 1.5))
        np.testing.assert_allclose(after, params, atol=1e-6)
    assert np.any(params == 0)


def test_every_k_passes_other_updates_bit_for_bit():
    tx = proxlm.apply_prox(penalties.l1(5.0), 0.1, every=2)
    params, updates, update = tree(), tree(3), jax.jit(tx.update)
    passed, state = update(updates, tx.init(params), params)
    assert_trees_close(passed, updates)
    assert float(state.step_sum) == pytest.approx(0.1)
    assert float(update(updates, state, params)[1].step_sum) == 0


def test_the_anchor_is_what_init_saw():
    start = tree()
    for make in (penalties.l1, penalties.squared_l2, penalties.group_lasso):
        tx = proxlm.apply_prox(make(1e20), 0.1, anchored=True)
        path = path_of(tx, start, [tree(seed) for seed in (3, 5)])
        assert_trees_close(path[-1], start, atol=2e-7)


def test_an_anchored_step_is_the_closed_form():
    start, first, second = (normal(seed, (6,)) for seed in range(3))
    tx = proxlm.apply_prox(penalties.squared_l2(3.0), 0.5, anchored=True)
    one, two = path_of(tx, start, [first, second])
    np.testing.assert_allclose(one, start + first / 2.5, atol=1e-6)
    np.testing.assert_allclose(two, start + (first / 2.5 + second) / 2.5, atol=1e-6)


def test_the_anchor_outlives_donated_params():
    params = jax.tree.map(jnp.array, tree())
    state = proxlm.apply_prox(penalties.l1(), 0.1, anchored=True).init(params)
    expected = jax.tree.map(np.asarray, tree())
    jax.tree.map(lambda leaf: leaf.delete(), params)
    assert_trees_close(state.anchor, expected)


@pytest.mark.parametrize(("dtype", "rounded_to_zero"), [(jnp.float32, 0), (jnp.bfloat16, 0.01)])
def test_exact_zeros_survive_apply_updates(dtype, rounded_to_zero, variant):
    params = normal(1, (1000,)).astype(dtype)
    updates = 0.1 * normal(2, (1000,))
    tx = proxlm.apply_prox(penalties.l1(1.0), 0.5)
    moved, _ = variant(tx.update)(updates, tx.init(params), params)
    after, inside = params + np.asarray(moved), np.abs(params.astype(np.float32) + updates) <= 0.5
    assert 300 < np.sum(inside) < 450
    assert np.all(after[inside] == 0)
    assert np.mean(after[~inside] == 0) <= rounded_to_zero


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("anchored", [False, True])
def test_updates_have_the_dtype_of_the_params(every, anchored):
    params = {"half": normal(0, (4,)).astype(jnp.bfloat16), "single": normal(1, (4,))}
    tx = proxlm.apply_prox(penalties.l1(0.1), 0.5, every=every, anchored=anchored)
    for cast in (jnp.float32, jnp.bfloat16):
        updates = jax.tree.map(lambda p: p.astype(cast), params)  # noqa: B023
        moved, _ = jax.eval_shape(tx.update, updates, jax.eval_shape(tx.init, params), params)
        assert jax.tree.map(lambda leaf: leaf.dtype, moved) == jax.tree.map(lambda leaf: leaf.dtype, params)


def test_bfloat16_params_move_to_the_rounded_float32_result(variant):
    params = normal(0, (4000,)).astype(jnp.bfloat16)
    updates = 0.1 * normal(1, (4000,))
    tx = proxlm.apply_prox(penalties.l1(1.0), 0.3)
    moved, _ = variant(tx.update)(updates, tx.init(params), params)
    result = soft(params.astype(np.float32) + updates, np.float32(0.3)).astype(jnp.bfloat16)
    exact = result.astype(np.float32) - params.astype(np.float32)
    np.testing.assert_array_equal(moved, exact.astype(jnp.bfloat16))


def test_float64_params_are_computed_in_float64():
    with jax.enable_x64(True):
        params = jnp.array([1.0, 2.0], jnp.float64)
        tx = proxlm.apply_prox(penalties.l1(1.0), 0.1, every=2)
        path = path_of(tx, params, [jnp.zeros(2)] * 2)
        np.testing.assert_allclose(path[-1], [0.8, 1.8], rtol=1e-15)


def test_extra_args_are_ignored():
    tx = optax.chain(optax.sgd(0.1), proxlm.apply_prox(penalties.l1(), 0.1))
    gradients = [tree(2)] * 2
    assert_trees_close(path_of(tx, tree(), gradients, value=1.0, tokens=None), path_of(tx, tree(), gradients))


@pytest.mark.parametrize("anchored", [False, True])
def test_masked_leaves_are_left_alone(anchored):
    tx = proxlm.apply_prox(penalties.group_lasso(1e3), 1.0, anchored=anchored)
    mask = lambda params: jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    start, gradient = tree(), tree(4)
    after = path_of(optax.masked(tx, mask), start, [gradient])[0]
    np.testing.assert_array_equal(after["b"]["c"], start["b"]["c"] + gradient["b"]["c"])
    expected = start["w"] if anchored else jnp.zeros((4, 3))
    np.testing.assert_allclose(after["w"], expected, atol=2e-7)


def test_partition_gives_each_part_its_penalty():
    links = {
        "sparse": proxlm.apply_prox(penalties.l1({"w": 2.0, "b": {"c": 9.0}}), 0.1),
        "near": proxlm.apply_prox(penalties.squared_l2(10.0), 0.1, anchored=True),
    }
    tx = optax.partition(links, {"w": "sparse", "b": {"c": "near"}})
    start, gradient = tree(), tree(4)
    after = path_of(tx, start, [gradient])[0]
    np.testing.assert_allclose(after["w"], soft(start["w"] + gradient["w"], 0.2), atol=1e-6)
    expected = start["b"]["c"] + gradient["b"]["c"] / 2
    np.testing.assert_allclose(after["b"]["c"], expected, atol=1e-6)


def test_multi_steps_is_one_step_on_the_mean():
    chain = optax.chain(optax.sgd(0.1), proxlm.apply_prox(penalties.l1(3.0), lambda n: 0.1 * 2**n))
    gradients = [tree(seed) for seed in range(6)]
    means = [jax.tree.map(lambda *g: sum(g) / 3, *gradients[i : i + 3]) for i in (0, 3)]
    long = path_of(optax.MultiSteps(chain, 3), tree(9), gradients)
    short = path_of(chain, tree(9), means)
    assert_trees_close(long[1], tree(9))
    assert_trees_close(long[2], short[0], atol=1e-6)
    assert_trees_close(long[5], short[1], atol=1e-6)
    assert any(np.any(leaf == 0) for leaf in jax.tree.leaves(long[5]))


def test_inject_hyperparams_reaches_the_learning_rate(variant):
    link = optax.inject_hyperparams(proxlm.apply_prox)
    tx, start = link(penalties.l1(1.0), learning_rate=0.1), jnp.array([3.0, -0.2])
    state = tx.init(start)
    state.hyperparams["learning_rate"] = jnp.array(0.5)
    updates, _ = variant(tx.update)(jnp.zeros(2), state, start)
    np.testing.assert_allclose(updates, [-0.5, 0.2], atol=1e-6)
    tx = link(penalties.l1(1.0), lambda count: 0.5 * count, every=2)
    path = variant(lambda start: path_of(tx, start, [jnp.zeros(2)] * 4))(start)
    np.testing.assert_allclose(np.stack(path)[:, 0], [3.0, 2.5, 2.5, 0.0], atol=1e-6)


def test_inject_hyperparams_schedules_the_strength():
    link = lambda strength: proxlm.apply_prox(penalties.l1(strength), 0.5)
    tx = optax.inject_hyperparams(link)(strength=lambda count: 1.0 * count)
    path = path_of(tx, jnp.array([3.0]), [jnp.zeros(1)] * 3)
    np.testing.assert_allclose(np.concatenate(path), [3.0, 2.5, 1.5], atol=1e-6)


def test_apply_if_finite_skips_a_bad_step():
    link = proxlm.apply_prox(penalties.l1(1.0), 0.1, every=2, anchored=True)
    tx = optax.apply_if_finite(link, 3)
    good, bad = jnp.array([0.5]), jnp.array([jnp.nan])
    path = path_of(tx, jnp.array([1.0]), [good, bad, good])
    np.testing.assert_allclose(np.concatenate(path), [1.5, 1.5, 1.8], atol=1e-6)


@pytest.mark.parametrize(("anchored", "every"), [(True, 2), pytest.param(False, 1, marks=pytest.mark.slow)])
def test_scan_is_the_loop(anchored, every):
    link = proxlm.apply_prox(penalties.l1(0.3), lambda n: 0.1 + 0.1 * n, every=every, anchored=anchored)
    tx, start = optax.chain(optax.adam(0.1), link), normal(0, (5,)).astype(jnp.bfloat16)
    gradients = normal(1, (6, 5)).astype(jnp.bfloat16)

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    carry, looped = (start, tx.init(start)), []
    for gradient in gradients:
        carry, params = step(carry, gradient)
        looped.append(np.asarray(params, np.float32))
    path = np.stack(path_of(tx, start, gradients)).astype(np.float32)
    np.testing.assert_allclose(path, looped, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_vmap_over_strength_and_learning_rate_is_the_loop(every):
    gradients = [normal(seed, (5,)) for seed in range(4)]

    def train(strength, learning_rate):
        link = proxlm.apply_prox(penalties.l1(strength), learning_rate, every=every, anchored=True)
        return path_of(optax.chain(optax.sgd(learning_rate), link), normal(9, (5,)), gradients)[-1]

    strengths, rates = np.float32([0.0, 0.4, 2.0]), np.float32([0.3, 0.1, 0.2])
    swept, alone = jax.jit(jax.vmap(train))(strengths, rates), jax.jit(train)
    looped = np.stack([alone(*pair) for pair in zip(strengths, rates, strict=True)])
    np.testing.assert_allclose(swept, looped, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"every": 2}, {"anchored": True}])
def test_the_link_that_scales_is_the_rate_and_then_the_prox(options):
    schedule = lambda count: 0.1 / (1 + count)
    penalty, gradients = penalties.group_lasso(0.3), [tree(seed) for seed in range(4)]
    once = proxlm.proximal_step(penalty, schedule, **options)
    twice = optax.chain(
        optax.scale_by_learning_rate(schedule), proxlm.apply_prox(penalty, schedule, **options)
    )
    adam = lambda last: path_of(optax.chain(optax.scale_by_adam(), last), tree(9), gradients)
    assert_trees_close(adam(once), adam(twice), atol=1e-6)
    if not options:
        plain, sgd = proxlm.proximal_step(penalties.l1(0.0), schedule), optax.sgd(schedule)
        assert_trees_close(path_of(plain, tree(9), gradients), path_of(sgd, tree(9), gradients))


def test_a_scaled_step_of_half_precision_is_rounded_once():
    params, gradient = normal(0, (4000,)).astype(jnp.bfloat16), normal(1, (4000,)).astype(jnp.bfloat16)
    tx = proxlm.proximal_step(penalties.l1(1.0), 0.1)
    moved, _ = tx.update(gradient, tx.init(params), params)
    wide = lambda x: x.astype(np.float32)
    result = soft(wide(params) - np.float32(0.1) * wide(gradient), np.float32(0.1)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(moved, (wide(result) - wide(params)).astype(jnp.bfloat16))


def test_an_update_can_be_differentiated():
    tx = proxlm.apply_prox(penalties.squared_l2(1.0), 1.0)
    slope = jax.jit(jax.grad(lambda u: tx.update(u, tx.init(1.0 * u), jnp.zeros(()))[0]))
    # At u = 0 nothing moves, and the slope is still that of u/2.
    assert float(slope(0.0)) == float(slope(3.0)) == 0.5


def test_sgd_with_l1_solves_the_lasso():
    features, truth = normal(0, (60, 20)), 2.0 * (np.arange(20) < 4).astype(np.float32)
    targets = features @ truth + 0.1 * normal(1, (60,))
    loss = lambda weights: 0.5 * jnp.mean(jnp.square(features @ weights - targets))
    strength, rate = 0.2, 60.0 / float(np.linalg.norm(features, ord=2)) ** 2
    tx = optax.chain(optax.sgd(rate), proxlm.apply_prox(penalties.l1(strength), rate))

    def step(carry, _):
        weights, state = carry
        updates, state = tx.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    descend = lambda start: jax.lax.scan(step, (start, tx.init(start)), length=500)[0][0]
    weights = jax.jit(descend)(jnp.zeros(20))
    slope, weights = np.asarray(jax.jit(jax.grad(loss))(weights)), np.asarray(weights)
    live = weights != 0
    np.testing.assert_allclose(slope[live], -strength * np.sign(weights[live]), atol=2e-6)
    assert np.max(np.abs(slope[~live])) <= strength
    assert 4 <= np.sum(live) < 12


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", None])
def test_every_must_be_a_positive_integer(every):
    with pytest.raises(ValueError, match=r"every must be an integer ≥ 1"):
        transforms.apply_prox(penalties.l1(), 0.1, every=every)


@pytest.mark.parametrize("penalty", [penalties.l1, 0.1, None, (abs, abs)])
def test_only_a_penalty_is_one(penalty):
    with pytest.raises(ValueError, match=r"apply_prox: penalty must be a Penalty"):
        transforms.apply_prox(penalty, 0.1)


@pytest.mark.parametrize("learning_rate", [-0.1, float("nan"), None, jnp.ones(2)])
def test_only_a_rate_is_one(learning_rate):
    with pytest.raises(ValueError, match=r"apply_prox.*learning_rate must be"):
        transforms.apply_prox(penalties.l1(), learning_rate)


def test_integer_params_are_refused_with_their_path():
    tx, params = proxlm.apply_prox(penalties.l1(), 0.1), {"step": jnp.array(3)}
    with pytest.raises(ValueError, match=r"x at step must be .*int32.*optax\.partition"):
        tx.update(params, tx.init(params), params)
