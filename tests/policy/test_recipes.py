"""Every named algorithm as one step, and what its gradient is on average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm.policy import filters, partial, ppo, recipes, tabular
from proxlm.policy import losses as loss_lib
from proxlm.policy.advantages import batch, pass_k
from proxlm.policy.advantages import group as baselines
from tests.arrays import normal
from tests.policy import table_actor
from tests.policy.table_actor import compiled

BATCH, VOCAB, LENGTH, STOP, GROUP = 8, 3, 3, 0, 4
ACTOR = table_actor.make(VOCAB, LENGTH, STOP)
LEAKING = table_actor.leaking(ACTOR)
PARAMS, REFERENCE = (table_actor.params(seed, VOCAB, LENGTH) for seed in (0, 1))
LANGUAGE = tabular.Language(VOCAB, LENGTH, STOP)
SGD = optax.sgd(1.0)
PROMPTS = lambda key: lm.Prompts(jnp.zeros((BATCH, 2), jnp.int32))
ONE_STEP = {"num_epochs": 1, "num_minibatches": 1}
GROUPED = [name for name, recipe in recipes.RECIPES.items() if recipe.config.group_size > 1]
CLIPPED = {
    name
    for name, recipe in recipes.RECIPES.items()
    if recipe.config.loss.fn in (loss_lib.clipped, loss_lib.cispo, loss_lib.clip_cov, loss_lib.geometric_mean)
}
CRITICS = ("ppo", "ppo_kl", "mdpo", "vapo")


def config(name, **overrides):
    size = {"group_size": GROUP} if name in GROUPED else {}
    if name == "pass_at_k":  # the best of all 4 of a group is the same for each of them
        baseline = partial(pass_k.pass_at_k, k=1)
        size["advantage"] = partial(batch.group_advantages, baseline=baseline)
    return recipes.make(name, **ONE_STEP | size | overrides)


@functools.cache
def sampled():
    return compiled(ACTOR.sample)(jax.random.key(5), PARAMS, PROMPTS(None))


def rewards():
    """Different for every response, above and below 0, so that no group is of one kind."""
    return normal(3, (BATCH,)) * jnp.where(jnp.arange(BATCH) % 2, 1.0, -1.0)


GREEDY_REWARD = 0.4  # all prompts are the same, and so are their greedy answers


def rows(settings):
    """Samples and their rewards, with what a greedy baseline adds to them."""
    if not settings.greedy_baseline:
        return sampled(), rewards()
    greedy = compiled(ACTOR.greedy)(PARAMS, PROMPTS(None))
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), sampled(), greedy)
    return both, jnp.append(rewards(), jnp.full(BATCH, GREEDY_REWARD))


# The config is traced, so that settings which differ in numbers alone share a compilation.
@compiled
def learn(config, samples, rewards):
    state = ppo.init(PARAMS, SGD, config, REFERENCE)
    half = ppo.make_collect_and_learn(LEAKING, SGD, config)[1]
    return half(state, jax.random.key(4), samples, rewards)


QUICK = ("ppo", "grpo", "gspo")
EVERY = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in recipes.RECIPES]


def test_the_quick_recipes_are_recipes():
    assert set(QUICK) < set(recipes.RECIPES)


@pytest.mark.parametrize("name", EVERY)
def test_one_step_is_the_gradient_of_the_recipes_loss_and_masked_slots_change_no_bit(name):
    settings = config(name)
    samples, given = rows(settings)
    new, metrics = learn(settings, samples, given)
    assert all(np.isfinite(value) for name, value in metrics._asdict().items() if "clip_" not in name)
    assert (
        np.isfinite(metrics.clip_fraction_low) == np.isfinite(metrics.clip_fraction_high) == (name in CLIPPED)
    )
    np.testing.assert_allclose(metrics.first_ratio_error, 0.0, atol=1e-6)
    step = PARAMS["policy"]["logits"] - new.params["policy"]["logits"]

    values = PARAMS["critic"]["values"] if name in CRITICS else None
    loss = tabular.minibatch_loss(settings, values)
    own_rewards = rewards() - GREEDY_REWARD * settings.greedy_baseline
    gradient = compiled(jax.grad(lambda logits: loss(group_of_samples(logits, own_rewards))))
    expected = gradient(PARAMS["policy"]["logits"])
    np.testing.assert_allclose(step, expected, atol=2e-6)
    assert jnp.linalg.norm(expected) > 1e-3
    moved = jnp.any(new.params["critic"]["values"] != PARAMS["critic"]["values"])
    assert moved == (name in CRITICS)

    dirty = samples._replace(log_probs=jnp.where(samples.response_mask, samples.log_probs, jnp.nan))
    table_actor.assert_equal(learn(settings, dirty, given), (new, metrics))


def group_of_samples(logits, rewards):
    """The samples as the estimators of the enumerable language see them."""
    tokens, mask = sampled().tokens[:, -LENGTH:], sampled().response_mask
    states = table_actor.states(tokens, VOCAB)
    own, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(REFERENCE["policy"]["logits"])
    said = lambda table: table[states, tokens]
    return tabular.Group(
        said(own), own[states], sampled().log_probs, said(ref), ref[states], rewards, tokens, mask, states
    )


@pytest.mark.slow
def test_numbers_of_a_recipe_are_traced_whatever_part_they_are_in():
    settings, traces, samples = config("sapo"), [], sampled()

    @compiled
    def run(config):
        traces.append(config)
        state = ppo.init(PARAMS, SGD, config, REFERENCE)
        half = ppo.make_collect_and_learn(ACTOR, SGD, config)[1]
        return half(state, jax.random.key(4), samples, rewards())[0].params["policy"]["logits"]

    ends = []
    for tau in (1.0, 2.0):
        ends.append(run(settings.replace(tau_positive=tau, kl_coef=tau / 10)))
    assert len(traces) == 1 and jnp.any(ends[0] != ends[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dapo", "cispo", "reinforce++"])
def test_recipes_run_side_by_side_in_one_vmap(name):
    def end(rate, settings):
        optimizer = optax.sgd(rate)
        state = ppo.init(PARAMS, optimizer, settings, REFERENCE)
        step = ppo.make_step(ACTOR, lambda samples: rewards(), PROMPTS_OF_GROUPS, optimizer, settings)
        return step(state, jax.random.key(2))[0].params["policy"]["logits"]

    settings = config(name) if name in GROUPED else config(name, group_size=GROUP)
    many = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x), jnp.asarray(x) * 1.5]), settings)
    rates = jnp.array([0.5, 1.0])
    both = compiled(jax.vmap(end))(rates, many)
    for i in range(2):
        one = compiled(end)(rates[i], jax.tree.map(lambda x, i=i: x[i], many))
        np.testing.assert_allclose(both[i], one, atol=1e-5)


PROMPTS_OF_GROUPS = lambda key: lm.Prompts(jax.random.randint(key, (BATCH // GROUP, 2), 0, VOCAB))


def test_every_prompt_is_answered_by_its_group():
    settings = config("grpo")
    collect, _ = ppo.make_collect_and_learn(ACTOR, SGD, settings)
    state = ppo.init(PARAMS, SGD, settings)
    samples = compiled(collect)(state, jax.random.key(0), PROMPTS_OF_GROUPS(jax.random.key(7)))
    prompts = np.asarray(samples.tokens[:, :2]).reshape(BATCH // GROUP, GROUP, 2)
    assert samples.tokens.shape[0] == BATCH and (prompts == prompts[:, :1]).all()
    assert (prompts[0] != prompts[1]).any()


@pytest.mark.slow
def test_groups_without_variety_are_left_out_of_the_mean():
    same = jnp.arange(BATCH) < GROUP
    scores = jnp.where(same, 1.0, rewards())
    settings = config("dapo", length_penalty=None)
    half, whole = (
        learn(settings.replace(group_filter=keep), sampled(), scores)[0]
        for keep in (settings.group_filter, None)
    )
    moved = lambda state: state.params["policy"]["logits"] - PARAMS["policy"]["logits"]
    tokens = jnp.sum(sampled().response_mask, axis=1)
    share = jnp.sum(tokens) / jnp.sum(jnp.where(same, 0, tokens))
    np.testing.assert_allclose(moved(half), share * moved(whole), atol=1e-6)


def test_a_sampler_that_is_not_the_old_policy_is_corrected_for():
    settings = config("tis", kl_coef=0.1)
    twice = sampled()._replace(log_probs=sampled().log_probs + np.float32(np.log(2.0)))
    (new, metrics), (expected, _) = (learn(settings, x, rewards()) for x in (twice, sampled()))
    moved = lambda state: state.params["policy"]["logits"] - PARAMS["policy"]["logits"]
    # the ratio and the KL are those of the old policy, every token weighs a half
    np.testing.assert_allclose(metrics.first_ratio_error, 0.0, atol=1e-6)
    np.testing.assert_allclose(moved(new), 0.5 * moved(expected), atol=1e-6)
    assert jnp.linalg.norm(moved(new)) > 1e-3


@pytest.mark.slow
def test_a_recipe_of_ones_own_is_a_function_and_a_config():
    def bold(log_probs, old_log_probs, advantages, mask):
        return loss_lib.kl_penalty(log_probs, old_log_probs, 2.0 * advantages, mask, coef=0.0)

    own = ppo.PPOConfig(
        group_size=GROUP,
        loss=bold,
        kl=ppo.KL(coef=0.0),
        value=None,
        aggregation="sequence_sum",
        advantage=partial(batch.group_advantages, baseline=partial(baselines.centred)),
        whitening=None,
        **ONE_STEP,
    )
    plain = dataclasses.replace(own, loss=partial(loss_lib.policy_gradient))
    ends = [learn(each, sampled(), rewards())[0].params["policy"]["logits"] for each in (own, plain)]
    moved = [end - PARAMS["policy"]["logits"] for end in ends]
    np.testing.assert_allclose(moved[0], 2.0 * moved[1], atol=1e-6)


@pytest.mark.slow
def test_a_transformer_without_a_critic_learns_by_comparison():
    model = lm.ModelConfig(6, num_layers=1, width=8, num_heads=2)
    actor = lm.make_actor(model, 4, critic=False)
    settings = config("grpo")
    prompts = lambda key: lm.Prompts(jnp.zeros((2, 2), jnp.int32))
    reward = lambda samples: jnp.mean(samples.tokens[:, 2:] < 3, axis=1)
    step = ppo.make_step(actor, reward, prompts, SGD, settings)
    state = ppo.init(actor.init(jax.random.key(0)), SGD, settings)
    _, metrics = compiled(step)(state, jax.random.key(1))
    assert metrics.value_loss == metrics.explained_variance == 0 and metrics.grad_norm > 0


def test_advantages_that_need_a_critic_refuse_an_actor_without_one():
    actor = lm.make_actor(lm.ModelConfig(6, num_layers=1, width=8, num_heads=2), 4, critic=False)
    reward = lambda samples: jnp.mean(samples.tokens[:, 2:] < 3, axis=1)
    prompts = lambda key: lm.Prompts(jnp.zeros((2, 2), jnp.int32))
    init = lambda: ppo.init(actor.init(KEY), SGD, config("grpo"))
    with pytest.raises(ValueError, match="These advantages need a critic"):
        jax.eval_shape(lambda: ppo.make_step(actor, reward, prompts, SGD, config("ppo"))(init(), KEY))


KEY = jax.random.key(0)


def test_a_loss_beside_the_policys_is_added_to_every_minibatch():
    settings = config("grpo", num_epochs=2)

    def auxiliary(params, key):
        # a slope of its own for every update
        return jnp.sum(params["policy"]["logits"][0] * jax.random.normal(key, (VOCAB,)))

    def remember(updates, state, params=None):
        seen = jnp.concatenate([state[1:], updates["policy"]["logits"][None]])
        return jax.tree.map(jnp.zeros_like, updates), seen

    logits = PARAMS["policy"]["logits"]
    optimizer = optax.GradientTransformation(lambda params: jnp.zeros((2, *logits.shape)), remember)
    state = ppo.init(PARAMS, optimizer, settings, REFERENCE)
    half = ppo.make_collect_and_learn(ACTOR, optimizer, settings, auxiliary)[1]
    # without a finite reward it is alone
    slopes = compiled(half)(state, KEY, sampled(), jnp.full(BATCH, jnp.nan))[0].opt_state
    assert all(jnp.linalg.norm(slope[0]) > 0.1 for slope in slopes)
    assert jnp.max(jnp.abs(slopes[0] - slopes[1])) > 0.1
    assert not jnp.any(slopes[:, 1:])


# On average


def normal64(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def mean_gradient(settings, values=None, size=2):
    """The expected step of a recipe on a language with a stop token, and the true gradient."""
    x, ref = normal64(0, 13, 3), jax.nn.log_softmax(normal64(1, 13, 3))
    scores = normal64(2, len(tabular.outcomes(LANGUAGE).tokens))
    loss = tabular.minibatch_loss(dataclasses.replace(settings, **ONE_STEP), values)

    def run(x):
        options = {"group_size": size, "ref_log_probs": ref}
        return tabular.expected_value_and_grad(loss, x, scores, LANGUAGE, **options)[1]

    goal = lambda x: tabular.objective(jax.nn.log_softmax(x), scores, LANGUAGE, ref, settings.kl.coef)
    return -jax.jit(run)(x), jax.jit(jax.grad(goal))(x)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("rloo", 3),
        ("reinforce", 2),
        pytest.param("rloo", 2, marks=pytest.mark.slow),
        pytest.param("reinforce", 3, marks=pytest.mark.slow),
    ],
)
def test_recipes_that_are_unbiased(name, size):
    with jax.enable_x64(True):
        group = {"group_size": size} if name == "rloo" else {}
        ours, truth = mean_gradient(recipes.make(name, kl_coef=0.3, **group), size=size)
        np.testing.assert_allclose(ours, truth, atol=1e-10)


def test_ppo_with_a_long_sight_is_unbiased_whatever_its_critic():
    with jax.enable_x64(True):
        settings = recipes.make(
            "ppo", gae_lambda=1.0, whitening=None, aggregation="sequence_sum", kl_coef=0.3
        )
        ours, truth = mean_gradient(settings, values=normal64(3, 13), size=1)
        np.testing.assert_allclose(ours, truth, atol=1e-10)


def test_dr_grpo_is_the_truth_but_for_a_factor():
    with jax.enable_x64(True):
        ours, truth = mean_gradient(recipes.make("dr_grpo", group_size=2))
        np.testing.assert_allclose(ours, truth / 2 / LENGTH, atol=1e-10)


TILTED = ["grpo", *(pytest.param(x, marks=pytest.mark.slow) for x in ("gspo", "dapo"))]


@pytest.mark.parametrize("name", TILTED)
def test_recipes_that_are_tilted(name):
    with jax.enable_x64(True):
        settings = recipes.make(name, group_size=2, kl_coef=0.0)
        ours, truth = (x.ravel() for x in mean_gradient(settings))
        cosine = ours @ truth / jnp.linalg.norm(ours) / jnp.linalg.norm(truth)
        assert 0.3 < cosine < 0.999


# Bad input


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gppo", {}, r"name must be one of 'ppo', .*'dapo', .*, got 'gppo'"),
        ("gspo", {"level": "word"}, "level must be one of 'token', .*, got 'word'"),
        ("grpo", {"group_size": 0}, "group_size must be an integer ≥ 1, got 0"),
        ("grpo", {"group_size": 1}, "group_size must be an integer ≥ 2, got 1. The answers of a group"),
        ("ppo", {"group_filter": filters.reward_varies}, "rewards must be of a group of 2 or more"),
        ("grpo", {"greedy_baseline": True}, "greedy_baseline must be False with group advantages"),
        ("grpo", {"kl_coef": -0.1}, r"coef must be a number ≥ 0, got -0\.1"),
        ("grpo", {"epsilon": 0.2}, "Say baseline_epsilon or clip_low and clip_high of the ratio"),
        ("grpo", {"beta": 0.1}, r"beta must be a setting of 'grpo', got 0\.1\. Say kl_coef\. .* clip_low, "),
        ("grpo", {"discount": 0.9}, r"discount must be a setting of 'grpo', got 0\.9"),
        ("grpo", {"value_coef": 0.1}, r"value_coef must be .* It has value=None: give it a Value first"),
        ("grpo", {"value": ppo.Value()}, r"value must be None, got Value\(.* take advantages.gae_advantages"),
        ("sapo", {"clip_low": 0.1}, "clip_low must be a setting of 'sapo'"),
        ("tis", {"level": "product"}, "Say correction_level or loss_level"),
        ("dapo", {"kl_target": 1.0}, "coef must be a number > 0 with a target, got 0.0"),
        ("ppo", {"clip_low": None}, "clipped: clip_low must be one real number, got None"),
        ("ppo", {"kl_coef": None}, "kl_coef must be a number, got None. Give kl=None for none"),
        ("ppo", {"loss": None}, "loss must be a function, got None"),
        ("cispo", {"clip_high": -2.0}, r"clip_high must be a number ≥ 0, got -2\.0"),
    ],
)
def test_what_a_recipe_does_not_have_is_refused_and_what_it_has_is_named(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        recipes.make(name, **overrides)


def test_a_batch_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(ValueError, match="batch size must be a multiple of group_size=3, got 8"):
        learn(config("grpo", group_size=3), sampled(), rewards())


def test_a_partial_is_a_pytree_of_its_numbers():
    one = partial(batch.group_advantages, baseline=partial(baselines.group_relative, epsilon=0.1, ddof=0))
    assert jax.tree.leaves(one) == [0.1]
    two = partial(batch.group_advantages, baseline=partial(baselines.group_relative, epsilon=0.2, ddof=0))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.structure(one) != jax.tree.structure(one.replace(baseline=filters.reward_varies))
