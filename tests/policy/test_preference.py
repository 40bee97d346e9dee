import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import best_of_n, tabular
from proxlm.policy.losses import preference
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

PAIR = {
    "bradley terry": lambda c, r: preference.bradley_terry(c, r, 0.5, centre_coef=0.01),
    "dpo": lambda c, r: preference.dpo(c, r, -1.0, -2.0),
    "cdpo": lambda c, r: preference.dpo(c, r, -1.0, -2.0, label_smoothing=0.1),
    "ipo": lambda c, r: preference.ipo(c, r, -1.0, -2.0),
    "kto good": lambda c, r: preference.kto(c - r, True, 0.3),
    "kto bad": lambda c, r: preference.kto(r - c, False, 0.3),
    "orpo": preference.orpo,
    "simpo": preference.simpo,
}
SIGMOID = lambda x: 1 / (1 + np.exp(-x))


def test_reward_model_losses_are_openrlhfs():
    given = vectors_on_disk.load("openrlhf")["pairwise"]
    chosen, rejected = jnp.array(given["chosen"]), jnp.array(given["rejected"])
    plain = preference.bradley_terry(chosen, rejected)
    np.testing.assert_allclose(plain.mean(), given["logsigmoid"], rtol=1e-5)
    np.testing.assert_allclose(plain.mean(), given["logexp"], rtol=1e-5)
    margin = preference.bradley_terry(chosen, rejected, 0.5)
    np.testing.assert_allclose(margin.mean(), given["margin_half"], rtol=1e-5)


def test_dpo_losses_are_openrlhfs(variant):
    given = vectors_on_disk.load("openrlhf")["dpo"]
    names = "policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"
    four = [jnp.array(given[name]) for name in names]
    mean = lambda fn, **k: variant(lambda *xs: fn(*xs, beta=0.1, **k).mean())(*four)
    np.testing.assert_allclose(mean(preference.dpo), given["beta=.1"], rtol=1e-5)
    smooth = mean(preference.dpo, label_smoothing=0.1)
    np.testing.assert_allclose(smooth, given["beta=.1 smoothing=.1"], rtol=1e-5)
    np.testing.assert_allclose(mean(preference.ipo), given["ipo beta=.1"], rtol=1e-5)


def test_losses_and_gradients_by_hand():
    c, r = -0.5, -1.5
    both = lambda fn: jax.value_and_grad(fn, (0, 1))(c, r)
    # h = (c - ref_c) - (r - ref_r) = 0.5 - 0.5 + 1 = ...
    h = (c + 1.0) - (r + 2.0)
    value, (dc, dr) = both(PAIR["dpo"])
    np.testing.assert_allclose(value, -np.log(SIGMOID(0.1 * h)), rtol=1e-5)
    np.testing.assert_allclose([dc, dr], 0.1 * SIGMOID(-0.1 * h) * np.array([-1, 1]), rtol=1e-5)
    value, (dc, dr) = both(PAIR["cdpo"])
    np.testing.assert_allclose(dc, 0.1 * (0.1 - SIGMOID(-0.1 * h)), rtol=1e-4)
    value, (dc, dr) = both(PAIR["ipo"])
    np.testing.assert_allclose([value, dc], [(h - 5) ** 2, 2 * (h - 5)], rtol=1e-5)
    value, (dc, dr) = both(PAIR["bradley terry"])
    np.testing.assert_allclose(value, -np.log(SIGMOID(0.5)) + 0.04, rtol=1e-5)
    np.testing.assert_allclose([dc, dr], np.array([-1, 1]) * SIGMOID(-0.5) - 0.04, rtol=1e-5)
    value, (dc, dr) = both(PAIR["simpo"])
    np.testing.assert_allclose(value, -np.log(SIGMOID(2.0 - 1.0)), rtol=1e-5)
    np.testing.assert_allclose(dc, -2 * SIGMOID(-1.0), rtol=1e-5)


