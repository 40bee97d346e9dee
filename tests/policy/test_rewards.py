"""Several rewards, of responses and of tokens; what is not judged; rewards that are slow or fail."""

import asyncio
import functools
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm.policy import PPOConfig, advantages, partial, ppo, recipes, rewards
from proxlm.policy._iteration import experience, judging
from tests.policy import table_actor
from tests.policy.table_actor import compiled

BATCH, VOCAB, LENGTH = 8, 3, 3
ACTOR, PARAMS = table_actor.make(VOCAB, LENGTH, 0), table_actor.params(0, VOCAB, LENGTH)
PROMPTS = lambda key: lm.Prompts(jnp.zeros((BATCH // 4, 2), jnp.int32))
SGD, KEY, NAN = optax.sgd(0.5), jax.random.key(5), np.nan
MASK = np.array([[True, True, False], [True, True, True]])


@functools.cache
def sampled():
    return compiled(ACTOR.sample)(KEY, PARAMS, lm.Prompts(jnp.zeros((BATCH, 2), jnp.int32)))


@compiled
def prepare(config, given, samples):
    return experience.prepare(ppo.init(PARAMS, SGD, config), samples, given, ACTOR, config)


def prepared(config, given):
    return prepare(config, given, sampled())


def test_named_rewards_are_weighed_and_summed_and_what_none_judged_is_left_out():
    config = PPOConfig(reward_weights={"right": 2.0, "form": 0.5})
    found = judging.judge({"right": jnp.array([1.0, NAN]), "form": jnp.array([4.0, NAN])}, MASK, config)
    np.testing.assert_array_equal(found.total, [4.0, NAN])
    half = judging.judge({"right": jnp.array([NAN, 3.0]), "form": jnp.array([4.0, NAN])}, MASK, config)
    np.testing.assert_array_equal(half.total, [2.0, 6.0])
    assert (half.means["right"], half.means["form"]) == (3.0, 4.0)


def test_rewards_of_tokens_stay_at_their_tokens():
    tokens = jnp.array([[1.0, NAN, 9.0], [NAN, jnp.inf, NAN]])
    found = judging.judge({"steps": tokens, "whole": jnp.array([0.5, NAN])}, MASK, PPOConfig())
    np.testing.assert_array_equal(found.per_token, [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(found.total, [1.5, NAN])
    np.testing.assert_array_equal(found.score, [0.5, 0.0])
    plain = recipes.make("ppo", kl=None, whitening=None, gae_lambda=0.0, value=None, entropy_coef=0.0)
    plain = plain.replace(advantage=partial(advantages.reward_to_go_advantages, discount=0.5))
    given = jnp.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) * 1.0
    mask = np.asarray(sampled().response_mask)
    left = np.where(mask, given, 0.0)
    expected = (
        left + 0.5 * np.pad(left[:, 1:], ((0, 0), (0, 1))) + 0.25 * np.pad(left[:, 2:], ((0, 0), (0, 2)))
    )
    np.testing.assert_allclose(prepared(plain, given)[0].advantages, np.where(mask, expected, 0), rtol=1e-6)


def test_gdpo_normalises_each_reward_in_its_group_and_their_sum_over_the_batch():
    rng = np.random.default_rng(0)
    given = {"right": rng.integers(0, 2, BATCH) * 1.0, "length": 100 * rng.normal(size=BATCH)}
    config = recipes.make("gdpo", group_size=4, kl=None, reward_weights={"right": 1.0, "length": 0.3})
    found = np.asarray(prepared(config, given)[0].advantages)
    total = 0
    for name, weight in config.reward_weights.items():
        x = given[name].reshape(2, 4)
        total += weight * (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-4)
    mask = np.asarray(sampled().response_mask)
    tokens = np.repeat(total.reshape(-1), mask.sum(axis=1))
    expected = (tokens - tokens.mean()) / tokens.std(ddof=1)
    np.testing.assert_allclose(found[mask], expected, atol=1e-4)


def test_traced_and_host_steps_agree_name_by_name_and_compile_once():
    traced = {
        "zeros": lambda samples: jnp.mean(samples.tokens[:, 2:] == 0, axis=1),
        "tokens": lambda samples: jnp.where(samples.response_mask, samples.tokens[:, 2:] * 1.0, NAN),
    }
    host = {
        "zeros": lambda samples: (samples.tokens[:, 2:] == 0).mean(axis=1, dtype=np.float32).tolist(),
        "tokens": lambda samples: [
            [float(token) for token in row[real]]
            for row, real in zip(samples.tokens[:, 2:], samples.response_mask, strict=True)
        ],
    }
    traces = []
    counted = ACTOR._replace(score=lambda *data, **how: traces.append(0) or ACTOR.score(*data, **how))
    config = recipes.make("dr_grpo", group_size=4, kl=None, num_epochs=1, num_minibatches=2)
    state = ppo.init(PARAMS, SGD, config)
    step = ppo.make_host_step(counted, host, PROMPTS, SGD, config)
    after, metrics = step(state, KEY)
    once = len(traces)
    step(after, jax.random.key(6))
    assert len(traces) == once > 0
    expected = jax.jit(ppo.make_step(ACTOR, traced, PROMPTS, SGD, config))(state, KEY)
    table_actor.assert_close(tuple(metrics), tuple(expected[1]), atol=1e-6)
    table_actor.assert_close(after, expected[0], atol=1e-6)
    assert metrics._fields[-2:] == ("reward_tokens", "reward_zeros")
    np.testing.assert_allclose(metrics.reward, metrics.reward_zeros + metrics.reward_tokens, rtol=1e-6)


def test_metrics_tell_lengths_by_outcome_and_groups_without_spread():
    lengths = np.asarray(sampled().response_mask).sum(axis=1)
    given, shortest = np.ones(8), 4 + np.argsort(lengths[4:])
    given[shortest[:3]] = NAN, 0.0, 0.0
    assert lengths[shortest[0]] < lengths[shortest[2]]
    config = recipes.make("dr_grpo", group_size=4, num_minibatches=1)
    summary = prepared(config, given)[1]
    assert summary["groups_without_spread"] == 0.5
    above = given > np.nanmean(given)
    np.testing.assert_allclose(summary["length_above"], lengths[above].mean())
    np.testing.assert_allclose(summary["length_below"], lengths[shortest[1:3]].mean())
    np.testing.assert_allclose(summary["length_ended"], lengths[np.asarray(sampled().ended)].mean())
    np.testing.assert_allclose((summary["kl"], summary["kl_k3"]), 0.0, atol=1e-6)


class Row(NamedTuple):
    tokens: np.ndarray


ROWS = Row(np.arange(12).reshape(6, 2))


@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_concurrent_scores_stand_in_order_whatever_is_late_fails_or_is_tried_again(kind):
    tries, busy, lock, most = {}, [0], threading.Lock(), [0]

    def begin(row):
        first = int(row.tokens[0])
        with lock:
            tries[first] = tries.get(first, 0) + 1
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        return first

    def end(first):
        with lock:
            busy[0] -= 1
        if first == 4 or (first == 8 and tries[8] == 1):
            raise OSError("no connection")
        return first

    def plain(row):
        first = begin(row)
        time.sleep(0.02 if first == 0 else 0.001)
        return end(first)

    async def later(row):
        first = begin(row)
        await asyncio.sleep(0.02 if first == 0 else 0.001)
        return end(first)

    fn = plain if kind == "threads" else later
    assert rewards.concurrent(fn, workers=3, timeout=30.0, retries=1)(ROWS) == [0, 2, None, 6, 8, 10]
    assert tries == {0: 1, 2: 1, 4: 2, 6: 1, 8: 2, 10: 1} and 1 < most[0] <= 3


def test_what_takes_too_long_is_not_judged_and_what_fails_everywhere_is_raised():
    async def stuck(row):
        await asyncio.sleep(60 if row.tokens[0] == 2 else 0)
        return 1.0

    assert rewards.concurrent(stuck, timeout=0.2)(ROWS) == [1, None, 1, 1, 1, 1]
    release = threading.Event()
    wait = lambda row: 1.0 if row.tokens[0] else float(release.wait(60))
    assert rewards.concurrent(wait, workers=6, timeout=1.0)(ROWS) == [None, 1, 1, 1, 1, 1]
    release.set()
    with pytest.raises(ZeroDivisionError):
        rewards.concurrent(lambda row: 1 / 0)(ROWS)


def test_functions_of_texts_and_columns_are_rewards():
    class Asked(NamedTuple):
        tokens: np.ndarray
        mask: np.ndarray | None
        answer: list

    tokens = np.array([[0, 1, 2, 1], [2, 2, 0, 0]])
    mask = np.array([[False, True, True, True], [True, True, True, False]])
    samples = lm.Samples(tokens, mask, np.zeros((2, 2)), mask[:, 2:], mask[:, 0])
    prompts, seen = Asked(tokens[:, :2], mask[:, :2], ["cb", None]), []
    letters = lambda ids: "".join("abc"[i] for i in ids)

    def judge(prompts, completions, answer, **others):
        seen.append((prompts, completions, others))
        return [
            None if right is None else float(said == right)
            for said, right in zip(completions, answer, strict=True)
        ]

    assert rewards.of_texts(judge, letters)(samples, prompts) == [1.0, None]
    assert seen == [(["b", "cc"], ["cb", "a"], {})]
    assert rewards.of_texts(lambda completions: [*map(len, completions)], letters)(samples, prompts) == [2, 1]
    everything = rewards.of_texts(lambda **columns: sorted(columns), letters)
    assert everything(samples, prompts) == ["answer", "completions", "prompts"]
    assert everything(samples) == ["completions", "prompts"]


def test_rewards_of_steps_stand_at_their_ends():
    ends = rewards.turn_ends(jnp.array([[True, False, True, True], [True, True, True, True]]))
    np.testing.assert_array_equal(ends, [[1, 0, 0, 1], [0, 0, 0, 1]])
    found = rewards.of_steps(jnp.array([[1.0, 2.0], [NAN, 4.0]]), ends)
    np.testing.assert_array_equal(found, [[1, 0, 0, 2], [0, 0, 0, NAN]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rewards.of_texts(abs, "ab"), "rewards.of_texts: decode must be a function"),
        (lambda: rewards.concurrent(3.0), "concurrent: fn must be a function"),
        (lambda: rewards.concurrent(abs, workers=0), "workers must be an integer ≥ 1, got 0"),
        (lambda: rewards.concurrent(abs, timeout=0), "timeout must be a number > 0, got 0"),
        (lambda: rewards.of_steps(jnp.ones(3), MASK), r"step_rewards.shape must be \[B, K\] with B = 2"),
        (lambda: PPOConfig(reward_weights={}), "reward_weights must be a dict of names and weights"),
        (lambda: PPOConfig(reward_weights={"a": NAN}), r"reward_weights\['a'\] must be a number"),
        (lambda: recipes.make("ppo", reward_normalisation=advantages.centred), "must be None without groups"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("reward", "weights", "message"),
    [
        ({"a": abs}, {"b": 1.0}, "reward_weights must be those of 'a', got 'b'"),
        ({"a": 3.0}, None, "a must be a function, got 3.0"),
        ({}, None, "reward must be a function"),
        ([abs, abs], None, "reward must be a function, got .* Several rewards are a dict of functions"),
        (lambda samples: samples.ended * 1.0, {"b": 1.0}, "those of a reward without a name, got 'b'"),
        ({"std": lambda samples: samples.ended * 1.0}, None, "reward must be a new name, got 'std'"),
        (lambda samples: {"a b": samples.ended}, None, "a name of the rewards must be a word"),
        (lambda samples: {"a": 1.0}, None, r"reward 'a' must be one number per response"),
    ],
)
def test_names_and_weights_that_do_not_fit_are_refused(reward, weights, message):
    config = recipes.make("dr_grpo", group_size=4, kl=None, reward_weights=weights)
    with pytest.raises(ValueError, match=message):
        step = ppo.make_step(ACTOR, reward, PROMPTS, SGD, config)
        jax.eval_shape(step, ppo.init(PARAMS, SGD, config), KEY)
