"""The loop in Python: keys, overlap, draws until groups vary, stop strings, what travels with a prompt."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm
from proxlm.policy import actors, importance_weights, partial, ppo, recipes
from proxlm.policy._iteration import resampling
from tests.policy import table_actor
from tests.policy.table_actor import assert_equal

VOCAB, LENGTH, SGD, KEY = 3, 3, optax.sgd(0.5), jax.random.key(5)
ACTOR, PARAMS = table_actor.make(VOCAB, LENGTH, 0), table_actor.params(0, VOCAB, LENGTH)
PROMPTS = lambda key: lm.Prompts(jnp.zeros((2, 2), jnp.int32))
CONFIG = recipes.make("dr_grpo", group_size=4, num_epochs=1, num_minibatches=1)
CORRECTED = CONFIG.replace(correction=partial(importance_weights.truncated, high=2.0))
score = lambda samples: (samples.tokens[:, 2:] == 2).sum(axis=1)
run = functools.partial(ppo.iterate, actor=ACTOR, prompts=PROMPTS, optimizer=SGD)


def test_the_loop_is_the_step_by_keys_of_its_own_and_goes_on_where_it_was():
    state = ppo.init(PARAMS, SGD, CONFIG)
    turns = list(run(state, KEY, 3, reward=score, config=CONFIG))
    step, expected = ppo.make_host_step(ACTOR, score, PROMPTS, SGD, CONFIG), state
    for i in range(3):
        expected, metrics = step(expected, jax.random.fold_in(KEY, i))
        assert_equal(turns[i].metrics, metrics)
    assert_equal(turns[-1].state, expected)
    (last,) = run(turns[1].state, KEY, 1, reward=score, config=CONFIG, donate=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(turns[1].state.params))
    assert last.index == 2
    assert_equal(last.state, expected)
    rows = last.table(lambda ids: " ".join(map(str, ids)), num_rows=2)
    assert [row["prompt"] for row in rows] == ["0 0"] * 2
    assert rows[0]["reward"] == rows[0]["response"].split().count("2")


def test_overlapped_batches_are_of_the_policy_before_and_corrected_for_it():
    state = ppo.init(PARAMS, SGD, CORRECTED)
    turns = list(run(state, KEY, 3, reward=score, config=CORRECTED, overlap=True))
    collect, learn = (jax.jit(x) for x in ppo.make_collect_and_learn(ACTOR, SGD, CORRECTED))
    states = [state]
    for i in range(3):
        _, key_sample, key_learn = jax.random.split(jax.random.fold_in(KEY, i), 3)
        samples = collect(states[max(i - 1, 0)], key_sample, PROMPTS(None))
        new, _ = learn(states[i], key_learn, samples, score(samples).astype(jnp.float32))
        states.append(new)
    table_actor.assert_close(turns[-1].state, states[-1], atol=1e-6)
    with pytest.raises(ValueError, match=r"config.correction must be weights with overlap, got None"):
        run(state, KEY, 3, reward=score, config=CONFIG, overlap=True)


def test_lists_of_another_sampler_become_samples_that_are_learnt_from():
    prompts, responses = [[5], [5], [7, 8], [7, 8]], [[2, 0], [1, 1, 1], [], [2, 2, 0]]
    log_probs, ended = [[-1.0] * len(row) for row in responses], [True, False, False, True]
    samples = actors.samples_of_rows(prompts, responses, log_probs, ended, response_length=3)
    assert samples.tokens.tolist() == [[0, 5, 2, 0, 0], [0, 5, 1, 1, 1], [7, 8, 0, 0, 0], [7, 8, 2, 2, 0]]
    real = [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert samples.mask.tolist() == np.array(real, bool).tolist()
    np.testing.assert_array_equal(samples.log_probs, np.where(samples.response_mask, -1.0, 0.0))
    _, learn = ppo.make_collect_and_learn(ACTOR, SGD, CORRECTED)
    state, rewards = ppo.init(PARAMS, SGD, CORRECTED), np.ones(4)
    shapes = jax.eval_shape(learn, state, KEY, samples, rewards)[0]
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    wrong = {"log_probs": samples.log_probs[:, 1:], "ended": None, "response_mask": np.ones((4, 3))}
    for field, given in wrong.items():
        with pytest.raises(ValueError, match=f"learn: samples.{field}.*must be"):
            learn(state, KEY, samples._replace(**{field: given}), rewards)
    _, learn = ppo.make_collect_and_learn(ACTOR, SGD, CORRECTED.replace(entropy_coef=jnp.ones(3)))
    with pytest.raises(
        ValueError, match=r"PPOConfig: entropy_coef.shape must be \(\), one number, got \(3,\)"
    ):
        learn(state, KEY, samples, rewards)


@pytest.mark.parametrize("kind", ["logits", "model"])
def test_fewer_columns_than_the_longest_response_are_scored_as_with_padding(kind):
    rows = [[3], [4, 2]], [[1], [2, 0]], [[-1.0], [-1.0, -1.0]], [False, True]
    if kind == "logits":
        actor, params = actors.actor_from_logits(lambda p, tokens, mask: p[tokens], 3), jnp.eye(5)
    else:
        config = lm.ModelConfig(vocab_size=5, num_layers=1, width=8, num_heads=2, max_length=8)
        actor, params = lm.make_actor(config, 3, critic=False), {"policy": lm.init(KEY, config)}
    short, padded = (
        actor.score(params, actors.samples_of_rows(*rows, response_length=n)).log_probs for n in (None, 3)
    )
    assert short.shape == (2, 2)
    np.testing.assert_allclose(short, padded[:, :2], rtol=1e-5)


@pytest.mark.parametrize(
    "responses, log_probs, ended, message",
    [
        (
            [[1], [2]],
            [[-1.0], []],
            [True, True],
            "log_probs must be one number per token .*, got 0 for the 1 ",
        ),
        ([[1]], [[-1.0]], [True], "responses must be as many.*, got 1, 1 and 1 of 2 prompts"),
        ([[1], [2.5]], [[-1.0], [-1.0]], [True, True], "responses must be lists of .*int32, got float64"),
        (
            [[1], [1, 2, 3]],
            [[-1.0], [-1.0] * 3],
            [True, True],
            "responses must be at most 2 .*, got 3 in a row",
        ),
        ([[1], [2]], [[-1.0], [-1.0]], [1, 0], "ended.dtype must be bool"),
    ],
)
def test_lists_that_are_no_samples_are_refused(responses, log_probs, ended, message):
    with pytest.raises(ValueError, match=f"samples_of_rows: {message}"):
        actors.samples_of_rows([[3], [4]], responses, log_probs, ended, response_length=2)


def test_groups_that_vary_take_the_place_of_those_that_do_not():
    samples = jax.jit(ACTOR.sample)(KEY, PARAMS, lm.Prompts(jnp.zeros((8, 2), jnp.int32)))
    mark = lambda number: samples._replace(ended=np.full(8, number))
    old, new = np.float32([1.0] * 4 + [0.0, 0.0, 1.0, 1.0]), np.float32([0.0, 2.0, 0.0, 0.0] + [3.0] * 4)
    better = jax.jit(functools.partial(resampling.better, config=CONFIG))
    merged, rewards = better((mark(0), old), (mark(1), new))
    np.testing.assert_array_equal(rewards, [0.0, 0.0, 1.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    np.testing.assert_array_equal(merged.ended, [0] * 4 + [1] * 4)


def test_draws_are_repeated_inside_jit_and_on_the_host_until_groups_vary():
    rare = lambda samples: (samples.tokens[:, 2:4] == 2).all(axis=1) * 1.0
    often = CONFIG.replace(max_draws=8)
    state = ppo.init(PARAMS, SGD, often)
    step = jax.jit(ppo.make_step(ACTOR, rare, PROMPTS, SGD, often))
    metrics = [step(state, jax.random.key(i))[1] for i in range(6)]
    # 0.33 where each is drawn once
    assert np.mean([x.groups_without_spread for x in metrics]) < 0.2
    calls, worth = [], [1.0]
    counted = lambda samples: calls.append(1) or worth[0] * rare(samples)
    host = ppo.make_host_step(ACTOR, counted, PROMPTS, SGD, often)
    same = [host(state, jax.random.key(i))[1] for i in range(6)]  # by the same keys
    assert_equal([x.reward for x in same], [x.reward for x in metrics])
    calls.clear()
    worth[0] = 0.0
    host(state, KEY)
    assert len(calls) == 8
    turns = list(run(state, KEY, 2, reward=rare, config=often))
    worth[0] = 1.0
    assert_equal(turns[0].metrics, host(state, jax.random.fold_in(KEY, 0))[1])
    assert_equal(turns[1].metrics, host(turns[0].state, jax.random.fold_in(KEY, 1))[1])
    with pytest.raises(ValueError, match="max_draws must be 1 without groups, got 3"):
        recipes.make("ppo", max_draws=3)


@pytest.mark.parametrize("kind", ["traced", "host", "plain", "overlap"])
def test_nothing_is_compiled_after_the_first_iteration(kind):
    """With draws that are all made, since no reward varies, and samples that are cut on the host."""
    config = (CORRECTED if kind == "overlap" else CONFIG).replace(max_draws=3)
    state, flat = ppo.init(PARAMS, SGD, config), lambda samples: samples.tokens[:, 0] * 1.0
    letters = lambda ids: "".join("abc"[i] for i in ids)
    cut = functools.partial(actors.stop_at, decode=letters, stop_strings="bc")
    keys = [jax.random.fold_in(KEY, i) for i in range(3)]
    if kind in ("traced", "host"):
        parts = (ACTOR, flat, PROMPTS, SGD, config)
        step = jax.jit(ppo.make_step(*parts)) if kind == "traced" else ppo.make_host_step(*parts, finish=cut)
        advance = lambda i, state: step(state, keys[i])[0]
    else:
        loop = run(state, KEY, 3, reward=flat, config=config, finish=cut, overlap=kind == "overlap")
        advance = lambda i, state: next(loop).state
    state = jax.block_until_ready(advance(0, state))
    with table_actor.compilations() as found:
        jax.block_until_ready(advance(2, advance(1, state)))
    assert not found
    with table_actor.compilations() as found:  # the counter counts
        jax.jit(lambda x: x * 2.0)(jnp.ones(17))
    assert found


class Tasks(NamedTuple):
    tokens: Any
    mask: Any
    answer: list
    about: dict


def test_stop_strings_end_responses_and_any_python_travels_with_a_prompt():
    about = {"ids": np.array([7, 8]), "names": ["left", "right"]}
    tasks, seen = Tasks(np.zeros((2, 2), int), None, [{"x": 1}, {"x": 2}], about), []
    others = tasks._replace(tokens=np.ones((2, 2), int), answer=[{"x": 3}, {"x": 4}])
    letters = lambda ids: "".join("abc"[i] for i in ids)

    def reward(samples, prompts):
        seen.append((samples, prompts))
        return score(samples)

    unending = table_actor.make(VOCAB, LENGTH)
    step = ppo.make_host_step(
        unending,
        reward,
        [tasks, others],
        SGD,
        CONFIG,
        finish=lambda x: actors.stop_at(x, letters, ("bc", "cc")),
    )
    state, metrics = step(ppo.init(PARAMS, SGD, CONFIG), KEY)
    step(state, KEY)
    # each iteration draws the next ones
    (samples, prompts), (later, more) = seen
    assert (later.tokens[:, :2] == 1).all() and [x["x"] for x in more.answer] == [3] * 4 + [4] * 4
    assert metrics.first_ratio_error < 1e-5 and 0 < metrics.ended < 1
    assert not samples.tokens[~samples.mask].any()
    for row, mask, ended in zip(samples.tokens[:, 2:], samples.response_mask, samples.ended, strict=True):
        text = letters(row[mask])
        assert (text.endswith(("bc", "cc")) and len(text) <= 3) if ended else len(text) == 3
        assert "bc" not in text[:-1] and "cc" not in text[:-1]
    assert [x["x"] for x in prompts.answer] == [1] * 4 + [2] * 4
    assert prompts.about["names"] == ["left"] * 4 + ["right"] * 4
    np.testing.assert_array_equal(prompts.about["ids"], [7] * 4 + [8] * 4)
    with pytest.raises(ValueError, match="stop_strings must be strings of a character or more, got ''"):
        actors.stop_at(samples, letters, "")
    with pytest.raises(ValueError, match="finish must be a function"):
        ppo.make_host_step(unending, score, [tasks], SGD, CONFIG, finish="bc")
