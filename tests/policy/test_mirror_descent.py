import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import losses as loss_lib
from proxlm.policy import mirror_descent, tabular

LANGUAGE = tabular.Language(vocab_size=3, length=3)
STOPPED = tabular.Language(vocab_size=3, length=3, stop_token=1)
BETA, TAU = 0.3, 1.7


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def log_probs(seed, *shape):
    return jax.nn.log_softmax(normal(seed, *shape))


ROWS = 4, 5


def problem():
    """Advantages, old policy and reference of four prefixes."""
    return normal(0, *ROWS), log_probs(1, *ROWS), log_probs(2, *ROWS)


@pytest.mark.parametrize("with_reference", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_step_is_the_minimum_of_its_objective(with_reference):
    advantages, old, ref = problem()
    settings = (ref, BETA, TAU) if with_reference else (None, 0.0, TAU)
    best = jax.jit(mirror_descent.proximal_step)(advantages, old, *settings)
    loss = lambda x: mirror_descent.proximal_loss(jax.nn.log_softmax(x), advantages, old, *settings)
    probes = np.array(best) + np.concatenate([np.zeros((1, *ROWS)), 0.3 * normal(3, 200, *ROWS)])
    at_best, *others = np.array(jax.jit(jax.vmap(loss))(probes))
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: loss(x).sum()))(best), 0.0, atol=1e-12)
    assert np.all(np.array(others) > at_best)
    # strongly convex in the policy: the excess is the divergence from the step
    policy = probes[1] - np.log(np.exp(probes[1]).sum(axis=1, keepdims=True))
    divergence = np.sum(np.exp(policy) * (policy - best), axis=1)
    strength = (BETA if with_reference else 0.0) + 1 / TAU
    np.testing.assert_allclose(others[0] - at_best, strength * divergence, atol=1e-12)


def test_a_value_added_to_the_advantages_changes_nothing():
    advantages, old, ref = problem()
    step = lambda a: mirror_descent.proximal_step(a, old, ref, BETA, TAU)
    np.testing.assert_allclose(step(advantages + normal(4, 4, 1)), step(advantages), atol=1e-12)


def test_short_steps_stay_and_infinite_ones_arrive():
    advantages, old, ref = problem()
    np.testing.assert_allclose(
        mirror_descent.proximal_step(advantages, old, ref, BETA, 1e-12), old, atol=1e-9
    )
    there = jax.nn.log_softmax(ref + advantages / BETA)
    far = mirror_descent.proximal_step(advantages, old, ref, BETA, jnp.inf)
    np.testing.assert_allclose(far, there, atol=1e-12)


def test_what_old_policy_or_reference_cannot_say_stays_unsaid():
    advantages, old, ref = problem()
    old, ref = old.at[:, 0].set(-jnp.inf), ref.at[:, 1].set(-jnp.inf)
    for tau in (TAU, jnp.inf):
        step = mirror_descent.proximal_step(advantages, old, ref, BETA, tau)
        assert jnp.all(step[:, :2] == -jnp.inf) and jnp.all(jnp.isfinite(step[:, 2:]))


@pytest.mark.parametrize("advantage", [-1e4, 1e4])
def test_any_advantage_gives_a_policy(advantage):
    _, old, ref = problem()
    step = mirror_descent.proximal_step(jnp.zeros(ROWS).at[0, 0].set(advantage), old, ref, BETA, 100.0)
    np.testing.assert_allclose(jnp.exp(step).sum(1), 1.0)


# Whole sequences


FIXED = pytest.param(LANGUAGE, marks=pytest.mark.slow, id="fixed length")


