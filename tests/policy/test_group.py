import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import filters
from proxlm.policy.advantages import group, pass_k
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

GROUP = {
    "centred": group.centred,
    "group relative": group.group_relative,
    "inside the root": lambda *xs: group.group_relative(*xs, epsilon_inside=True),
    "leave one out": group.leave_one_out,
    "length weighted": lambda r, v=None: group.length_weighted(r, jnp.arange(1.0, 5.0), v),
    "best minus second": pass_k.best_minus_second,
    "pass at 2": lambda r, v=None: pass_k.pass_at_k(r, v, k=2),
}
REWARDS = np.float32([0.3, -1.2, 2.0, 0.5])


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("group_relative", lambda r: group.group_relative(r, epsilon=1e-6)),
        ("leave_one_out", group.leave_one_out),
        ("centred", group.centred),
    ],
)
def test_advantages_of_groups_of_three_are_tunixs(name, baseline, variant):
    expected = vectors_on_disk.load("tunix")[name]
    run = variant(lambda scores: group.by_group(baseline, 3, scores))
    np.testing.assert_allclose(run(vectors_on_disk.inputs().scores), expected, atol=1e-5)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("inside", [True, False])
def test_every_convention_of_the_deviation(ddof, inside):
    ours = jax.jit(lambda r: group.group_relative(r, None, 0.1, ddof, inside))(REWARDS)
    r = np.float64(REWARDS)
    scale = np.sqrt(r.var(ddof=ddof) + 0.1) if inside else r.std(ddof=ddof) + 0.1
    np.testing.assert_allclose(ours, (r - r.mean()) / scale, rtol=1e-5)


def test_the_baseline_of_opo_weighs_by_length():
    ours = group.length_weighted(REWARDS, jnp.array([1, 2, 3, 4]))
    baseline = (0.3 - 2.4 + 6.0 + 2.0) / 10
    np.testing.assert_allclose(ours, np.float64(REWARDS) - baseline, rtol=1e-5)


def test_only_the_best_answer_gains_what_it_adds_to_the_second():
    plain = lambda r: pass_k.best_minus_second(r, epsilon=None)
    np.testing.assert_allclose(jax.jit(plain)(REWARDS), [0, 0, 1.5, 0])
    gain = jax.jit(pass_k.best_minus_second)
    np.testing.assert_allclose(gain(REWARDS)[2], 1.5 / np.std(REWARDS, ddof=1), rtol=1e-4)
    # of two that are best, one is chosen and gains nothing
    np.testing.assert_array_equal(gain(np.float32([1.0, 0.0, 0.0, 1.0])), 0.0)


passing = jax.jit(pass_k.pass_at_k, static_argnames="k")


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("right", [1, 3, 4])
def test_pass_at_k_is_the_mean_over_all_subsets(k, right):
    rewards = np.arange(5) < right
    subsets = list(itertools.combinations(range(5), k))
    passed = np.array([rewards[list(s)].any() for s in subsets], float)
    rate, deviation = passed.mean(), passed.std()
    expected = np.zeros(5)
    if deviation > 0:
        for i in range(5):
            mine = np.array([i in s for s in subsets])
            expected[i] = (passed[mine].mean() - rate) / (deviation + 1e-6)
    ours = passing(np.float32(rewards), k=k)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert len(subsets) == math.comb(5, k)


def test_answers_left_out_are_a_smaller_group():
    valid = np.array([True, True, False, True])
    run = compiled(lambda r: {name: baseline(r, valid) for name, baseline in GROUP.items()})
    smaller = dict(GROUP) | {
        "length weighted": lambda r: group.length_weighted(r, jnp.array([1.0, 2.0, 4.0]))
    }
    expected = compiled(lambda r: {name: baseline(r) for name, baseline in smaller.items()})(REWARDS[valid])
    for name, ours in run(np.where(valid, REWARDS, np.float32(np.nan))).items():
        ours = np.asarray(ours)
        assert ours[2] == 0
        np.testing.assert_allclose(ours[valid], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_alone_or_empty_a_group_has_no_advantages():
    run = compiled(lambda r, valid: {name: baseline(r, valid) for name, baseline in GROUP.items()})
    for count in (0, 1):
        for ours in run(jnp.array([2.0, jnp.nan, jnp.inf, 0.0]), jnp.arange(4) < count).values():
            np.testing.assert_array_equal(ours, 0.0)


def test_equal_rewards_have_finite_gradients():
    slopes = compiled(lambda r: {name: jax.jacobian(baseline)(r) for name, baseline in GROUP.items()})
    for value in (0.0, 0.1, -1e4):
        for name, slope in slopes(jnp.full(4, value)).items():
            assert np.all(np.isfinite(slope)), (name, value)


def test_dynamic_sampling_keeps_groups_that_vary():
    rewards = jnp.array([1.0, 1.0, 0.0, 1.0, jnp.nan, 2.0])
    valid = jnp.array([True, True, True, True, False, True])
    keep = group.by_group(filters.reward_varies, 2, rewards, valid)
    assert keep.tolist() == [False, False, True, True, False, False]
    assert filters.reward_varies(jnp.array([0.0, 0.1]), tolerance=0.2).tolist() == [False, False]


def test_the_uncertain_tokens_are_those_of_highest_entropy(variant):
    mask = jnp.array([[True, True, False], [True, True, True]])
    entropies = jnp.array([[0.1, 0.5, jnp.nan], [0.4, 0.2, 0.3]])
    for share, least in ((1.0, 0.0), (0.5, 0.3), (0.3, 0.4), (0.2, 0.42), (0.0, 0.5)):
        keep = variant(filters.high_entropy_mask)(entropies, mask, share)
        np.testing.assert_array_equal(keep, mask & (entropies >= least))
    assert not jnp.any(filters.high_entropy_mask(entropies, jnp.zeros((2, 3), bool)))
    with pytest.raises(ValueError, match=r"share must be .*, got 2"):
        filters.high_entropy_mask(entropies, mask, 2)


def test_the_price_of_length_is_linear_inside_the_buffer(variant):
    price = variant(lambda n: filters.overlong(n, 10, 4, penalty=2.0))(jnp.arange(5, 13))
    np.testing.assert_allclose(price, [0, 0, -0.5, -1, -1.5, -2, -2, -2])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"group_size must be .*, got 1"):
        group.leave_one_out(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="batch size must be a multiple of group_size=2, got 7"):
        group.by_group(group.centred, 2, np.zeros(7, np.float32))
    with pytest.raises(ValueError, match=r"rewards\.shape must be .*, got \(2, 2\)"):
        group.centred(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"epsilon must be .*, got 0"):
        group.group_relative(np.zeros(2, np.float32), epsilon=0)
    with pytest.raises(ValueError, match=r"k must be .*, got 5"):
        pass_k.pass_at_k(REWARDS, k=5)
    with pytest.raises(ValueError, match=r"buffer must be .*, got 0"):
        filters.overlong(np.zeros(2, np.float32), 4, 0)
