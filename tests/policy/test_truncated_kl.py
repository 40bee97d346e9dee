"""The KL to the reference where sampling is truncated: one support for all estimators."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm._decoding import distribution
from proxlm.lm import _chunks
from proxlm.policy import kl, ppo, recipes
from proxlm.policy._iteration import grouping
from proxlm.policy._iteration import reference as reference_lib
from tests import arrays
from tests.policy.table_actor import compiled

VOCAB, LENGTH = 4, 2
MODEL = lm.ModelConfig(VOCAB, num_layers=1, width=8, num_heads=2, value_head=True, init_scale=0.9)
SAMPLINGS = {
    "top-k": lm.SamplingConfig(top_k=2, temperature=0.7),
    "top-p": lm.SamplingConfig(top_p=0.9),
    "min-p": lm.SamplingConfig(min_p=0.2),
}


def actor_of(sampling):
    return lm.make_actor(MODEL, LENGTH, sampling=sampling)


INIT = jax.jit(actor_of(lm.SamplingConfig()).init)


def params_of(seed, scale=1.5):
    return jax.tree.map(lambda x: jnp.asarray(scale * np.asarray(x)), INIT(jax.random.key(seed)))


def everything_said(actor, params):
    """Every response that the actor can give to one prompt, and its probability."""
    responses = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    tokens = np.concatenate([np.ones((len(responses), 1), int), responses], axis=1)
    # a score counts a token as sampled; whether it can be is in the truncated distribution itself
    law = jax.jit(lambda p: distribution.log_probs(lm.apply(p, tokens, MODEL)[:, :-1], actor.sampling))
    said = np.take_along_axis(np.asarray(law(params["policy"])), responses[:, :, None], axis=2)[:, :, 0]
    probability = np.exp(said.sum(axis=1))
    possible = probability > 0
    tokens, said, true = tokens[possible], said[possible], np.ones(said[possible].shape, bool)
    return lm.Samples(tokens, np.ones(tokens.shape, bool), said, true, true[:, 0]), probability[possible]


@pytest.mark.parametrize(
    "name", ["top-k", *(pytest.param(x, marks=pytest.mark.slow) for x in ("top-p", "min-p"))]
)
def test_no_estimator_is_negative_on_average_and_the_unbiased_ones_agree(name):
    actor, params, reference = actor_of(SAMPLINGS[name]), params_of(1), params_of(2)
    samples, probability = everything_said(actor, params)
    assert 1 < len(probability) < VOCAB**LENGTH
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-5)

    def mean(estimator, params):
        config = recipes.make("ppo", kl_estimator=estimator)
        state = ppo.init(params, optax.identity(), config, reference)
        _, found = reference_lib.compare(state, samples, grouping.grouped(actor, 1), config)
        return jnp.sum(probability[:, None] * found.penalty, axis=0)

    every = lambda: {name: mean(name, params) for name in ("k1", "k2", "k3", "exact")}
    # the gradient that a KL in the loss adds
    loss = lambda policy: jnp.sum(mean("exact", {"policy": policy}))

    means, slope = compiled(lambda: (every(), jax.grad(loss)(params["policy"])))()
    slopes = [np.asarray(x) for x in jax.tree.leaves(slope)]
    assert np.all(np.isfinite(np.concatenate([x.ravel() for x in slopes])))
    assert max(np.abs(x).max() for x in slopes) > 1e-3
    for estimator, value in means.items():
        assert np.all(value >= 0), estimator
    assert np.sum(means["exact"]) > 1e-2
    np.testing.assert_allclose(means["k1"], means["exact"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(means["k3"], means["exact"], rtol=1e-4, atol=1e-6)


def test_the_reference_is_renormalised_on_what_the_policy_can_say():
    policy = jnp.log(jnp.array([0.26, 0.25, 0.25, 0.24]))
    reference = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    truncated = distribution.log_probs(policy, lm.SamplingConfig(top_k=1))
    np.testing.assert_allclose(kl.log_mass(reference, truncated), np.log(0.4), rtol=1e-6)
    np.testing.assert_allclose(kl.log_mass(reference, policy), 0.0, atol=1e-6)
    restricted = reference - kl.log_mass(reference, truncated)
    np.testing.assert_allclose(kl.exact(truncated, restricted), 0.0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "estimator"), [("reward", "exact"), ("loss", "exact"), ("loss", "k3")])
def test_a_hundred_truncated_iterations_are_finite(placement, estimator):
    actor, optimizer = actor_of(SAMPLINGS["top-k"]), optax.adam(1e-2)
    config = recipes.make(
        "ppo", kl_placement=placement, kl_estimator=estimator, kl_coef=0.1, num_epochs=1, num_minibatches=1
    )
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (8, 2), 0, VOCAB))
    reward = lambda samples: jnp.mean(samples.tokens[:, 2:] == 1, axis=1)
    step = ppo.make_step(actor, reward, prompts, optimizer, config)
    state = ppo.init(params_of(1), optimizer, config, params_of(2))
    keys = jax.random.split(jax.random.key(0), 100)
    state, metrics = compiled(lambda state: jax.lax.scan(step, state, keys))(state)
    assert np.all(metrics.finite)
    for name in ("reward", "kl", "policy_loss", "grad_norm"):
        assert np.all(np.isfinite(getattr(metrics, name))), name
    np.testing.assert_allclose(metrics.first_ratio_error, 0.0, atol=1e-4)


def test_without_truncation_the_reference_is_the_whole_one():
    actor, params, reference = actor_of(lm.SamplingConfig(temperature=0.7)), params_of(1), params_of(2)
    samples, _ = everything_said(actor, params)
    config = recipes.make("ppo", kl_estimator="k3")
    state = ppo.init(params, optax.identity(), config, reference)

    @compiled
    def both():
        _, found = reference_lib.compare(state, samples, grouping.grouped(actor, 1), config)
        return found.penalty, kl.k3(samples.log_probs, actor.reference(reference, samples).log_probs)

    np.testing.assert_array_equal(*both())
    assert not reference_lib.truncates(actor)


def test_the_exact_kl_by_chunks_is_that_of_whole_distributions_in_less_memory(monkeypatch):
    model = lm.ModelConfig(2048, num_layers=1, width=8, num_heads=2, value_head=True, init_scale=0.9)
    by_chunks = lm.make_actor(model, 16, sampling=lm.SamplingConfig(top_k=5))
    whole = by_chunks._replace(
        score=lambda params, samples, full=False: by_chunks.score(params, samples, full),
        reference=lambda params, samples, full=False: by_chunks.reference(params, samples, full),
    )
    config = recipes.make(
        "ppo", kl=ppo.KL(1.0, "loss", "exact"), num_epochs=1, num_minibatches=1, num_microbatches=2
    )
    params, other = ({"policy": arrays.rough(model, scale)} for scale in (0.5, 0.6))
    state, true = ppo.init(params, optax.sgd(1.0), config, other), np.ones((4, 17), bool)
    tokens = np.random.default_rng(0).integers(0, 2048, (4, 17))
    samples = lm.Samples(tokens, true, np.full((4, 16), -1.0, np.float32), true[:, 1:], true[:, 0])
    args = state, jax.random.key(0), samples, np.arange(4.0, dtype=np.float32)

    def learn(actor):
        _, run = ppo.make_collect_and_learn(actor, optax.sgd(1.0), config)
        program = jax.jit(run).lower(*args).compile()
        return program(*args), program.memory_analysis().temp_size_in_bytes

    (expected, metrics), memory = learn(whole)
    monkeypatch.setattr(_chunks, "LARGE", 2048)
    monkeypatch.setattr(_chunks, "CHUNK", 2048 * 3)
    found, less = learn(by_chunks)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, (expected, metrics)
    )
    distribution = 4 * 16 * 2048 * 4
    assert metrics.kl > 0 and less < distribution < 3 * distribution < memory