@pytest.mark.parametrize("language", [FIXED, pytest.param(STOPPED, id="stop token")])
def test_every_step_contracts_the_log_ratio_to_the_optimum_by_the_same_factor(language):
    shape = language.num_states, 3
    reward = normal(9, len(tabular.outcomes(language).tokens))
    policy, ref = log_probs(1, *shape), log_probs(2, *shape)
    best, value = jax.jit(lambda: tabular.optimum(ref, reward, BETA, language))()
    factor = (1 / TAU) / (BETA + 1 / TAU)

    def away(table):
        both = (tabular.outcome_log_probs(x, language) for x in (table, best))
        ratio = jnp.subtract(*both)
        # normalisation is common to all outcomes
        return ratio - ratio[0]

    @jax.jit
    def step(before):
        after = tabular.proximal_point(before, reward, language, ref, BETA, TAU)
        return after, away(after), away(before), tabular.objective(after, reward, language, ref, BETA)

    before, gap = policy, jnp.inf
    for _ in range(3):
        after, near, far, reached = step(before)
        np.testing.assert_allclose(near, factor * far, atol=1e-10)
        left = value - reached
        assert -1e-12 < left < gap
        before, gap = after, left


def test_the_step_on_sequences_is_the_minimum_over_all_policies():
    reward = normal(9, 27)
    old, ref = log_probs(1, 13, 3), log_probs(2, 13, 3)

    def loss(x):
        policy = jax.nn.log_softmax(x)
        gain = tabular.objective(policy, reward, LANGUAGE, ref, BETA)
        return tabular.divergence(policy, old, LANGUAGE) / TAU - gain

    @jax.jit
    def slope():
        return jax.grad(loss)(tabular.proximal_point(old, reward, LANGUAGE, ref, BETA, TAU))

    np.testing.assert_allclose(slope(), 0.0, atol=1e-12)


def test_regression_is_zero_at_the_step_and_its_gradient_the_policy_gradient_at_the_start():
    reward, old, ref = normal(5, 6), log_probs(6, 6), log_probs(7, 6)
    loss = lambda x: mirror_descent.proximal_regression(x, old, reward, ref, BETA, TAU)
    best = jax.nn.log_softmax((reward + BETA * ref + old / TAU) / (BETA + 1 / TAU))
    np.testing.assert_allclose(loss(best), 0.0, atol=1e-20)
    shaped = reward - BETA * (old - ref)
    gradient = jax.jit(jax.grad(lambda x: loss(x).sum()))(old)
    centred = shaped - shaped.mean()
    np.testing.assert_allclose(gradient, -(BETA + 1 / TAU) * centred, atol=1e-12)


def test_sampled_tokens_estimate_the_objective_of_the_step():
    reward, old = normal(9, 27), log_probs(1, 13, 3)
    exact = jax.jit(lambda: tabular.values(old, reward, LANGUAGE))()
    start = normal(3, 13, 3)

    def sampled(group):
        advantages = exact.advantages[group.states, group.tokens]
        losses = loss_lib.kl_penalty(
            group.log_probs, group.old_log_probs, advantages, group.mask, coef=1 / TAU, direction="reverse"
        )
        return jnp.sum(losses)

    def full(x):
        losses = mirror_descent.proximal_loss(jax.nn.log_softmax(x), exact.advantages, old, step_size=TAU)
        return jnp.sum(tabular.occupancy(old, LANGUAGE) * losses)

    run = lambda x: tabular.expected_value_and_grad(sampled, x, reward, LANGUAGE, old_log_probs=old)
    value, gradient = jax.jit(run)(start)
    expected = jax.jit(jax.value_and_grad(full))(start)
    np.testing.assert_allclose(value, expected[0], atol=1e-12)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-12)


def test_wrong_arguments_are_named():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"step_size must be .*, got 0"):
        mirror_descent.proximal_step(x, x, step_size=0)
    with pytest.raises(ValueError, match=r"kl_coef must be 0 without ref_log_probs, got 0\.1"):
        mirror_descent.proximal_step(x, x, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"old_log_probs\.shape must be .*, got \(3,\)"):
        mirror_descent.proximal_loss(x, x, x[0])
    with pytest.raises(ValueError, match=r"kl_coef must be .*, got -1\.0"):
        tabular.proximal_point(np.zeros((13, 3), np.float32), np.zeros(27, np.float32), LANGUAGE, None, -1.0)
