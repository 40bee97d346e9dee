"""The actor: what a policy, a critic and a sampler are when PPO looks at them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from tests.arrays import normal, rough
from tests.policy.table_actor import compiled

SIZES = {"num_layers": 1, "width": 8, "num_heads": 2, "hidden_width": 8, "init_scale": 0.6}
POLICY = lm.ModelConfig(7, **SIZES)
SHARED = lm.ModelConfig(7, value_head=True, **SIZES)
CRITIC = lm.ModelConfig(7, lm_head=False, value_head=True, **SIZES)
SAMPLING = lm.SamplingConfig(temperature=0.8, top_k=5, top_p=0.95, min_p=0.05, stop_token=3)
BATCH, LENGTH, NUM_TOKENS = 12, 4, 6
RAGGED = np.arange(LENGTH)[None] >= (np.arange(BATCH) % LENGTH)[:, None]
PROMPTS = lm.Prompts(np.random.default_rng(2).integers(0, 7, (BATCH, LENGTH)), RAGGED)
ACTORS = {
    "shared": lm.make_actor(SHARED, NUM_TOKENS, sampling=SAMPLING),
    "separate": lm.make_actor(POLICY, NUM_TOKENS, critic=CRITIC, sampling=SAMPLING),
}


@functools.cache
def case(name):
    """An actor, its parameters with a value head that is not 0, and samples of ragged prompts."""
    actor = ACTORS[name]
    if name == "shared":
        params = {"policy": rough(SHARED, 0.6)}
    else:
        params = compiled(actor.init)(jax.random.key(0))
        params["critic"]["value"] = {"kernel": normal(1, (8,)), "bias": jnp.float32(0.5)}
    samples = compiled(actor.sample)(jax.random.key(3), params, PROMPTS)
    return actor, params, jax.tree.map(np.asarray, samples)


@functools.cache
def scored(name):
    return compiled(functools.partial(ACTORS[name].score, full=True))


@functools.cache
def scores(name):
    return jax.tree.map(np.asarray, scored(name)(*case(name)[1:]))


@pytest.mark.parametrize("name", ACTORS)
def test_scoring_what_was_sampled_gives_its_log_probs(name):
    _, _, samples = case(name)
    mask = samples.response_mask
    assert 0 < samples.ended.mean() < 1 and not mask.all()
    np.testing.assert_allclose(scores(name).log_probs[mask], samples.log_probs[mask], atol=1e-5, rtol=0)


def test_greedy_answers_are_the_likeliest_tokens_up_to_the_end():
    actor, params, samples = case("shared")
    prompts = lm.Prompts(samples.tokens[:, :LENGTH], samples.mask[:, :LENGTH])
    answers = jax.tree.map(np.asarray, compiled(actor.greedy)(params, prompts))
    # scored as sampled tokens are: at every place the distribution is of the same history
    likeliest = np.argmax(scored("shared")(params, answers).distribution, axis=2)
    mask = answers.response_mask
    np.testing.assert_array_equal(likeliest[mask], answers.tokens[:, LENGTH:][mask])
    assert 0 < answers.ended.sum() < BATCH
    assert np.any(answers.tokens[:, LENGTH:][mask] != samples.tokens[:, LENGTH:][mask])


@pytest.mark.parametrize("name", ["separate", pytest.param("shared", marks=pytest.mark.slow)])
def test_the_reference_is_the_tempered_policy_without_truncation_and_critic(name):
    actor, params, samples = case(name)
    reference = compiled(functools.partial(actor.reference, full=True))({"policy": params["policy"]}, samples)
    config = {"shared": SHARED, "separate": POLICY}[name]
    score = functools.partial(lm.score, config=config, start=LENGTH, full=True)
    tempered = lm.SamplingConfig(temperature=0.8)
    expected = compiled(score)(params["policy"], samples.tokens, mask=samples.mask, sampling=tempered)
    for field in ("log_probs", "entropy", "distribution"):
        np.testing.assert_allclose(getattr(reference, field), getattr(expected, field), atol=1e-6, rtol=0)
    assert np.isfinite(reference.distribution).all() and np.isinf(scores(name).distribution).any()
    if name == "separate":
        assert reference.values is None


@pytest.mark.parametrize("name", ["separate", pytest.param("shared", marks=pytest.mark.slow)])
def test_values_are_those_of_the_states_before_the_tokens(name):
    _, params, samples = case(name)
    part, config = {"shared": ("policy", SHARED), "separate": ("critic", CRITIC)}[name]
    tree = params[part]
    everywhere = compiled(
        lambda tree: lm.values(tree, lm.encode(tree, samples.tokens, config, mask=samples.mask), config)
    )(tree).reshape(BATCH, LENGTH + NUM_TOKENS)
    np.testing.assert_allclose(scores(name).values, everywhere[:, LENGTH - 1 : -1], atol=1e-5, rtol=0)
    # A token changes the values after it, and neither its own nor those before.
    other = np.where(np.arange(LENGTH + NUM_TOKENS) == LENGTH + 2, (samples.tokens + 1) % 7, samples.tokens)
    after = scored(name)(params, samples._replace(tokens=other)).values
    changed = (np.abs(after - scores(name).values) > 1e-4) & samples.response_mask
    assert not changed[:, :3].any() and changed[:, 3].any()


@pytest.mark.parametrize("name", ACTORS)
def test_only_a_shared_critic_reaches_the_policy(name):
    actor, params, samples = case(name)
    total = lambda tree: jnp.sum(actor.score(tree, samples).values * samples.response_mask)
    gradient = compiled(jax.grad(total))(params)
    reached = [np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient["policy"])]
    assert any(reached) == (name == "shared")
    if name == "separate":
        assert jnp.any(gradient["critic"]["embedding"]["kernel"] != 0)


def test_policy_and_critic_start_from_keys_of_their_own():
    _, params, _ = case("separate")
    assert set(params) == {"policy", "critic"} and set(case("shared")[1]) == {"policy"}
    kernels = [params[part]["embedding"]["kernel"] for part in ("policy", "critic")]
    assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_an_early_exit_changes_no_token():
    _, params, samples = case("shared")
    early = lm.make_actor(SHARED, NUM_TOKENS, sampling=SAMPLING, early_exit=True)
    again = compiled(early.sample)(jax.random.key(3), params, PROMPTS)
    np.testing.assert_array_equal(again.tokens, samples.tokens)
    np.testing.assert_array_equal(again.response_mask, samples.response_mask)


@pytest.mark.parametrize(
    ("policy", "critic", "message"),
    [
        (CRITIC, None, "policy.lm_head must be True, got False"),
        (POLICY, None, r"policy.value_head must be True without a critic, got False.* critic=False"),
        (POLICY, POLICY, "critic.value_head must be True, got False"),
    ],
)
def test_models_without_their_heads_are_refused(policy, critic, message):
    with pytest.raises(ValueError, match=message):
        lm.make_actor(policy, NUM_TOKENS, critic=critic)


def test_a_stop_token_outside_the_vocabulary_is_refused_at_once():
    for outside in (SHARED.vocab_size, (1, SHARED.vocab_size), -1):
        with pytest.raises(ValueError, match="stop_token must be from 0 to"):
            lm.make_actor(SHARED, NUM_TOKENS, sampling=lm.SamplingConfig(stop_token=outside))


@pytest.mark.parametrize("arguments", [{"num_tokens": 2.5}, {"sampling": {"top_k": 2}}, {"critic": "big"}])
def test_bad_arguments_are_named_at_construction(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"make_actor: {name} must be"):
        lm.make_actor(SHARED, **{"num_tokens": NUM_TOKENS} | arguments)
