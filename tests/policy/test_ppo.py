"""Laws of the iteration: what it counts, skips, repeats and refuses."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm.policy import actors, filters, partial, ppo, recipes
from proxlm.policy._iteration import experience
from proxlm.policy._iteration import prompts as prompt_lib
from proxlm.policy.advantages import batch, returns
from tests.arrays import normal
from tests.policy import table_actor
from tests.policy.table_actor import compiled

BATCH, VOCAB, LENGTH, STOP = 8, 3, 3, 0
ACTOR = table_actor.make(VOCAB, LENGTH, STOP)
LEAKING = table_actor.leaking(ACTOR)
PARAMS = table_actor.params(0, VOCAB, LENGTH)
WORTHLESS = PARAMS | {"critic": jax.tree.map(jnp.zeros_like, PARAMS["critic"])}
REFERENCE = table_actor.params(1, VOCAB, LENGTH)
PROMPTS = lambda key: lm.Prompts(jnp.zeros((BATCH, 2), jnp.int32))
SMALL = {"num_epochs": 3, "num_minibatches": 2, "kl_coef": 0.2}
# With every part that watches the KL, and a limit that is never reached: one program for most tests.
WATCHFUL = SMALL | {"kl_target": 1.0, "kl_horizon": 100.0, "max_kl": 1e3}
ADAM, SGD = optax.adam(0.1), optax.sgd(1.0)
KEY = jax.random.key(5)


def counting():
    """An optimizer that counts its updates, has a rate for each, and keeps what it is handed."""

    def init(params):
        return {"count": jnp.int32(0), "rates": jnp.ones(8), "kl": -jnp.ones(8), "pull": jnp.zeros(8)}

    def update(updates, state, params=None, *, approx_kl, **extra):
        count, rate = state["count"], state["rates"][state["count"]]
        kept = state | {
            "count": count + 1,
            "kl": state["kl"].at[count].set(approx_kl),
            "pull": state["pull"].at[count].set(-jnp.sum(updates["critic"]["values"])),
        }
        return jax.tree.map(lambda x: -rate * x, updates), kept

    return optax.GradientTransformationExtraArgs(init, update)


COUNTED = counting()


def reward(samples):
    """The number of 2s in the response, by which responses differ."""
    says = (samples.tokens[:, -LENGTH:] == 2) & samples.response_mask
    return jnp.sum(says, axis=1) - jnp.float32(0.3) * samples.tokens[:, -LENGTH]


# The config is traced, so that settings which differ in numbers alone share a compilation.
@compiled
def _iterate(config, state, key, rate):
    return ppo.make_step(ACTOR, reward, PROMPTS, optax.sgd(rate), config)(state, key)


# The scores of the leaking actor are those of the plain one where masked slots hold zeros.
@compiled
def _learn(config, state, key, samples, rewards):
    return ppo.make_collect_and_learn(LEAKING, COUNTED, config)[1](state, key, samples, rewards)


@compiled
def _prepare(config, samples, rewards):
    state = ppo.init(WORTHLESS, optax.identity(), config, REFERENCE)
    return experience.prepare(state, samples, rewards, ACTOR, config)


def iterate(state=None, key=KEY, rate=1.0, **overrides):
    """One iteration with every number that there is: the state after it, and metrics."""
    config = recipes.make("ppo", **WATCHFUL | {name: x[0] for name, x in SWEEP.items()} | overrides)
    state = ppo.init(PARAMS, SGD, config, REFERENCE) if state is None else state
    return _iterate(config, state, key, np.float32(rate))


def learn(samples, rewards=None, key=KEY, params=PARAMS, start_coef=None, rates=None, **overrides):
    """The second half alone: the state before it, the state after it, metrics."""
    config = recipes.make("ppo", **WATCHFUL | overrides)
    state = ppo.init(params, COUNTED, config, REFERENCE)
    if start_coef is not None:
        state = state._replace(kl_coef=jnp.float32(start_coef))
    if rates is not None:
        state = state._replace(opt_state=state.opt_state | {"rates": jnp.array(rates, jnp.float32)})
    rewards = reward(samples) if rewards is None else rewards
    return state, *_learn(config, state, key, samples, rewards)


def prepared(rewards, seed=5, **overrides):
    """Experience and summary, with λ = 0 and values 0: the advantages are the rewards."""
    plain = {"kl_coef": 0.0, "gae_lambda": 0.0, "whitening": None, "missing_eos_penalty": 0.0}
    return _prepare(recipes.make("ppo", **plain | overrides), sampled(seed), rewards)


SWEEP = {
    "clip_low": [0.05, 0.3],
    "clip_high": [0.3, 0.05],
    "dual_clip": [1.5, 3.0],
    "kl_coef": [0.1, 0.5],
    "gae_lambda": [0.5, 1.0],
    "discount": [0.9, 1.0],
    "entropy_coef": [0.0, 0.1],
    "value_coef": [0.1, 1.0],
    "value_clip": [0.1, 0.4],
    "max_kl": [2e-4, 0.2],
    "missing_eos_penalty": [0.0, 1.0],
    "whitening_epsilon": [1e-8, 0.1],
}


@functools.cache
def sampled(seed=5):
    return compiled(ACTOR.sample)(jax.random.key(seed), PARAMS, PROMPTS(None))


# Ratios, steps and stops


NUMBERS = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
SAMPLINGS = {
    "plain": {},
    "cold": NUMBERS | {"temperature": 0.7},
    "top p": NUMBERS | {"top_p": 0.8},
    "min p": NUMBERS | {"min_p": 0.3},
    "top k": {"top_k": 5, "stop_token": 3, "temperature": 1.3},
}
MODEL = lm.ModelConfig(
    11, num_layers=1, width=8, num_heads=2, hidden_width=8, value_head=True, init_scale=0.7
)
RAGGED = np.arange(5)[None] >= (np.arange(16) % 5)[:, None]


@compiled
def first_ratio_error(sampling, scoring):
    """Samples and scores with settings that are traced where they are numbers."""
    sampler, scorer = (lm.make_actor(MODEL, 6, sampling=x) for x in (sampling, scoring))
    prompts = lambda key: lm.Prompts(jax.random.randint(key, (16, 5), 0, 11), RAGGED)
    config = recipes.make("ppo", num_epochs=1, num_minibatches=2)
    actor = scorer._replace(sample=sampler.sample)
    step = ppo.make_step(actor, lambda samples: samples.tokens[:, -1] % 3, prompts, SGD, config)
    return step(ppo.init(actor.init(KEY), SGD, config), KEY)[1].first_ratio_error


# By default test_actors asks for it, of a truncated distribution.
@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_the_first_ratio_is_1_however_the_tokens_were_sampled(sampling):
    settings = lm.SamplingConfig(**sampling)
    assert first_ratio_error(settings, settings) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("other", ["cold", "top p", "min p"])
def test_the_first_ratio_shows_a_sampler_that_is_not_the_scorer(other):
    sampler, scorer = (lm.SamplingConfig(**x) for x in (SAMPLINGS[other], NUMBERS))
    assert first_ratio_error(sampler, scorer) > 0.1


@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_epoch_takes_a_step_per_minibatch(microbatches):
    _, new, metrics = learn(sampled(), num_microbatches=microbatches)
    assert new.opt_state["count"] == metrics.num_updates == 3 * 2


def test_an_epoch_sees_each_row_once_and_the_next_one_in_another_order():
    # With V = 0 and λ = 1 a token pulls the values by its row's reward, a power of 2 of its own.
    plain = {"kl_coef": 1e-9, "gae_lambda": 1.0, "value_coef": 1.0, "value_clip": 1e6}
    samples = sampled()._replace(response_mask=jnp.ones((BATCH, LENGTH), bool))
    _, new, _ = learn(samples, np.float32(2) ** np.arange(BATCH), params=WORTHLESS, rates=[0.0] * 8, **plain)
    # The value loss is a mean over 4 rows of 3 tokens: times 4, the sum of the rows' powers.
    halves = np.round(np.array(new.opt_state["pull"][:6]) * 4).astype(int).reshape(3, 2)
    np.testing.assert_array_equal(halves[:, 0] + halves[:, 1], [2**BATCH - 1] * 3)
    assert [bin(half).count("1") for half in halves.flat] == [4] * 6
    assert len(set(halves.flat)) > 2


def test_the_optimizer_is_handed_the_kl_of_its_minibatch():
    _, new, metrics = learn(sampled())
    seen = np.array(new.opt_state["kl"])
    np.testing.assert_allclose(seen[:6].mean(), metrics.approx_kl, rtol=1e-5)
    assert abs(seen[0]) < 1e-6 and np.all(seen[1:6] > 1e-4) and np.all(seen[6:] == -1)


def test_the_first_ratio_error_counts_on_both_sides_of_1():
    for shift in (-0.3, 0.3):
        _, _, metrics = learn(sampled()._replace(log_probs=sampled().log_probs - shift), max_kl=1e-3)
        np.testing.assert_allclose(metrics.first_ratio_error, abs(np.expm1(shift)), rtol=1e-4)


def test_a_kl_above_the_limit_drops_the_remaining_updates():
    _, once, _ = learn(sampled(), rates=[1.0] + [0.0] * 7)
    _, stopped, metrics = learn(sampled(), max_kl=1e-5)
    assert metrics.num_updates == 1 == stopped.opt_state["count"]
    assert metrics.approx_kl <= 1e-5 and metrics.ratio_max < 1.01
    # A mean over the one update that was done, on whose samples all ratios are 1.
    assert metrics.effective_sample_size == pytest.approx(1.0, rel=1e-4)
    table_actor.assert_close(stopped.params, once.params, atol=1e-6)


def test_a_limit_exceeded_at_once_changes_no_bit_of_params_and_optimizer():
    stale = sampled()._replace(log_probs=sampled().log_probs - 0.3)
    state, new, metrics = learn(stale, max_kl=1e-3)
    assert metrics.num_updates == 0
    table_actor.assert_equal((new.params, new.opt_state), (state.params, state.opt_state))
    assert new.iteration == 1


def test_no_update_follows_one_that_exceeded_the_limit():
    updates = []
    for row in range(BATCH):
        log_probs = sampled().log_probs.at[row].add(-1.0)
        stale = sampled()._replace(log_probs=log_probs)
        updates.append(int(learn(stale, max_kl=0.05)[2].num_updates))
    # Half of the rows come in the first minibatch; after it the others are not too far.
    assert sorted(updates) == [0] * 4 + [1] * 4


@pytest.mark.slow
def test_a_limit_never_reached_is_no_limit():
    _, *limited = learn(sampled())
    _, *free = learn(sampled(), max_kl=None)
    table_actor.assert_close(limited, free, atol=1e-6)


# The gradient in the limit


def test_one_plain_update_is_the_reinforce_gradient():
    config = recipes.make(
        "ppo",
        num_epochs=1,
        num_minibatches=1,
        kl_coef=0.0,
        gae_lambda=1.0,
        value_coef=0.0,
        whitening=None,
        aggregation="sequence_sum",
    )
    state = ppo.init(WORTHLESS, SGD, config)
    samples, rewards = sampled(), np.asarray(normal(2, (BATCH,)))
    new, _ = compiled(ppo.make_collect_and_learn(ACTOR, SGD, config)[1])(state, KEY, samples, rewards)

    logits = np.array(PARAMS["policy"]["logits"], float)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros_like(logits)
    said, masks = np.asarray(samples.tokens)[:, -LENGTH:], np.asarray(samples.response_mask)
    for b in range(BATCH):
        response = said[b, : masks[b].sum()].tolist()
        for t, token in enumerate(response):
            row = sum(VOCAB**i for i in range(t))
            row += sum(past * VOCAB ** (t - 1 - i) for i, past in enumerate(response[:t]))
            expected[row] += rewards[b] * (np.eye(VOCAB)[token] - probs[row]) / BATCH
    step = new.params["policy"]["logits"] - PARAMS["policy"]["logits"]
    np.testing.assert_allclose(step, expected, atol=1e-6)
    table_actor.assert_equal(new.params["critic"], WORTHLESS["critic"])


# Rewards


def test_the_score_sits_on_the_last_token_of_a_response():
    rewards = normal(3, (BATCH,)) + 5
    data, _ = prepared(rewards, seed=6)
    lengths = np.array(data.mask).sum(axis=1)
    assert set(lengths) >= {1, LENGTH}
    expected = np.zeros((BATCH, LENGTH))
    expected[np.arange(BATCH), lengths - 1] = rewards
    np.testing.assert_array_equal(data.advantages, expected.astype(np.float32))


# Advantages that are the rewards to go and nothing else.
BARE = {"kl_coef": 0.3, "whitening": None, "value": None, "advantage": partial(batch.reward_to_go_advantages)}


@functools.cache
def with_greedy(group_size):
    """The samples, two prompts of 4 or 8 of 1, and the greedy answers behind them."""
    each = lm.Prompts(jnp.zeros((BATCH // group_size, 2), jnp.int32))
    greedy = compiled(ACTOR.greedy)(PARAMS, each)
    return jax.tree.map(lambda *rows: np.concatenate(rows), sampled(), greedy)


@pytest.mark.parametrize(
    ("group_size", "greedy", "above"),
    [
        pytest.param(1, [float(i) for i in range(8)], [1.0] * 8, marks=pytest.mark.slow),
        (4, [0.5, 10.0], [0.5, 1.5, 2.5, 3.5, -5.0, -4.0, -3.0, -2.0]),
    ],
)
def test_a_greedy_baseline_is_taken_off_every_token_of_the_answers_to_its_prompt(group_size, greedy, above):
    own = np.arange(1.0, 9.0, dtype=np.float32)
    config = recipes.make("ppo", group_size=group_size, greedy_baseline=True, **BARE)
    data, summary = _prepare(config, with_greedy(group_size), np.append(own, np.float32(greedy)))
    plain, _ = _prepare(recipes.make("ppo", **BARE), sampled(), own)
    mask = np.asarray(sampled().response_mask)
    difference = np.asarray(plain.advantages - data.advantages)
    expected = np.where(mask, (own - above)[:, None], 0.0)
    np.testing.assert_allclose(difference, expected, atol=1e-5)
    # the same as the estimator of the paper, whose baseline is an argument
    off = own - np.float32(above)
    paper = jax.jit(jax.vmap(returns.remax))(_prepare_rewards(own), off, mask)
    np.testing.assert_allclose(data.advantages, paper, atol=1e-5)
    np.testing.assert_allclose(summary["reward"], 4.5)
    assert data.mask.shape[0] == BATCH


def _prepare_rewards(scores):
    """The token rewards of `prepare`: an estimator of λ = 0 and no values gives them back."""
    return prepared(scores, kl_coef=0.3, discount=0.0)[0].advantages


def test_a_greedy_answer_pays_for_its_length_and_its_missing_end_too():
    greedy = jax.tree.map(lambda x: x[BATCH:], with_greedy(4))
    ended, cut = greedy.ended, np.asarray(sampled().ended)
    assert not np.all(ended == cut[::4])
    config = recipes.make(
        "ppo",
        group_size=4,
        greedy_baseline=True,
        missing_eos_penalty=0.7,
        length_penalty=by_length,
        **BARE | {"kl_coef": 0.0},
    )
    found = _prepare(config, with_greedy(4), np.zeros(BATCH + 2, np.float32))[0].advantages
    price = lambda samples: 0.1 * np.sum(samples.response_mask, axis=1) - 0.7 * ~np.asarray(samples.ended)
    expected = price(sampled()) - np.repeat(price(greedy), 4)
    np.testing.assert_allclose(np.asarray(found)[:, 0], expected, atol=1e-6)


def by_length(lengths, longest):
    return 0.1 * lengths


def test_a_greedy_answer_without_a_finite_reward_leaves_its_group_out():
    rewards = np.where(np.arange(BATCH + 2) == BATCH, np.float32(np.inf), 1.0)
    config = recipes.make("ppo", group_size=4, greedy_baseline=True, **BARE)
    data, summary = _prepare(config, with_greedy(4), rewards)
    assert summary["invalid_rewards"] == 4
    mask = np.asarray(data.mask)
    assert not mask[:4].any() and mask[4:].any(axis=1).all()


def test_the_greedy_answers_are_the_last_rows_of_what_is_collected():
    config = recipes.make("ppo", **SMALL, group_size=2, greedy_baseline=True)
    collect, _ = ppo.make_collect_and_learn(ACTOR, SGD, config)
    asked = jnp.arange(BATCH).reshape(BATCH // 2, 2)
    state = ppo.init(PARAMS, SGD, config, REFERENCE)
    answers = compiled(collect)(state, KEY, lm.Prompts(asked)).tokens
    np.testing.assert_array_equal(answers[:, :2], [*np.repeat(asked, 2, axis=0), *asked])
    np.testing.assert_array_equal(answers[BATCH:, 2:], answers[-1:, 2:].repeat(4, axis=0))
    with pytest.raises(ValueError, match=r"actor\.greedy must be \(params, prompts\) -> samples"):
        ppo.make_collect_and_learn(ACTOR._replace(greedy=None), SGD, config)


def test_the_penalty_for_a_missing_end_meets_unended_responses_alone():
    rewards = normal(3, (BATCH,))
    data, summary = prepared(rewards)
    lower, same = prepared(rewards, missing_eos_penalty=0.5)
    drop = np.array(data.advantages - lower.advantages).sum(axis=1)
    ended = np.array(data.samples.ended)
    assert 0 < ended.sum() < BATCH
    np.testing.assert_allclose(drop, np.where(ended, 0.0, 0.5), atol=1e-6)
    assert same["reward"] == summary["reward"]


def test_whitened_rewards_have_variance_1_and_their_old_mean():
    rewards = 4 * normal(3, (BATCH,))
    whitening = ppo.Whitening(advantages=False, rewards=True)
    before, after = prepared(rewards)[0], prepared(rewards, whitening=whitening)[0]
    raw, white = (np.array(data.advantages)[np.array(data.mask)] for data in (before, after))
    np.testing.assert_allclose(white.var(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(white, (raw - raw.mean()) / raw.std() + raw.mean(), atol=1e-5)


@pytest.mark.parametrize("target", [0.01, 0.6, 50.0])
def test_the_kl_coefficient_follows_its_target(target):
    state, new, metrics = learn(sampled(), kl_target=target)
    error = np.clip(metrics.kl / target - 1, -0.2, 0.2)
    np.testing.assert_allclose(new.kl_coef, 0.2 * (1 + error * BATCH / 100), rtol=1e-6)
    assert metrics.kl_coef == state.kl_coef and new.kl_coef != state.kl_coef


IN_THE_LOSS = {"kl_placement": "loss", "kl_estimator": "k3", "num_microbatches": 2}


@pytest.mark.parametrize("options", [{}, IN_THE_LOSS])
def test_the_coefficient_in_use_is_the_one_in_the_state(options):
    heavy = learn(sampled(), start_coef=2.0, kl_coef=0.2, **options)[1]
    table_actor.assert_equal(heavy, learn(sampled(), kl_coef=2.0, **options)[1])


# What must not count


@pytest.mark.parametrize(
    "overrides",
    [
        {"entropy_coef": 0.1, "whitening_rewards": True, "kl_estimator": "exact"},
        IN_THE_LOSS,
        pytest.param(
            {"kl_placement": "loss", "kl_estimator": "exact", "aggregation": "sequence"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_nan_and_infinities_in_masked_slots_change_no_bit(overrides):
    samples = sampled()

    def outcome(fill):
        log_probs = jnp.where(samples.response_mask, samples.log_probs, fill)
        held = samples._replace(log_probs=log_probs)
        return learn(held, rewards, **overrides)[1:]

    rewards = reward(samples).at[2].set(jnp.nan)
    clean = outcome(0.0)
    assert not np.all(samples.response_mask) and np.isfinite(clean[1].grad_norm)
    for fill in (jnp.nan, jnp.inf, -jnp.inf, 1e30):
        table_actor.assert_equal(outcome(fill), clean)


def test_responses_without_a_valid_reward_are_left_out_and_counted():
    samples, rewards = sampled(), normal(3, (BATCH,))
    bad = jnp.array([1, 6])
    masked = samples._replace(response_mask=samples.response_mask.at[bad].set(False))
    _, expected, _ = learn(masked, rewards.at[bad].set(0.0))
    for values in ([jnp.nan, jnp.inf], [-3e38, 1e13]):
        _, new, metrics = learn(samples, rewards.at[bad].set(jnp.array(values)))
        table_actor.assert_equal(new.params, expected.params)
        assert metrics.invalid_rewards == 2 and metrics.finite
        keep = lambda x: np.delete(np.array(x, float), bad, axis=0)
        np.testing.assert_allclose(metrics.reward, keep(rewards).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics.reward_std, keep(rewards).std(), rtol=1e-5)
        # what was said is measured on all responses, whether they teach or not
        np.testing.assert_allclose(metrics.ended, np.mean(samples.ended), rtol=1e-5)
        np.testing.assert_allclose(metrics.length, samples.response_mask.sum(axis=1).mean(), rtol=1e-5)
        assert metrics.kl == learn(samples, rewards)[2].kl
        assert all(np.isfinite(value) for value in metrics)


def test_a_batch_without_a_valid_reward_teaches_nothing_and_has_no_mean_reward():
    for value in (jnp.nan, -3e38):
        _, new, metrics = learn(sampled(), jnp.full(BATCH, value))
        table_actor.assert_equal(new.params, PARAMS)
        assert metrics.invalid_rewards == BATCH and metrics.grad_norm == 0 and metrics.finite
        assert np.isnan(metrics.reward) and np.isfinite(metrics.kl)


def test_a_policy_that_is_not_finite_passes_for_no_result():
    spoilt = jax.tree.map(lambda x: x.at[0].set(jnp.nan), PARAMS)
    state, metrics = iterate(ppo.init(spoilt, SGD, recipes.make("ppo", **WATCHFUL), REFERENCE))
    assert not metrics.finite and np.isnan(metrics.reward) and np.isfinite(state.kl_coef)
    state, metrics = iterate()
    assert metrics.finite and np.isfinite(metrics.reward)
    unsure = sampled()._replace(log_probs=sampled().log_probs.at[0, 0].set(jnp.nan))
    assert np.isnan(learn(unsure)[2].reward)
    assert not learn(sampled(), rates=[jnp.inf] * 8)[2].finite


@pytest.mark.parametrize(
    "aggregation",
    [
        pytest.param(name, marks=pytest.mark.slow if name != "token" else [])
        for name in ("token", "sequence", "sequence_sum", "constant")
    ],
)
def test_microbatches_change_nothing(aggregation):
    options = {"aggregation": aggregation, "entropy_coef": 0.1}
    _, *whole = learn(sampled(), **options)
    _, *cut = learn(sampled(), num_microbatches=2, **options)
    table_actor.assert_close(cut, whole, atol=1e-6)


def test_microbatches_of_half_precision_add_up_in_float32():
    rows, nats = [[0]] * 512, [[-float(np.log(5.0))]] * 512
    samples = actors.samples_of_rows(rows, rows, nats, [True] * 512)
    actor = actors.actor_from_logits(lambda params, tokens, mask: params.astype(jnp.float32)[tokens], 1)
    config = recipes.make("reinforce", kl=None, num_microbatches=512)
    state = ppo.init(jnp.zeros((5, 5), jnp.bfloat16), SGD, config)
    _, metrics = compiled(ppo.make_collect_and_learn(actor, SGD, config)[1])(
        state, KEY, samples, np.ones(512)
    )
    # π = 1/5: the gradient is 4/5 and four times -1/5, and in bfloat16 the sum stops at 5/8 of it
    np.testing.assert_allclose(metrics.grad_norm, np.sqrt(0.8), rtol=4e-3)


# Repetition


def test_the_same_key_gives_the_same_bits_and_another_key_another_rollout():
    table_actor.assert_equal(iterate(), iterate())
    assert iterate(key=jax.random.key(6))[1].reward != iterate()[1].reward
    assert not np.array_equal(sampled().tokens, sampled(seed=6).tokens)
    # Of the same samples, another key makes other minibatches.
    ends = [learn(sampled(), key=jax.random.key(i))[1].params["policy"] for i in range(2)]
    assert jnp.max(jnp.abs(ends[0]["logits"] - ends[1]["logits"])) > 1e-3


def test_no_key_is_used_twice():
    config = recipes.make("ppo", **SMALL)
    state = ppo.init(PARAMS, SGD, config, REFERENCE)
    with jax.debug_key_reuse(True):
        jax.jit(ppo.make_step(ACTOR, reward, PROMPTS, SGD, config)).lower(state, KEY)


@pytest.mark.slow
def test_eager_and_compiled_iterations_agree():
    config = recipes.make("ppo", **WATCHFUL)
    state = ppo.init(PARAMS, COUNTED, config, REFERENCE)
    collect, half = ppo.make_collect_and_learn(ACTOR, COUNTED, config)
    samples = collect(state, KEY, PROMPTS(KEY))
    table_actor.assert_close(samples, sampled(), atol=1e-6)
    eager = half(state, KEY, samples, reward(samples))
    table_actor.assert_close(eager, learn(samples)[1:], atol=1e-5)


def test_iterations_scanned_and_side_by_side_are_those_one_by_one_and_compile_once():
    numbers = {name: jnp.array(x) for name, x in SWEEP.items()}
    configs = jax.tree.map(lambda x: jnp.broadcast_to(x, 2), recipes.make("ppo", **WATCHFUL | numbers))
    rates, keys = jnp.array([0.3, 1.0]), jax.random.split(KEY, (2, 2))

    def train(config, rate, keys):
        optimizer = optax.sgd(rate)
        state = ppo.init(PARAMS, optimizer, config, REFERENCE)
        return jax.lax.scan(ppo.make_step(ACTOR, reward, PROMPTS, optimizer, config), state, keys)

    end, metrics = compiled(jax.vmap(train))(configs, rates, keys)
    for i in range(2):
        state = None
        for j in range(2):
            overrides = {name: x[i] for name, x in SWEEP.items()}
            state, each = iterate(state, keys[i, j], rates[i], **overrides)
            table_actor.assert_close(jax.tree.map(lambda x, at=(i, j): x[at], metrics), each, atol=1e-5)
        table_actor.assert_close(jax.tree.map(lambda x, i=i: x[i], end), state, atol=1e-5)
        assert state.iteration == 2
        table_actor.assert_equal(state.ref_params, REFERENCE)
    assert len(set(metrics.kl.ravel().tolist())) == 4 and len(set(metrics.num_updates.ravel().tolist())) > 1
    assert _iterate._cache_size() == 1


def test_a_config_may_hold_gradients_of_itself():
    config = recipes.make("ppo", kl_coef=0.1)
    gradient = jax.grad(lambda config: -3.0 * config.kl.coef)(config)
    assert gradient.kl.coef == -3.0
    assert jax.tree.structure(gradient) == jax.tree.structure(config)


def test_metrics_are_scalars_with_readable_names():
    metrics = learn(sampled())[2]
    assert all(jnp.shape(value) == () and np.isfinite(value) for value in metrics)
    assert float(metrics.ratio_min) < 1 < float(metrics.ratio_max)
    assert metrics.entropy <= np.log(VOCAB) and 1 <= metrics.length <= LENGTH


# Rewards in ordinary Python


@functools.cache
def host_step(**overrides):
    """A compiled host step, and the box that holds its reward."""
    box, config = {}, recipes.make("ppo", **SMALL | overrides)
    call = lambda samples: box["reward"](samples)
    return ppo.make_host_step(ACTOR, call, PROMPTS, ADAM, config), box


def host_iterate(host_reward, **overrides):
    step, box = host_step(**overrides)
    box["reward"] = host_reward
    return step(ppo.init(PARAMS, ADAM, recipes.make("ppo", **SMALL), REFERENCE), KEY)


def test_a_host_reward_gives_the_bits_of_a_traced_one_whether_it_is_finite_or_not():
    table = np.array(normal(8, (VOCAB,) * LENGTH))
    config = recipes.make("ppo", **SMALL)

    # jitted as the halves are, for other options make other bits
    @jax.jit
    def step(table, state, key):
        traced = lambda samples: table[tuple(samples.tokens[:, -LENGTH:].T)]
        return ppo.make_step(ACTOR, traced, PROMPTS, ADAM, config)(state, key)

    for start, huge in ((0.0, 0.0), (np.nan, 1e300)):
        wide = table.astype(float)
        wide[0], wide[2, 0] = wide[0] + start, wide[2, 0] + huge
        rows = []

        def host(samples, wide=wide, rows=rows):
            assert all(isinstance(array, np.ndarray) for array in samples)
            rows += [tuple(row) for row in samples.tokens[:, -LENGTH:]]
            return [float(wide[row]) for row in rows]

        with np.errstate(over="ignore"):
            found, narrow = host_iterate(host), wide.astype(np.float32)
        table_actor.assert_equal(found, step(narrow, ppo.init(PARAMS, ADAM, config, REFERENCE), KEY))
        bad = [not np.isfinite(narrow[row]) for row in rows]
        assert found[1].invalid_rewards == sum(bad) and (np.isnan(start) == (0 < sum(bad) < BATCH))


class Task(NamedTuple):
    """Prompts with what only the reward reads."""

    tokens: jax.Array
    mask: jax.Array | None
    answer: Any


def numbered(i):
    """Prompts that differ from batch to batch, the right answers beside them."""
    return Task(np.full((BATCH // 2, 2), i), None, [f"{i}.{row}" for row in range(BATCH // 2)])


# By default test_host_loop draws from a loader.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loader", "iterator", "function"])
def test_a_host_step_draws_new_prompts_every_iteration_and_hands_their_fields_to_the_reward(kind):
    batches = [numbered(i) for i in range(4)]
    iterator = iter(batches)
    prompts = {"loader": batches, "iterator": iterator, "function": lambda key: next(iterator)}[kind]
    seen = []

    def host(samples, tasks):
        first = samples.tokens[0, 0]
        seen.append(int(first))
        assert tasks.answer == [f"{first}.{row}" for row in range(BATCH // 2) for _ in range(2)]
        return np.zeros(BATCH)

    config = recipes.make("ppo", **SMALL | {"group_size": 2, "num_epochs": 1, "num_minibatches": 1})
    state = ppo.init(PARAMS, SGD, config, REFERENCE)
    step = ppo.make_host_step(ACTOR, host, prompts, SGD, config)
    for _ in range(4):
        state, _ = step(state, KEY)
    assert seen == [0, 1, 2, 3]
    if kind == "loader":
        assert (step(state, KEY), seen[-1])[1] == 0
    if kind == "iterator":
        with pytest.raises(ValueError, match="prompts must be an iterator with prompts left"):
            step(state, KEY)


def test_fields_of_the_prompts_are_the_second_argument_of_a_traced_reward_too():
    asked = Task(jnp.zeros((BATCH // 2, 2), jnp.int32), None, jnp.arange(BATCH // 2))
    config = recipes.make("ppo", **SMALL, group_size=2, greedy_baseline=True)
    seen = []

    def answered(samples, tasks):
        seen.append(tasks.answer.shape)
        return 1.0 * tasks.answer

    step = ppo.make_step(ACTOR, answered, lambda key: asked, SGD, config)
    jax.eval_shape(step, ppo.init(PARAMS, SGD, config, REFERENCE), KEY)
    assert seen == [(BATCH + BATCH // 2,)]
    # In pairs as their answers stand, and once more for the greedy answers after these.
    (rows,) = prompt_lib.for_reward(asked, config)
    assert rows.answer.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3]


def test_a_source_draws_from_a_loader_again_and_from_an_iterator_once():
    batches = [numbered(i) for i in range(2)]
    loader, iterator, function = map(prompt_lib.source, (batches, iter(batches), lambda key: key))
    assert [loader(KEY).tokens[0, 0] for _ in range(5)] == [0, 1, 0, 1, 0]
    assert [iterator(KEY).tokens[0, 0] for _ in range(2)] == [0, 1] and function(3) == 3
    with pytest.raises(ValueError, match="prompts must be an iterator with prompts left"):
        iterator(KEY)


# Bad input


def test_a_coroutine_is_no_reward():
    async def later(samples):
        return [0.0] * BATCH

    with pytest.raises(ValueError, match=r"reward must be a function, not a coroutine, got .* asyncio.run"):
        ppo.make_step(ACTOR, later, PROMPTS, ADAM, recipes.make("ppo", **SMALL))

    class Judge:
        async def __call__(self, samples):
            return [0.0] * BATCH

    with pytest.raises(ValueError, match=r"reward must be a function, not a coroutine"):
        ppo.make_host_step(ACTOR, Judge(), PROMPTS, ADAM, recipes.make("ppo", **SMALL))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda samples: jnp.zeros((BATCH, 1)), r"got shape \(8, 1\)"),
        (lambda samples: 0.5, r"got shape \(\)"),
        (lambda samples: [0.0] * 7, r"got shape \(7,\)"),
        (lambda samples: samples.log_probs[:, :2], r"got shape \(8, 2\)"),
        (lambda samples: [[0.0]] * 7 + [[0.0] * 4], "Return a list of floats"),
        (lambda samples: np.full(BATCH, 1j), "Return a list of floats"),
    ],
)
def test_a_reward_of_another_kind_is_refused(wrong, message):
    message = rf"reward must be one number per response, of shape \(8,\).*{message}"
    config = recipes.make("ppo", **SMALL)
    with pytest.raises(ValueError, match=message):
        step = ppo.make_step(ACTOR, wrong, PROMPTS, ADAM, config)
        jax.eval_shape(step, ppo.init(PARAMS, ADAM, config), KEY)
    with pytest.raises(ValueError, match=message):
        host_iterate(wrong)


def test_prompts_that_change_from_call_to_call_are_refused_where_they_are_traced_once():
    config = recipes.make("ppo", **SMALL)
    batches = (lm.Prompts(jnp.full((BATCH, 2), i)) for i in range(9))
    make = lambda prompts: ppo.make_step(ACTOR, reward, prompts, SGD, config)
    drawn = iter([lm.Prompts(np.full((BATCH, 2), i)) for i in range(9)])
    for prompts in (
        lambda key: next(batches),
        lambda key: next(drawn),
        batches,
        [lm.Prompts(jnp.zeros((BATCH, 2), jnp.int32))],
    ):
        with pytest.raises(ValueError, match=r"prompts must be a pure function of a key.*make_host_step"):
            make(prompts)
    make(lambda key: lm.Prompts(jax.nn.relu(jax.random.normal(key, (BATCH, 2))).astype(jnp.int32)))
    with pytest.raises(ValueError, match=r"prompts must be a NamedTuple of tokens \[B, P\] and mask"):
        step = make(lambda key: {"tokens": jnp.zeros((BATCH, 2), jnp.int32)})
        jax.eval_shape(step, ppo.init(PARAMS, SGD, config), KEY)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (lm.Prompts(jnp.zeros((BATCH, 2))), r"tokens must be an array of integers \[B, P\], got float32"),
        (
            lm.Prompts(jnp.zeros(BATCH, int)),
            r"tokens must be an array of integers \[B, P\], got int32 of shape",
        ),
        (lm.Prompts(jnp.zeros((0, 2), int)), r"tokens must be an array .* got int32 of shape \(0, 2\)"),
        (lm.Prompts([[0, 0]] * BATCH), r"tokens must be an array of integers \[B, P\], got a list"),
        (lm.Prompts(jnp.zeros((BATCH, 2), int), jnp.ones((BATCH, 2))), "mask must be an array of bool"),
        (lm.Prompts(jnp.zeros((BATCH, 2), int), jnp.ones((BATCH, 3), bool)), "mask must be an array of bool"),
    ],
)
def test_prompts_that_are_no_rows_of_tokens_are_refused(prompts, message):
    step = ppo.make_host_step(ACTOR, reward, [prompts], SGD, config := recipes.make("ppo", **SMALL))
    with pytest.raises(ValueError, match=rf"prompts\.{message}"):
        step(ppo.init(PARAMS, SGD, config), KEY)


def test_an_actor_that_cannot_do_what_is_asked_is_refused():
    make = lambda sampling, **overrides: ppo.make_collect_and_learn(
        lm.make_actor(MODEL, 4, sampling=sampling), SGD, recipes.make("ppo", **overrides)
    )
    for name, value, kind in (("greedy", True, "False"), ("top_k", 1, "≥ 2"), ("min_p", 1.0, "below 1")):
        with pytest.raises(ValueError, match=rf"sampling\.{name} must be {kind} while training"):
            make(lm.SamplingConfig(**{name: value}))
    with pytest.raises(
        ValueError, match="missing_eos_penalty must be None for an actor without a stop token"
    ):
        make(lm.SamplingConfig(), missing_eos_penalty=1.0)
    make(lm.SamplingConfig(stop_token=1), missing_eos_penalty=1.0)


def test_a_horizon_that_is_shorter_than_the_batch_allows_is_named():
    with pytest.raises(ValueError, match=r"kl_horizon must be at least 1\.6, a fifth of the batch of 8"):
        config = recipes.make("ppo", **SMALL, kl_target=1.0, kl_horizon=1.5)
        step = ppo.make_step(ACTOR, reward, PROMPTS, SGD, config)
        jax.eval_shape(step, ppo.init(PARAMS, SGD, config), KEY)


def test_cut_answers_can_leave_the_loss_and_stay_in_the_baseline():
    """TRL's `mask_truncated_completions`: the advantages are those of all, the loss is of the ended."""
    overrides = {"group_size": 4, "aggregation": "token", "kl_coef": 0.0}
    settings = recipes.make("dr_grpo", **overrides)
    filtered = settings.replace(group_filter=filters.ended_only)
    rewards = jnp.arange(BATCH) % 4.0
    data, summary = _prepare(filtered, sampled(), rewards)
    plain, same = _prepare(settings, sampled(), rewards)
    np.testing.assert_array_equal(data.advantages, plain.advantages)
    ended = np.asarray(sampled().ended)
    np.testing.assert_array_equal(data.mask, np.asarray(plain.mask) & ended[:, None])
    assert 0 < ended.sum() < BATCH
    for name in ("length", "ended", "reward", "kl"):
        assert summary[name] == same[name]


