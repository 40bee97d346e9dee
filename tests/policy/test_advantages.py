import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy.advantages import temporal
from tests import arrays
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

SETTINGS = [(1.0, 0.95), (0.99, 0.9), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)]


gae, whiten = (
    jax.jit(temporal.gae),
    jax.jit(temporal.whiten, static_argnames=("ddof", "epsilon_inside", "shift_mean")),
)


@functools.partial(jax.jit, static_argnames="holes")
def batched_gae(rewards, values, mask, discount=1.0, gae_lambda=0.95, holes="skip"):
    one = lambda r, v, m: temporal.gae(r, v, m, discount, gae_lambda, holes=holes)
    return jax.vmap(one)(rewards, values, mask)


def assert_close_at(mask, ours, expected):
    np.testing.assert_allclose(np.asarray(ours)[mask], np.asarray(expected)[mask], atol=1e-5)


def gae_of_what_is_valid(rewards, values, mask, discount, gae_lambda):
    """Takes the holes out, sums the powers of γλ in float64, and puts the holes back."""
    at = np.flatnonzero(mask)
    reward, value = np.float64(rewards)[at], np.append(np.float64(values)[at], 0.0)
    delta = reward + discount * value[1:] - value[:-1]
    result = np.zeros(len(mask))
    for i in range(len(at)):
        powers = (discount * gae_lambda) ** np.arange(len(at) - i)
        result[at[i]] = np.sum(powers * delta[i:])
    return result


@pytest.mark.parametrize(("discount", "gae_lambda"), SETTINGS)
def test_gae_skips_holes(discount, gae_lambda):
    given = vectors_on_disk.inputs()
    ours, returns = batched_gae(given.rewards, given.values_old, given.mask, discount, gae_lambda)
    for row in range(6):
        expected = gae_of_what_is_valid(
            given.rewards[row], given.values_old[row], given.mask[row], discount, gae_lambda
        )
        np.testing.assert_allclose(ours[row], expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(given.mask, ours + given.values_old, 0.0))


def test_gae_by_hand(variant):
    rewards, values = jnp.array([1.0, 0.0, 2.0]), jnp.array([0.5, 1.0, 1.5])
    mask = jnp.ones(3, bool)
    ours, returns = variant(temporal.gae)(rewards, values, mask, 0.5, 0.5)
    # deltas 1 + .5 - .5, 0 + .75 - 1, 2 - 1.5, each later one at a quarter
    np.testing.assert_allclose(ours, [0.96875, -0.125, 0.5])
    np.testing.assert_allclose(returns, [1.46875, 0.875, 2.0])


