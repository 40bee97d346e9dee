import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import aggregation, importance_weights
from proxlm.policy import losses as loss_lib
from proxlm.policy.advantages import returns, temporal
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

GIVEN = vectors_on_disk.inputs()
MASK = np.asarray(GIVEN.mask)
POISONED = np.where(GIVEN.mask, GIVEN.rewards, np.float32(np.nan))


def test_rewards_to_go_step_over_holes(variant):
    ours = variant(jax.vmap(lambda r, m: returns.reward_to_go(r, m, 0.9)))(POISONED, GIVEN.mask)
    expected = np.zeros(MASK.shape)
    for b in range(6):
        total = 0.0
        for t in np.flatnonzero(MASK[b])[::-1]:
            total = float(GIVEN.rewards[b, t]) + 0.9 * total
            expected[b, t] = total
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_remax_subtracts_what_the_greedy_answer_earns():
    ours = jax.jit(jax.vmap(returns.remax))(POISONED, GIVEN.scores, GIVEN.mask)
    to_go = jax.jit(jax.vmap(returns.reward_to_go))(POISONED, GIVEN.mask)
    np.testing.assert_allclose(ours, np.where(MASK, to_go - GIVEN.scores[:, None], 0.0), atol=1e-6)


def test_lambda_grows_with_the_length():
    ours = returns.adaptive_lambda(GIVEN.mask, alpha=0.5)
    np.testing.assert_allclose(ours, [1 - 2 / 7, 0.5, 0.0, 0.5, 0.6, 0.0], rtol=1e-6)


def test_the_critic_has_a_lambda_of_its_own():
    rewards, values, mask = GIVEN.rewards[3], GIVEN.values_old[3], GIVEN.mask[3]
    ours, gae = jax.jit(returns.decoupled_gae)(rewards, values, mask, 0.9, 0.5, 0.8), jax.jit(temporal.gae)
    for i, gae_lambda in enumerate((0.5, 0.8)):
        np.testing.assert_allclose(ours[i], gae(rewards, values, mask, 0.9, gae_lambda)[i], rtol=1e-6)


def test_an_advantage_of_a_sequence_is_that_of_its_tokens():
    ours = returns.over_tokens(np.where(np.arange(6) == 5, np.float32(np.nan), GIVEN.scores), GIVEN.mask)
    np.testing.assert_array_equal(ours, np.where(MASK, GIVEN.scores[:, None], 0.0))


rejection = importance_weights.kl_rejection_mask
rejection_jit = jax.jit(rejection, static_argnames=("kind", "over"))
CORRECTIONS = {
    "tis": lambda *xs: importance_weights.truncated(*xs, high=1.05),
    "icepop": lambda *xs: importance_weights.icepop(*xs, low=0.95, high=1.05),
    "seq_mask_tis": lambda *xs: importance_weights.sequence_mask(*xs, low=0.95, high=1.05),
}


OPENRLHFS = tuple(CORRECTIONS)
CORRECTIONS |= {
    "near": lambda *xs: rejection(*xs, high=0.1, low=-0.1, kind="k1").astype(float),
    "near on average": lambda *xs: rejection(*xs, high=0.1, over="mean").astype(float),
    "normalised": importance_weights.normalised,
}


@pytest.mark.parametrize("name", OPENRLHFS)
def test_corrected_losses_are_openrlhfs(name):
    expected = vectors_on_disk.load("openrlhf")[name]
    poison = lambda x: np.where(GIVEN.mask, x, np.float32(np.nan))

    def loss(log_probs):
        correction = CORRECTIONS[name](poison(GIVEN.logp_old), poison(GIVEN.logp_rollout), GIVEN.mask)
        tokens = loss_lib.clipped(log_probs, GIVEN.logp_old, GIVEN.advantages, GIVEN.mask)
        weights = aggregation.token_weights(GIVEN.mask)
        return aggregation.weighted_sum(tokens * correction, weights)

    value, gradient = jax.jit(jax.value_and_grad(loss))(GIVEN.logp)
    np.testing.assert_allclose(value, expected["loss"], atol=1e-5)
    np.testing.assert_allclose(gradient, expected["gradient"], atol=1e-5)


def test_corrections_are_finite_and_carry_no_gradient():
    old, mask = jnp.zeros((2, 3)), jnp.array([[True, True, False], [False] * 3])

    @compiled
    def everything(shift):
        total = lambda correct: lambda *xs: jnp.sum(correct(*xs, mask))
        return {
            name: [correct(old + shift, old, mask), *jax.grad(total(correct), (0, 1))(old + shift, old)]
            for name, correct in CORRECTIONS.items()
        }

    for shift in (-np.inf, -1e4, -90.0, 0.0, 90.0, 1e4, np.inf):
        for name, (weights, *gradients) in everything(shift).items():
            assert np.all(np.isfinite(weights)) and not any(np.any(g) for g in gradients), (name, shift)
            assert shift or np.array_equal(weights, mask), name