def test_orpo_is_the_likelihood_and_the_odds():
    p, q = np.exp(-0.5), np.exp(-1.5)
    odds = (p / (1 - p)) / (q / (1 - q))
    value, slope = jax.value_and_grad(lambda c: preference.orpo(c, -1.5, coef=0.3))(-0.5)
    np.testing.assert_allclose(value, 0.5 - 0.3 * np.log(odds / (1 + odds)), rtol=1e-5)
    # d log odds / d log p = 1 / (1 - p)
    np.testing.assert_allclose(slope, -1 - 0.3 / (1 + odds) / (1 - p), rtol=1e-5)


def test_kto_values_gains_and_losses_against_the_divergence():
    h, z = np.array([1.0, 1.0]), 0.3
    desirable = jnp.array([True, False])
    fn = lambda h: preference.kto(h, desirable, z, 0.5, 1.5, 2.0)
    expected = [1.5 * (1 - SIGMOID(0.5 * 0.7)), 2.0 * (1 - SIGMOID(-0.5 * 0.7))]
    np.testing.assert_allclose(fn(jnp.array(h)), expected, rtol=1e-5)
    slope = jax.grad(lambda h: fn(h).sum())(jnp.array(h))
    gate = 0.5 * SIGMOID(0.35) * SIGMOID(-0.35)
    np.testing.assert_allclose(slope, [-1.5 * gate, 2.0 * gate], rtol=1e-5)
    # a negative estimate counts as 0, and is data
    ours = preference.kto(jnp.array(h), desirable, -3.0)
    np.testing.assert_array_equal(ours, preference.kto(jnp.array(h), desirable, 0.0))
    assert jax.grad(lambda z: preference.kto(1.0, True, z))(z) == 0


def test_any_gap_is_finite_with_finite_gradients():
    chosen, rejected = np.meshgrid(
        *[np.float32([-np.inf, np.finfo(np.float32).min, -1e4, -90.0, -1.0, 0.0])] * 2
    )
    # of two that cannot be said, KTO is not asked for the difference
    known = (chosen > -1e9) | (rejected > -1e9)

    @compiled
    def everything(*h):
        return {name: jax.vmap(jax.value_and_grad(loss, (0, 1)))(*h) for name, loss in PAIR.items()}

    for name, results in everything(chosen[known], rejected[known]).items():
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(results)), name


def test_a_response_that_cannot_be_said_is_as_bad_as_can_be():
    never = -jnp.inf
    assert preference.dpo(-1.0, never, -1.0, -1.0) == 0.0
    assert preference.dpo(-1.0, never, -1.0, never) == pytest.approx(np.log(2.0))
    assert preference.dpo(never, -1.0, -1.0, -1.0) > 1e6
    assert preference.bradley_terry(1.0, never) == 0.0 == preference.simpo(-1.0, never)
    assert preference.orpo(-1.0, never) == 1.0
    assert preference.kto(never, False) == 0.0 and preference.kto(never, True) == 1.0


def test_the_preferred_answer_is_made_more_likely():
    slopes = compiled(lambda *h: {name: jax.grad(loss, (0, 1))(*h) for name, loss in PAIR.items()})
    for name, (chosen, rejected) in slopes(-1.0, -1.2).items():
        assert chosen < 0 < rejected, name


def test_the_mean_over_pairs_of_dpo_is_least_at_the_optimum_of_the_reward():
    with jax.enable_x64(True):
        reward = jnp.array([0.3, -0.4, 1.1])
        ref = jax.nn.log_softmax(jnp.array([0.1, 0.5, -0.2]))
        beta = 0.5

        def loss(x):
            policy = jax.nn.log_softmax(x)
            pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
            chance = lambda i, j: jax.nn.sigmoid(reward[i] - reward[j])
            one = lambda i, j: preference.dpo(policy[i], policy[j], ref[i], ref[j], beta)
            return sum(chance(i, j) * one(i, j) for i, j in pairs)

        optimum = ref + reward / beta
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(optimum), 0.0, atol=1e-12)