def test_gae_with_lambda_0_is_the_td_error_and_with_lambda_1_the_return_minus_the_value():
    rewards, values = np.array(arrays.normal(0, (6,))), np.array(arrays.normal(1, (6,)))
    mask = np.ones(6, bool)
    td, _ = gae(rewards, values, mask, 0.9, 0.0)
    np.testing.assert_allclose(td, rewards + 0.9 * np.append(values[1:], 0.0) - values, rtol=1e-5, atol=1e-6)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    np.testing.assert_allclose(returns, np.cumsum(rewards[::-1])[::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_gae_of_a_full_row_is_rlaxs(index):
    given, expected = vectors_on_disk.inputs(), vectors_on_disk.load("rlax")["gae"][index]
    # rlax bootstraps with 0.25; here the value after the end is 0, so the last reward carries it
    discount = expected["discount"]
    rewards = given.rewards[0] + np.float32(discount * 0.25) * (np.arange(7) == 6)
    ours, _ = gae(
        rewards.astype(np.float32), given.values_old[0], given.mask[0], discount, expected["gae_lambda"]
    )
    np.testing.assert_allclose(ours, expected["advantages"], atol=1e-5)


@pytest.mark.parametrize("index", range(2))
def test_gae_whitened_with_ddof_1_is_tunixs(index):
    given, expected = vectors_on_disk.inputs(), vectors_on_disk.load("tunix")["gae"][index]
    settings = expected["discount"], expected["gae_lambda"]
    ours, returns = batched_gae(given.rewards, given.values_old, given.mask, *settings)
    whitened, keep = whiten(ours, given.mask, ddof=1), given.mask
    assert_close_at(keep, whitened, expected["whitened"])
    assert_close_at(keep, returns, expected["returns"])


def test_gae_with_zeroed_holes_is_openrlhfs():
    given, expected = vectors_on_disk.inputs(), vectors_on_disk.load("openrlhf")["gae"]
    ours, returns = batched_gae(given.rewards, given.values_old, given.mask, holes="zero")
    keep = given.mask
    assert_close_at(keep, ours, expected["advantages"])
    assert_close_at(keep, returns, expected["returns"])
    skipped, _ = batched_gae(given.rewards, given.values_old, given.mask, 1.0, 0.95)
    assert np.max(np.abs(np.array(skipped) - ours)[3]) > 0.001


@pytest.mark.parametrize("holes", ["skip", "zero"])
def test_poison_in_holes_changes_no_bit_of_gae_or_its_gradient(holes, variant):
    given = vectors_on_disk.inputs()

    def summed(rewards, values):
        ours, returns = batched_gae(rewards, values, given.mask, holes=holes)
        return jnp.sum(ours**2) + jnp.sum(returns), (ours, returns)

    def at(fill):
        put = lambda x: np.where(given.mask, x, np.float32(fill))
        rewards, values = map(put, (given.rewards, given.values))
        return variant(jax.value_and_grad(summed, argnums=(0, 1), has_aux=True))(rewards, values)

    clean, dirty = jax.tree.leaves(at(0.5)), jax.tree.leaves(at(jnp.nan))
    assert len(clean) == 5
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["whiten", "whiten_keep_mean"])
def test_whitening_with_ddof_0_is_the_n_details(name, variant):
    x = vectors_on_disk.inputs().advantages
    whiten = lambda x: temporal.whiten(x, jnp.ones(x.shape, bool), shift_mean=name == "whiten")
    np.testing.assert_allclose(variant(whiten)(x), vectors_on_disk.load("n_details")[name], atol=1e-5)


@pytest.mark.parametrize("name", ["whiten", "whiten_keep_mean"])
def test_whitening_with_ddof_1_is_verls(name):
    given = vectors_on_disk.inputs()
    ours = whiten(given.advantages, given.mask, ddof=1, shift_mean=name == "whiten")
    expected = np.where(given.mask, vectors_on_disk.load("verl")[name], 0.0)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_whitened_values_have_mean_0_and_variance_1_over_the_mask():
    given = vectors_on_disk.inputs()
    x = 5.0 + 3.0 * given.advantages
    for settings in ({}, {"epsilon_inside": False}):
        valid = np.asarray(whiten(x, given.mask, **settings))[np.asarray(given.mask)]
        np.testing.assert_allclose([valid.mean(), valid.var()], [0.0, 1.0], atol=1e-5)


def test_epsilon_outside_the_root_is_added_to_the_deviation():
    x, mask = np.float32([1.0, 3.0]), np.ones(2, bool)
    outside = whiten(x, mask, epsilon=1.0, epsilon_inside=False)
    inside = whiten(x, mask, epsilon=3.0)
    np.testing.assert_allclose(outside, [-0.5, 0.5])
    np.testing.assert_allclose(inside, [-0.5, 0.5])


def test_whitening_fewer_than_two_values_is_zero_with_finite_gradients():
    conventions = [{"ddof": ddof, "epsilon_inside": inside} for ddof in (0, 1) for inside in (True, False)]

    @compiled
    def everything(x, mask):
        of = lambda settings: lambda x: temporal.whiten(x, mask, **settings)
        slope = lambda fn: jax.grad(lambda x: jnp.sum(fn(x) ** 2 + fn(x)))(x)
        return [(of(settings)(x), slope(of(settings))) for settings in conventions]

    for valid in (0, 1):
        for whitened, gradient in everything(jnp.array([4.0, jnp.nan, jnp.inf]), jnp.arange(3) < valid):
            np.testing.assert_array_equal(whitened, jnp.zeros(3))
            assert np.all(np.isfinite(gradient))


def test_the_score_lands_on_the_last_valid_token_and_is_not_rounded(variant):
    mask = jnp.array([[True, False, True, False], [True, True, True, True], [False] * 4])
    rewards = variant(jax.vmap(temporal.place_score))(jnp.array([0.7, -1.9, 5.0]), mask)
    np.testing.assert_array_equal(
        rewards, jnp.array([[0, 0, 0.7, 0], [0, 0, 0, -1.9], [0, 0, 0, 0]], jnp.float32)
    )
    assert temporal.place_score(3, mask[1]).dtype == jnp.float32


def test_the_score_may_land_one_slot_later_where_there_is_one(variant):
    mask = jnp.array([[True, False, True, False], [True, True, True, True], [False] * 4])
    place = lambda score, mask: temporal.place_score(score, mask, place="after")
    rewards = variant(jax.vmap(place))(jnp.array([0.7, -1.9, 5.0]), mask)
    np.testing.assert_array_equal(
        rewards, jnp.array([[0, 0, 0, 0.7], [0, 0, 0, -1.9], [0, 0, 0, 0]], jnp.float32)
    )
    assert temporal.place_score(3.0, mask[1, :1], place="after").tolist() == [3.0]


def test_shaped_rewards_are_openrlhfs(variant):
    given = vectors_on_disk.inputs()
    shape = jax.vmap(temporal.shape_rewards, in_axes=(0, 0, 0, None))
    scores = np.clip(given.scores, -1.0, 1.0)
    ours = variant(shape)(scores, given.logp_old - given.logp_ref, given.mask, 0.05)
    expected = vectors_on_disk.load("openrlhf")["shaped_rewards"]
    np.testing.assert_allclose(ours, np.where(given.mask, expected, 0.0), atol=1e-6)


def test_shaped_rewards_sum_to_the_score_minus_the_price_of_the_kl():
    kl, mask = np.array(arrays.normal(0, (7,))), np.arange(7) < 5
    rewards = jax.jit(temporal.shape_rewards)(2.0, np.where(np.arange(7) == 6, np.nan, kl), mask, 0.1)
    np.testing.assert_allclose(np.sum(rewards), 2.0 - 0.1 * np.sum(kl[:5]), rtol=1e-5)


def test_a_missing_end_is_subtracted_or_replaces_the_score(variant):
    score, ended = jnp.array([2.0, 2.0, jnp.nan]), jnp.array([True, False, False])
    subtract = variant(lambda s: temporal.missing_eos(s, ended, 3.0))(score)
    replace = variant(lambda s: temporal.missing_eos(s, ended, 3.0, mode="replace"))(score)
    np.testing.assert_array_equal(subtract, [2.0, -1.0, np.nan])
    np.testing.assert_array_equal(replace, [2.0, -3.0, -3.0])


def test_a_coefficient_of_0_takes_nothing_off_even_where_the_kl_is_infinite():
    kl, mask = jnp.array([0.5, jnp.inf, jnp.nan]), jnp.array([True, True, False])
    shape = lambda kl, coef: temporal.shape_rewards(1.0, kl, mask, coef)
    np.testing.assert_array_equal(jax.jit(shape)(kl, 0.0), [0.0, 1.0, 0.0])
    gradient = jax.jit(jax.grad(lambda kl, coef: jnp.sum(shape(kl, coef))))
    np.testing.assert_array_equal(gradient(kl, 0.0), 0.0)


def test_wrong_arguments_are_named():
    x, mask = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"gae: discount\.shape must be \(\), one number, got \(3,\)"):
        temporal.gae(x[0], x[0], mask[0], np.ones(3, np.float32))
    with pytest.raises(
        ValueError, match=r"mask\.dtype must be bool, got dtype\('float32'\)\. Write `mask != 0`"
    ):
        temporal.gae(x[0], x[0], mask[0].astype(np.float32))
    with pytest.raises(ValueError, match=r"mask\.shape must be .*, got \(2, 3\)"):
        temporal.gae(x, x, mask)
    with pytest.raises(ValueError, match=r"values\.shape must be .*, got \(2,\)"):
        temporal.gae(x[0], x[0, :2], mask[0])
    with pytest.raises(ValueError, match=r"gae_lambda must be .*, got 1\.5"):
        temporal.gae(x[0], x[0], mask[0], gae_lambda=1.5)
    with pytest.raises(ValueError, match=r"holes must be one of 'skip', 'zero'.*, got 'fill'"):
        temporal.gae(x[0], x[0], mask[0], holes="fill")
    with pytest.raises(ValueError, match=r"epsilon must be .*, got 0"):
        temporal.whiten(x, mask, epsilon=0)
    with pytest.raises(ValueError, match=r"score\.shape must be .*, got \(3,\)"):
        temporal.place_score(x[0], mask[0])
    with pytest.raises(ValueError, match=r"place must be one of 'last', 'after'.*, got 'eos'"):
        temporal.place_score(1.0, mask[0], place="eos")
    with pytest.raises(ValueError, match=r"kl_coef must be .*, got -0\.1"):
        temporal.shape_rewards(1.0, x[0], mask[0], -0.1)
    with pytest.raises(ValueError, match=r"mode must be .*, got 'add'"):
        temporal.missing_eos(x, mask, 1.0, mode="add")