def test_equal_weights_are_normalised_to_1_however_small_or_large():
    unbounded = functools.partial(importance_weights.truncated, high=np.inf, max_log_ratio=88.0)
    weigh = jax.jit(lambda d: importance_weights.normalised(d, jnp.zeros(7), MASK[3], correction=unbounded))
    for distance in (-30.0, 0.3, 60.0, 1e4):
        np.testing.assert_array_equal(weigh(jnp.full(7, distance)), MASK[3])


def test_a_sequence_is_judged_by_its_mean_or_its_product():
    given = np.log(np.float32([[2.0, 2.0]])), np.zeros((1, 2), np.float32), np.ones((1, 2), bool)
    settings = {}, {"level": "product"}, {"max_weight": 1.5}
    weigh = lambda xs: [importance_weights.sequence_mask(*xs, high=3.0, **k) for k in settings]
    np.testing.assert_allclose(jax.jit(weigh)(given), [[[2.0, 2.0]], [[0.0, 0.0]], [[1.5, 1.5]]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("over", ["token", "sum", "mean", "max"])
def test_what_is_near_lies_between_the_bounds(kind, over):
    d = np.where(MASK, GIVEN.logp_old - GIVEN.logp_rollout, 0.0)
    far = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - 1 - d}[kind]
    count = np.maximum(MASK.sum(1, keepdims=True), 1)
    if over == "max":
        far = np.where(MASK, far, -np.inf).max(1, keepdims=True)
    elif over != "token":
        far = far.sum(1, keepdims=True) / (count if over == "mean" else 1)
    high, low = np.median(far[:5]) + 1e-5, np.quantile(far[:5], 0.1) + 1e-5
    near = lambda **bounds: rejection_jit(
        GIVEN.logp_old, GIVEN.logp_rollout, GIVEN.mask, kind=kind, over=over, **bounds
    )
    np.testing.assert_array_equal(near(high=high), MASK & (far <= high))
    np.testing.assert_array_equal(near(high=high, low=low), MASK & (far <= high) & (far >= low))


def test_normalised_weights_are_1_on_average_over_tokens_or_sequences():
    weigh = lambda over: importance_weights.normalised(
        GIVEN.logp_old, GIVEN.logp_rollout, GIVEN.mask, over=over
    )
    plain = np.asarray(importance_weights.truncated(GIVEN.logp_old, GIVEN.logp_rollout, GIVEN.mask))
    np.testing.assert_allclose(weigh("token"), plain / plain[MASK].mean(), rtol=1e-5)
    of_rows = [row[valid].mean() for row, valid in zip(plain, MASK, strict=True) if valid.any()]
    np.testing.assert_allclose(weigh("sequence"), plain / np.mean(of_rows), rtol=1e-5)
    with pytest.raises(ValueError, match=r"over must be .*, got 'batch'"):
        weigh("batch")


def test_only_stale_and_bad_sequences_are_dropped():
    log_probs = np.float32([[-3.0, -1.0], [-3.0, -1.0], [-1.0, -1.0]])
    sampler, mask = np.full((3, 2), np.float32(-1.0)), np.ones((3, 2), bool)
    advantages = np.float32([[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])
    drop = jax.jit(importance_weights.off_policy_sequence_mask)
    weigh = lambda bound: drop(log_probs, sampler, advantages, mask, bound)
    assert weigh(0.9).tolist() == [[1, 1], [0, 0], [1, 1]] and weigh(1.1).tolist() == [[1, 1]] * 3


def test_rows_without_tokens_may_count(variant):
    mask = jnp.array([[True, True], [False, False]])
    for fn, row in {
        aggregation.sequence_weights: 0.25,
        aggregation.sequence_sum_weights: 0.5,
        aggregation.constant_weights: 0.25,
    }.items():
        ours = variant(lambda m, fn=fn: fn(m, rows="all"))(mask)
        np.testing.assert_array_equal(ours, [[row, row], [0, 0]])
        np.testing.assert_array_equal(fn(mask), 2 * ours)


def test_wrong_arguments_are_named():
    x, mask = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"per_sequence\.shape must be .*, got \(3,\)"):
        returns.over_tokens(x[0], mask)
    with pytest.raises(ValueError, match=r"alpha must be .*, got 0"):
        returns.adaptive_lambda(mask, 0)
    with pytest.raises(ValueError, match=r"high must be .*, got -1"):
        importance_weights.truncated(x, x, mask, high=-1)
    with pytest.raises(ValueError, match=r"sampler_log_probs\.shape|old_log_probs\.shape"):
        importance_weights.icepop(x, x[0], mask)
    with pytest.raises(ValueError, match=r"rows must be one of 'valid', 'all'.*, got 'some'"):
        aggregation.sequence_weights(mask, rows="some")