def test_log_probs_of_answers_ignore_what_is_masked():
    given = vectors_on_disk.inputs()
    mask = np.asarray(given.mask)
    poisoned = jnp.where(given.mask, given.logp, jnp.nan)
    total = preference.sequence_log_probs(poisoned, given.mask)
    np.testing.assert_allclose(total, np.where(mask, given.logp, 0).sum(1), rtol=1e-5)
    mean = preference.sequence_log_probs(poisoned, given.mask, average=True)
    np.testing.assert_allclose(mean, total / np.maximum(mask.sum(1), 1), rtol=1e-5)
    gradient = jax.grad(lambda x: preference.sequence_log_probs(x, given.mask).sum())(poisoned)
    np.testing.assert_array_equal(gradient, mask)


# Best of n


def test_the_best_of_n_is_chosen_by_group():
    rows = best_of_n.best(jnp.array([0.0, 3.0, jnp.nan, -1.0, 2.0, 2.0]), 2)
    assert rows.tolist() == [1, 3, 4]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_distribution_of_the_best_is_that_of_drawn_answers(n):
    language = tabular.Language(vocab_size=2, length=2)
    log_probs = jax.nn.log_softmax(jnp.array([[0.3, -0.2], [1.0, 0.0], [0.5, 0.2]]))
    each = tabular.outcome_log_probs(log_probs, language)
    rewards = jnp.array([1.0, 0.0, 2.0, -1.0])
    ours = jnp.exp(best_of_n.log_probs_of_best(each, rewards, n))
    members, counts = tabular.estimators.groups(language, n)
    chances = counts * np.exp(np.asarray(each)[members].sum(1))
    expected = np.zeros(4)
    np.add.at(expected, members[np.arange(len(members)), np.argmax(rewards[members], 1)], chances)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    kl = jnp.sum(ours * (jnp.log(ours) - each))
    assert kl <= best_of_n.kl_bound(n) + 1e-6


def test_outcomes_of_equal_reward_share_what_the_best_is_worth():
    log_probs = jnp.log(jnp.array([0.2, 0.3, 0.5, 0.0]))
    ours = jnp.exp(best_of_n.log_probs_of_best(log_probs, jnp.array([1.0, 1.0, 0.0, 2.0]), 2))
    np.testing.assert_allclose(ours, [0.75 * 0.4, 0.75 * 0.6, 0.25, 0.0], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_expected_best_is_the_mean_over_all_groups_that_can_be_drawn(n, variant):
    values, rewards = np.arange(5.0) ** 2, np.array([0.3, np.nan, 1.0, 1.0, -2.0])
    order = np.array([2, 3, 0, 4, 1])  # the first of equals first, NaN last
    draws = [min(group) for group in itertools.combinations(range(5), n)]
    ours = variant(best_of_n.expected)(jnp.array(values), jnp.array(rewards), n)
    np.testing.assert_allclose(ours, values[order][draws].mean(), rtol=1e-5)


def test_wrong_arguments_are_named():
    x = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"beta must be .*, got 0"):
        preference.dpo(x, x, x, x, beta=0)
    with pytest.raises(ValueError, match=r"ref_chosen\.shape must be .*, got \(2,\)"):
        preference.ipo(x, x, x[:2], x)
    with pytest.raises(ValueError, match=r"label_smoothing must be .*, got 0\.7"):
        preference.dpo(x, x, x, x, label_smoothing=0.7)
    with pytest.raises(ValueError, match=r"desirable\.dtype must be bool, got dtype\('float32'\)"):
        preference.kto(x, x)
    with pytest.raises(ValueError, match=r"margin\.shape must be .*, got \(2,\)"):
        preference.bradley_terry(x, x, x[:2])
    with pytest.raises(ValueError, match=r"coef must be .*, got -1"):
        preference.orpo(x, x, coef=-1)
    with pytest.raises(ValueError, match="expected a multiple of n=2"):
        best_of_n.best(x, 2)
    with pytest.raises(ValueError, match=r"n must be .*, got 4"):
        best_of_n.expected(x, x, 4)
    with pytest.raises(ValueError, match=r"n must be .*, got 0\.5"):
        best_of_n.kl_bound(0.5)
