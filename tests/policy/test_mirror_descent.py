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


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_step_is_the_minimum_of_its_objective(with_reference):
    advantages, old, ref = problem()
    settings = (ref, BETA, TAU) if with_reference else (None, 0.0, TAU)
    best = mirror_descent.proximal_step(advantages, old, *settings)
    loss = lambda x: mirror_descent.proximal_loss(jax.nn.log_softmax(x), advantages, old, *settings)
    np.testing.assert_allclose(jax.grad(lambda x: loss(x).sum())(best), 0.0, atol=1e-12)
    probes = best[None] + 0.3 * normal(3, 200, *ROWS)
    assert jnp.all(jax.vmap(loss)(probes) > loss(best)[None])
    # strongly convex in the policy: the excess is the divergence from the step
    excess = loss(probes[0]) - loss(best)
    policy = jax.nn.log_softmax(probes[0])
    divergence = jnp.sum(jnp.exp(policy) * (policy - best), axis=1)
    strength = (BETA if with_reference else 0.0) + 1 / TAU
    np.testing.assert_allclose(excess, strength * divergence, atol=1e-12)


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


@pytest.mark.parametrize("language", [LANGUAGE, STOPPED], ids=["fixed length", "stop token"])
def test_every_step_contracts_the_log_ratio_to_the_optimum_by_the_same_factor(language):
    shape = language.num_states, 3
    reward = normal(9, len(tabular.outcomes(language).tokens))
    policy, ref = log_probs(1, *shape), log_probs(2, *shape)
    best, value = tabular.optimum(ref, reward, BETA, language)
    factor = (1 / TAU) / (BETA + 1 / TAU)

    def away(table):
        both = (tabular.outcome_log_probs(x, language) for x in (table, best))
        ratio = jnp.subtract(*both)
        # normalisation is common to all outcomes
        return ratio - ratio[0]

    step = lambda p: tabular.proximal_point(p, reward, language, ref, BETA, TAU)
    before, gap = policy, jnp.inf
    for _ in range(3):
        after = jax.jit(step)(before)
        np.testing.assert_allclose(away(after), factor * away(before), atol=1e-10)
        left = value - tabular.objective(after, reward, language, ref, BETA)
        assert -1e-12 < left < gap
        before, gap = after, left


def test_the_step_on_sequences_is_the_minimum_over_all_policies():
    reward = normal(9, 27)
    old, ref = log_probs(1, 13, 3), log_probs(2, 13, 3)

    def loss(x):
        policy = jax.nn.log_softmax(x)
        gain = tabular.objective(policy, reward, LANGUAGE, ref, BETA)
        return tabular.divergence(policy, old, LANGUAGE) / TAU - gain

    best = tabular.proximal_point(old, reward, LANGUAGE, ref, BETA, TAU)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(best), 0.0, atol=1e-12)


def test_regression_is_zero_at_the_step_and_its_gradient_the_policy_gradient_at_the_start():
    reward, old, ref = normal(5, 6), log_probs(6, 6), log_probs(7, 6)
    loss = lambda x: mirror_descent.proximal_regression(x, old, reward, ref, BETA, TAU)
    best = jax.nn.log_softmax((reward + BETA * ref + old / TAU) / (BETA + 1 / TAU))
    np.testing.assert_allclose(loss(best), 0.0, atol=1e-20)
    shaped = reward - BETA * (old - ref)
    gradient = jax.grad(lambda x: loss(x).sum())(old)
    centred = shaped - shaped.mean()
    np.testing.assert_allclose(gradient, -(BETA + 1 / TAU) * centred, atol=1e-12)


def test_sampled_tokens_estimate_the_objective_of_the_step():
    reward, old = normal(9, 27), log_probs(1, 13, 3)
    exact = tabular.values(old, reward, LANGUAGE)
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
    expected = jax.value_and_grad(full)(start)
    np.testing.assert_allclose(value, expected[0], atol=1e-12)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-12)


def test_wrong_arguments_are_named():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"step_size must be .*, got 0"):
        mirror_descent.proximal_step(x, x, step_size=0)
    with pytest.raises(ValueError, match=r"kl_coef must be 0 without ref_log_probs, got 0\.1"):
        mirror_descent.proximal_step(x, x, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"old_log_probs\.shape must be .*, got \(3,\)"):
        mirror_descent.proximal_loss(x, x, x[0])
    with pytest.raises(ValueError, match=r"kl_coef must be .*, got -1\.0"):
        tabular.proximal_point(jnp.zeros((13, 3)), jnp.zeros(27), LANGUAGE, None, -1.0)
