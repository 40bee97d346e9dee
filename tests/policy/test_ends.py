"""Rows that are cut and go on by the critic's value, and rows in which an episode ends."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm.policy import advantages, ppo, recipes
from proxlm.policy._iteration import experience
from tests.arrays import normal, rough
from tests.policy import table_actor
from tests.policy.table_actor import compiled

BATCH, VOCAB, LENGTH = 8, 3, 3
FINAL = np.arange(1.0, BATCH + 1)
ACTOR = table_actor.make(VOCAB, LENGTH, 0)._replace(final_values=lambda params, samples: jnp.asarray(FINAL))
PARAMS = table_actor.params(0, VOCAB, LENGTH)


def test_gae_with_ends_inside_of_a_row_and_a_value_after_it_is_that_of_each_episode():
    rewards, values = np.asarray(normal(0, (6,)), float), np.asarray(normal(1, (6,)), float)
    discounts, expected, after = np.array([1, 0, 1, 0.5, 1, 1.0]), np.zeros(6), (2.5, 0.0)
    for t in reversed(range(6)):
        gamma = 0.9 * discounts[t]
        expected[t] = rewards[t] + gamma * after[0] - values[t] + gamma * 0.8 * after[1]
        after = values[t], expected[t]
    row = rewards, values, np.ones(6, bool), 0.9, 0.8
    found, returns = jax.jit(functools.partial(advantages.gae, final_value=2.5))(*row, discounts=discounts)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(returns, expected + values, rtol=1e-5)
    first, _ = advantages.gae(rewards[:2], values[:2], np.ones(2, bool), 0.9, 0.8)
    np.testing.assert_allclose(found[:2], first, rtol=1e-5)
    with pytest.raises(ValueError, match=r"gae: discounts.shape must be \(6,\)"):
        advantages.gae(*row, discounts=np.ones(5))
    with pytest.raises(ValueError, match=r"gae: discounts must be a number in \[0, 1\]"):
        advantages.gae(*row, discounts=2 * discounts)


def _prepared(samples, rewards, config):
    """The batch that is learnt from."""

    def prepare(samples):
        state = ppo.init(PARAMS, optax.sgd(0.1), config)
        return experience.prepare(state, samples, rewards, ACTOR, config)[0]

    return compiled(prepare)(samples)


def test_a_cut_response_is_bootstrapped_and_an_ended_one_is_not():
    samples = compiled(ACTOR.sample)(jax.random.key(5), PARAMS, lm.Prompts(jnp.zeros((BATCH, 2), int)))
    plain = recipes.make("ppo", kl=None, whitening=None, discount=0.9, gae_lambda=0.0)
    prepare = functools.partial(_prepared, samples, np.ones(BATCH, np.float32))
    one, other = (np.asarray(prepare(x).advantages) for x in (plain, plain.replace(bootstrap=True)))
    ended, mask = np.asarray(samples.ended), np.asarray(samples.response_mask)
    expected = np.zeros((BATCH, LENGTH))
    expected[np.arange(BATCH), mask.sum(axis=1) - 1] = np.where(ended, 0.0, 0.9 * FINAL)
    assert 0 < ended.sum() < BATCH
    np.testing.assert_allclose(other - one, expected, atol=1e-5)


class Episodes(NamedTuple):
    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    response_mask: jax.Array
    ended: jax.Array
    discounts: jax.Array


def test_a_row_holds_several_episodes_by_discounts_that_the_samples_carry():
    samples = compiled(ACTOR.sample)(jax.random.key(5), PARAMS, lm.Prompts(jnp.zeros((BATCH, 2), int)))
    whole = samples._replace(response_mask=jnp.ones((BATCH, LENGTH), bool), ended=jnp.zeros(BATCH, bool))
    discounts = np.tile([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]], (BATCH // 2, 1))
    rows = Episodes(*whole, jnp.asarray(discounts, jnp.float32))
    prepare = functools.partial(_prepared, rows, np.tile(np.float32([1.0, 2.0, 4.0]), (BATCH, 1)))
    plain = prepare(recipes.make("reinforce", kl=None, discount=0.5))
    expected = [[1.0, 2.0 + 0.25 * 4.0, 4.0], [1.0 + 0.5 * 2.0, 2.0, 4.0]]
    np.testing.assert_allclose(plain.advantages, np.tile(expected, (BATCH // 2, 1)), rtol=1e-6)
    config = recipes.make("ppo", kl=None, whitening=None, discount=0.9, gae_lambda=0.0)
    with_critic = [np.asarray(prepare(config.replace(bootstrap=x)).advantages) for x in (False, True)]
    values = np.asarray(compiled(ACTOR.score)(PARAMS, whole).values)
    expected = [1.0 - values[0, 0], 2.0 + 0.9 * 0.5 * values[0, 2] - values[0, 1]]
    np.testing.assert_allclose(with_critic[0][0, :2], expected, rtol=1e-5)
    beyond = np.zeros((BATCH, LENGTH))
    beyond[:, -1] = 0.9 * discounts[:, -1] * FINAL
    np.testing.assert_allclose(with_critic[1] - with_critic[0], beyond, atol=1e-5)
    with pytest.raises(ValueError, match="advantage must be a function with an argument discounts"):
        prepare(recipes.make("dr_grpo", group_size=4))
    assert "discounts" not in config.settings


def test_the_value_after_the_last_column_is_that_of_the_longer_row():
    config = lm.ModelConfig(7, num_layers=1, width=8, num_heads=2, value_head=True)
    actor = lm.make_actor(config, 3)
    params = {"policy": rough(config, 0.5)}
    row = lambda tokens: lm.Samples(tokens, np.ones(tokens.shape, bool), None, np.ones((1, 3), bool), None)
    tokens = np.array([[1, 2, 3, 4, 5, 6]])
    longer = np.asarray(compiled(actor.score)(params, row(tokens)).values)[:, -1]
    final = compiled(actor.final_values)(params, row(tokens[:, :-1]))
    np.testing.assert_allclose(final, longer, atol=1e-5)


def test_without_a_critic_nothing_is_bootstrapped():
    with pytest.raises(ValueError, match="bootstrap must be False with value=None, got True"):
        recipes.make("grpo", bootstrap=True)
    blind = ACTOR._replace(final_values=None)
    with pytest.raises(ValueError, match=r"actor.final_values must be .* for bootstrap=True, got None"):
        ppo.make_collect_and_learn(blind, optax.sgd(0.1), recipes.make("ppo", bootstrap=True))


def test_at_a_coefficient_of_0_no_reference_is_kept_or_asked_and_one_may_be_a_function():
    asked = []
    watched = ACTOR._replace(
        reference=lambda params, *data, **how: asked.append(params) or ACTOR.reference(params, *data, **how)
    )
    optimizer, prompts = optax.sgd(0.1), lambda key: lm.Prompts(jnp.zeros((BATCH // 4, 2), jnp.int32))
    reward = lambda samples: samples.tokens[:, -1] * 1.0

    def iterate(config, ref_params=None):
        state = ppo.init(PARAMS, optimizer, config, ref_params)
        step = ppo.make_step(watched, reward, prompts, optimizer, config)
        return state, *jax.eval_shape(step, state, jax.random.key(1))

    free = recipes.make("dr_grpo", group_size=4, kl_coef=0.0)
    state, after, _ = iterate(free)
    assert state.ref_params is None is after.ref_params and not asked
    iterate(free, PARAMS)  # given one, the KL is measured
    assert len(asked) == 1
    shifted = lambda params: {"policy": jax.tree.map(lambda x: x - 1.0, params["policy"])}
    state, _, _ = iterate(recipes.make("grpo", group_size=4), shifted)
    assert len(asked) == 2 and not jax.tree.leaves(state.ref_params)
    assert set(asked[1]) == {"policy"}
