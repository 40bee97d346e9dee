"""A whole iteration against plain loops: rewards, advantages, minibatches, losses and Adam."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm.policy import ppo, recipes
from tests.arrays import normal
from tests.policy import ppo_reference, table_actor
from tests.policy.table_actor import compiled

BATCH, VOCAB, LENGTH = 12, 4, 4
TABLE = table_actor.make(VOCAB, LENGTH, stop_token=0)
# A large epsilon: a small one would turn the last bit of a tiny gradient into a step.
ADAM = (0.2, 0.9, 0.99, 1e-2)
LOSS = {"kl_placement": "loss", "kl_coef": 0.3}
SETTINGS = {
    "as it comes": {},
    "k3 in the reward": {
        "kl_estimator": "k3",
        "whitening_rewards": True,
        "whitening_ddof": 1,
        "missing_eos_penalty": 0.5,
    },
    "exact in the reward": {
        "kl_estimator": "exact",
        "kl_coef": 0.3,
        "whitening": None,
        "value_clip": None,
        "aggregation": "sequence_sum",
    },
    "k1 in the loss": LOSS,
    "k2 in the loss": LOSS | {"kl_estimator": "k2"},
    "k3 in the loss": LOSS | {"kl_estimator": "k3", "aggregation": "constant"},
    "exact in the loss": LOSS | {"kl_estimator": "exact", "aggregation": "sequence"},
    "all numbers": {
        "discount": 0.9,
        "gae_lambda": 0.6,
        "clip_low": 0.1,
        "clip_high": 0.3,
        "dual_clip": 1.5,
        "value_clip": 0.1,
        "value_coef": 0.7,
        "entropy_coef": 0.2,
        "whitening_epsilon": 0.1,
        "num_minibatches": 3,
        "num_microbatches": 2,
    },
}


@functools.partial(compiled, static_argnames="actor")
def sample(key, params, prompts, actor):
    return actor.sample(key, params, prompts)


def check(actor, params, ref_params, prompts, overrides, adam=ADAM):
    config = recipes.make("ppo", **{"num_epochs": 2, "num_minibatches": 2, "kl_coef": 0.2} | overrides)
    rate, b1, b2, epsilon = adam
    optimizer = optax.adam(rate, b1=b1, b2=b2, eps=epsilon)
    state = ppo.init(params, optimizer, config, ref_params)
    samples = sample(jax.random.key(1), params, prompts, actor)
    rewards = 2.0 * normal(3, (BATCH,))
    _, learn = ppo.make_collect_and_learn(actor, optimizer, config)
    new, metrics = compiled(learn)(state, jax.random.key(4), samples, rewards)
    expected = ppo_reference.learn(
        params, ref_params, jax.random.key(4), samples, rewards, actor, config, adam
    )
    table_actor.assert_close(new.params, expected, atol=1e-5)
    return state, new, samples, metrics


QUICK = ("exact in the loss", "all numbers")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(overrides, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, overrides in SETTINGS.items()
    ],
)
def test_an_iteration_is_what_plain_loops_make_of_it(overrides):
    params, ref_params = (table_actor.params(seed, VOCAB, LENGTH) for seed in (0, 1))
    prompts = lm.Prompts(jnp.zeros((BATCH, 2), jnp.int32))
    state, new, samples, metrics = check(TABLE, params, ref_params, prompts, overrides)
    # The comparison has to see both ends of a response and both sides of the clip.
    assert 0 < metrics.ended < 1 and not np.all(samples.response_mask)
    assert metrics.clip_fraction_low > 0 and metrics.clip_fraction_high > 0
    table_actor.assert_equal(new.ref_params, ref_params)
    gap = samples.log_probs - TABLE.reference(ref_params, samples).log_probs
    gap = np.where(samples.response_mask, gap, 0.0)
    np.testing.assert_allclose(metrics.kl, gap.sum(axis=1).mean(), atol=1e-5)
    assert new.iteration == 1 and new.kl_coef == state.kl_coef


@pytest.mark.slow
@pytest.mark.parametrize("separate", [False, True], ids=["shared head", "separate critic"])
def test_an_iteration_of_a_transformer_is_what_plain_loops_make_of_it(separate):
    sizes = {"num_layers": 1, "width": 8, "num_heads": 2, "hidden_width": 8, "init_scale": 0.5}
    policy = lm.ModelConfig(6, value_head=not separate, **sizes)
    critic = lm.ModelConfig(6, lm_head=False, value_head=True, **sizes) if separate else None
    sampling = lm.SamplingConfig(temperature=0.8, stop_token=2)
    actor = lm.make_actor(policy, 4, critic=critic, sampling=sampling)
    init = compiled(actor.init)
    params = init(jax.random.key(0))
    # A zero head values everything alike, and a comparison of zeros would prove little.
    params["critic" if separate else "policy"]["value"]["kernel"] = normal(7, (8,))
    ref_params = init(jax.random.key(9))
    tokens = jax.random.randint(jax.random.key(5), (BATCH, 3), 0, 6)
    mask = jnp.arange(3)[None] >= (jnp.arange(BATCH) % 3)[:, None]
    prompts = lm.Prompts(tokens, mask)
    check(actor, params, ref_params, prompts, {}, adam=(0.01, 0.9, 0.99, 1e-2))
