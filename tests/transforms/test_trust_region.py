"""Links that heed the policy's KL, by hand and inside PPO."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm, penalties, transforms
from proxlm.policy import ppo, recipes
from tests.arrays import numpy_normal as normal
from tests.policy import table_actor
from tests.policy.table_actor import compiled

PROX = transforms.apply_prox(penalties.l1(0.5), 0.1)
CHAIN = optax.chain(optax.adam(0.1), PROX)
NAN = float("nan")


def walk(tx, kls, size=5):
    """Updates with the given KLs; gives params and states after each."""
    params, path = normal(0, (size,)), []
    state, update = tx.init(params), jax.jit(tx.update)
    for i, kl in enumerate(kls):
        updates, state = update(normal(i, (size,)), state, params, approx_kl=kl)
        params = optax.apply_updates(params, updates)
        path.append((params, state))
    return path


def followed(kept):
    """The params to which the chain leads by the kept updates alone."""
    params = normal(0, (5,))
    state, update, path = CHAIN.init(params), jax.jit(CHAIN.update), []
    for i, keep in enumerate(kept):
        if keep:
            updates, state = update(normal(i, (5,)), state, params)
            params = optax.apply_updates(params, updates)
        path.append((params, state))
    return path


def close(one, other, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


KLS = jnp.array([0.0, 0.1, 0.11, 0.0, 0.3, 0.0, NAN, 0.0])
SKIPPED = [True, True, False, True, False, True, False, True]


def test_a_skip_lasts_for_one_minibatch(variant):
    tx = transforms.skip_on_kl(CHAIN, 0.1)
    path = variant(lambda kls: walk(tx, kls))(KLS)
    for (params, state), (expected, inner) in zip(path, followed(SKIPPED), strict=True):
        close((params, state.inner), (expected, inner), atol=1e-6)
    assert [int(state.skipped) for _, state in path] == np.cumsum(np.invert(SKIPPED)).tolist()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_dropped_update_is_zero_in_its_own_dtype_and_changes_no_bit_of_the_state(dtype):
    params = jnp.array(normal(0, (5,)), dtype)
    tx = transforms.skip_on_kl(CHAIN, 0.1)
    state = tx.init(params)
    give = lambda kl, state: tx.update(params, state, params, approx_kl=kl)
    kept, state = give(0.0, state)
    dropped, after = give(0.2, state)
    assert kept.dtype == dropped.dtype == dtype
    assert np.all(np.asarray(kept) != 0) and not np.any(dropped)
    table_actor.assert_equal(after.inner, state.inner)


def test_zeros_of_the_prox_outlive_a_dropped_update():
    path = walk(transforms.skip_on_kl(CHAIN, 0.1), [0.0, 0.0, 0.2, NAN], size=200)
    zeros = [np.asarray(params) == 0 for params, _ in path]
    assert 2 < np.sum(zeros[1]) < 100
    np.testing.assert_array_equal(zeros[2], zeros[1])
    np.testing.assert_array_equal(zeros[3], zeros[1])


def test_a_guard_hands_the_extra_arguments_on():
    tx = transforms.skip_on_kl(transforms.scale_by_kl(0.1), 1.0)
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), approx_kl=0.4)
    np.testing.assert_allclose(updates, 0.25)


@pytest.mark.slow
def test_many_limits_at_once_are_the_loop():
    limits = jnp.array([0.0, 0.1, 1.0])
    run = lambda limit: walk(transforms.skip_on_kl(CHAIN, limit), KLS)[-1]
    swept = jax.vmap(run)(limits)
    for i, limit in enumerate(limits):
        close(jax.tree.map(lambda leaf: leaf[i], swept), run(limit), atol=1e-6)  # noqa: B023


# Scaling


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, 2.0), (-1e-9, 2.0), (1e-30, 2.0), (0.02, 1.5), (0.03, 1.0), (0.06, 0.5), (9.0, 0.25)],
)
def test_the_factor_by_hand(kl, factor, variant):
    tx = transforms.scale_by_kl(0.03, least=0.25, most=2.0)
    move = variant(lambda kl: tx.update({"w": jnp.ones(2)}, tx.init(None), approx_kl=kl)[0])
    np.testing.assert_allclose(move(jnp.float32(kl))["w"], factor, rtol=1e-6)


def test_an_unknown_kl_takes_the_least_step():
    tx = transforms.scale_by_kl(0.03, least=0.25)
    assert tx.update(jnp.ones(1), tx.init(None), approx_kl=NAN)[0].item() == 0.25


def test_a_whole_step_keeps_its_bits_and_dtype():
    tx, updates = transforms.scale_by_kl(0.03), normal(0, (9,)).astype(jnp.bfloat16)
    scaled, _ = tx.update(updates, tx.init(None), approx_kl=jnp.float32(0.01))
    assert scaled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(scaled, updates)


# In PPO

ACTOR = table_actor.make(3, 3, 0)
PARAMS = table_actor.params(0, 3, 3)
PROMPTS = lambda key: lm.Prompts(jnp.zeros((8, 2), jnp.int32))
SETTINGS = {"num_epochs": 4, "num_minibatches": 2}
ADAM = optax.adam(0.05)


def reward(samples):
    return samples.tokens[:, -1] - 0.3 * samples.tokens[:, -2]


def iterations(tx, **overrides):
    """Two iterations; gives the state after each and metrics."""
    config, path = recipes.make("ppo", **SETTINGS | overrides), []
    step = compiled(ppo.make_step(ACTOR, reward, PROMPTS, tx, config))
    state = ppo.init(PARAMS, tx, config)
    for seed in (0, 1):
        state, metrics = step(state, jax.random.key(seed))
        path.append((state, metrics))
    return path


@pytest.mark.slow
def test_scaling_keeps_the_policy_nearer():
    config = recipes.make("ppo", **SETTINGS)

    @compiled
    def approx_kl(target):
        tx = optax.chain(ADAM, transforms.scale_by_kl(target, least=0.0))
        state = ppo.init(PARAMS, tx, config)
        return ppo.make_step(ACTOR, reward, PROMPTS, tx, config)(state, jax.random.key(0))[1].approx_kl

    free, held = approx_kl(1e3), approx_kl(0.001)
    assert 0 < held < 0.7 * free


# Bad input


def test_a_guard_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"inner must be an optax.GradientTransformation, got 0.1"):
        transforms.skip_on_kl(0.1, 0.1)
    for limit in (-0.1, NAN, None):
        with pytest.raises(ValueError, match=r"max_kl must be"):
            transforms.skip_on_kl(CHAIN, limit)
    with pytest.raises(ValueError, match=r"max_kl must be one number, got shape \(2,\)"):
        transforms.skip_on_kl(CHAIN, jnp.ones(2))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"target": 0.0}, r"target must be a number > 0"),
        ({"target": NAN}, r"target must be a number > 0"),
        ({"target": jnp.ones(2)}, r"target must be one number, got shape \(2,\)"),
        ({"least": -1.0}, r"least must be a number ≥ 0"),
        ({"most": NAN}, r"most must be a number ≥ 0"),
        ({"least": 2.0}, r"least must be at most most, got 2.0 and 1.0"),
    ],
)
def test_scaling_refuses_what_makes_no_sense(bad, words):
    with pytest.raises(ValueError, match=words):
        transforms.scale_by_kl(**({"target": 0.1} | bad))


@pytest.mark.parametrize("tx", [transforms.skip_on_kl(CHAIN, 0.1), transforms.scale_by_kl(0.1)])
def test_a_kl_that_was_not_given_is_asked_for(tx):
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r"update was not given approx_kl.*approx_kl=\.\.\."):
        tx.update(params, tx.init(params), params)