@pytest.mark.parametrize("counts", [(3, 1), (4, 4), (2, 3)])
def test_a_batch_that_does_not_divide_is_refused_before_the_reward(counts):
    minibatches, microbatches = counts
    overrides = {"num_minibatches": minibatches, "num_microbatches": microbatches}
    message = f"batch of 8 .* num_minibatches={minibatches} times num_microbatches={microbatches}"
    unreached = lambda samples: pytest.fail("the reward was asked")
    config = recipes.make("ppo", **SMALL | overrides)
    step = ppo.make_step(ACTOR, unreached, PROMPTS, ADAM, config)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(step, ppo.init(PARAMS, ADAM, config), KEY)
    with pytest.raises(ValueError, match=message):
        host_iterate(unreached, **overrides)
    with pytest.raises(ValueError, match=message):
        learn(sampled(), jnp.zeros(BATCH), **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"aggregation": "mean"}, "aggregation must be one of 'token', 'sequence', .*, got 'mean'"),
        ({"kl_estimator": "k4"}, "KL: estimator must be one of 'k1', 'k2', 'k3', 'exact', .*, got 'k4'"),
        ({"kl_placement": "both"}, "KL: placement must be one of 'reward', 'loss', got 'both'"),
        ({"kl_coef": -0.1}, "KL: coef must be a number ≥ 0, got -0.1"),
        ({"kl_coef": float("nan")}, "coef must be a number ≥ 0, got nan"),
        ({"kl_coef": float("inf")}, "KL: coef must be a finite number, got inf"),
        ({"value_coef": float("inf")}, "Value: coef must be a finite number, got inf"),
        ({"entropy_coef": float("-inf")}, "PPOConfig: entropy_coef must be .*, got -inf"),
        ({"value_clip": -0.2}, "Value: clip must be a number ≥ 0, got -0.2"),
        ({"max_kl": -1}, "max_kl must be a number ≥ 0, got -1"),
        ({"num_epochs": 0}, "num_epochs must be an integer ≥ 1, got 0"),
        ({"num_minibatches": 2.5}, "num_minibatches must be an integer ≥ 1, got 2.5"),
        ({"num_microbatches": -2}, "num_microbatches must be an integer ≥ 1, got -2"),
        ({"clip_low": -1.0}, r"clip_low must be a number in \[0, 1\], got -1.0"),
        ({"gae_lambda": 1.5}, "gae_lambda must be .*, got 1.5"),
        ({"discount": -0.1}, r"discount must be a number in \[0, 1\], got -0.1"),
        ({"clip_low": 1.5}, "clip_low must be .*, got 1.5"),
        ({"dual_clip": 0.5}, "dual_clip must be .*, got 0.5"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty must be a number ≥ 0, got -1.0"),
        ({"kl_target": 0.0}, "target must be a number > 0, got 0.0"),
        ({"kl_horizon": 0.0, "kl_target": 1.0}, "horizon must be a number > 0, got 0.0"),
        ({"kl_horizon": 10.0}, "horizon must be None without a target, got 10.0"),
        ({"kl_target": 1.0, "kl_coef": 0}, "coef must be a number > 0 with a target, got 0"),
        ({"whitening_epsilon": 0.0}, "epsilon must be a number > 0, got 0.0"),
        ({"whitening_ddof": -1}, "ddof must be an integer ≥ 0, got -1"),
        ({"whitening_advantages": False}, "For no whitening give whitening=None"),
        ({"advantage": "gae"}, "advantage must be a function or None, got 'gae'"),
        ({"kl": 0.1}, "kl must be a KL or None, got 0.1"),
    ],
)
def test_settings_out_of_range_are_refused_when_the_config_is_made(overrides, message):
    with pytest.raises(ValueError, match=message):
        recipes.make("ppo", **overrides)
