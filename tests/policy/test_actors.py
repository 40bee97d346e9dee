"""Actors of any model: foreign logits sample and score as our own, and the checker sees each fault."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm, policy
from tests.arrays import numpy_normal, rough
from tests.policy.table_actor import compiled

VOCAB, WIDTH, LENGTH, NEW = 6, 4, 3, 5
TOKENS = np.arange(12).reshape(4, LENGTH) % VOCAB
PROMPTS = lm.Prompts(TOKENS, np.arange(LENGTH)[None] >= np.array([0, 1, 2, 0])[:, None])
PARAMS = {name: numpy_normal(i, (VOCAB, WIDTH)) for i, name in enumerate(("in", "out", "value"))}
HOT = lm.SamplingConfig(temperature=0.8, top_k=5, stop_token=(1, 2))
BANS = {
    "min_new_tokens": 3,
    "banned_tokens": (2, 0),
    "logit_bias": {1: 3.0, 3: jnp.float32(-0.5)},
    "repetition_penalty": 1.7,
}
ENDS = {"stop_token": 1} | BANS
ENDING = {"sampling": lm.SamplingConfig(temperature=0.8, top_p=0.95, **ENDS)}
KEY = jax.random.key(1)


def head(params, state):
    """Logits and values of a running sum, which is all that this model remembers."""
    return jnp.tanh(state) @ params["out"].T, state @ params["value"][0]


def logits(params, tokens, mask):
    return head(params, jnp.cumsum(jnp.where(mask[:, :, None], params["in"][tokens], 0.0), axis=1))


def init_cache(params, tokens, mask, num_tokens):
    state = jnp.sum(jnp.where(mask[:, :, None], params["in"][tokens], 0.0), axis=1)
    return head(params, state)[0], state


def step(params, tokens, cache):
    cache = cache + params["in"][tokens]
    return head(params, cache)[0], cache


MAKE = functools.partial(policy.actor_from_logits, num_tokens=NEW, sampling=HOT)


def test_a_foreign_function_samples_and_scores_as_the_models_own_actor():
    config, sampling = CONFIG, dataclasses.replace(HOT, top_k=3, **BANS)
    own = lm.make_actor(CONFIG, NEW, sampling=sampling)
    params = own.init(jax.random.key(0))

    def logits(params, tokens, mask):
        hidden = lm.encode(params["policy"], tokens, config, mask=mask)
        heads = (lm.logits(params["policy"], hidden, config), lm.values(params["policy"], hidden, config))
        return tuple(x.reshape(*tokens.shape, *x.shape[1:]) for x in heads)

    foreign = MAKE(logits, sampling=sampling)

    @compiled
    def both(key):
        samples = [actor.sample(key, params, PROMPTS) for actor in (own, foreign)]
        scores = [actor.score(params, samples[0], full=True) for actor in (own, foreign)]
        greedy = [actor.greedy(params, PROMPTS) for actor in (own, foreign)]
        return samples, scores, greedy

    samples, scores, greedy = both(KEY)
    valid = np.asarray(samples[0].response_mask)  # a score that is not valid has no meaning
    scores = [jax.tree.map(lambda x: np.asarray(x)[valid], score) for score in scores]
    for pair in (samples, scores, greedy):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=0), *pair)
    np.testing.assert_allclose(np.asarray(samples[0].log_probs)[valid], scores[0].log_probs, atol=1e-5)


def test_a_cache_gives_the_same_tokens_and_the_laws_hold_of_both():
    plain, cached = MAKE(logits, **ENDING), MAKE(logits, init_cache=init_cache, step=step, **ENDING)
    one, other = (compiled(actor.sample)(KEY, PARAMS, PROMPTS) for actor in (plain, cached))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
    report = policy.check_actor(cached, PARAMS, PROMPTS, key=KEY)
    assert max(report.ratio, report.causality, report.padding, report.rows) < 1e-5 < report.ended
    # a critic of its own takes the place of a value head
    critic = MAKE(lambda *data: logits(*data)[0], values=lambda params, tokens, mask: tokens * 1.0)
    values = compiled(critic.score)(PARAMS, one).values
    np.testing.assert_array_equal(values, np.asarray(one.tokens)[:, LENGTH - 1 : -1])
    assert compiled(critic.reference)(PARAMS, one).values is None


CONFIG = lm.ModelConfig(VOCAB, num_layers=1, width=8, num_heads=2, value_head=True, init_scale=0.7)


# By default the other two are compared with the plain one, above.
@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("own", "cached"))]
)
def test_bans_penalties_and_late_stops_are_sampled_as_they_are_scored(name):
    cached = {"init_cache": init_cache, "step": step} if name == "cached" else {}
    actor = lm.make_actor(CONFIG, NEW, **ENDING) if name == "own" else MAKE(logits, **cached, **ENDING)
    params = actor.init(KEY) if name == "own" else PARAMS
    many = lm.Prompts(np.tile(TOKENS, (6, 1)), np.tile(PROMPTS.mask, (6, 1)))
    samples = jax.tree.map(np.asarray, compiled(actor.sample)(KEY, params, many))
    assert 0.2 < np.mean(samples.ended)
    said, mask = samples.tokens[:, LENGTH:], samples.response_mask
    assert not np.isin(said[mask], ENDS["banned_tokens"]).any() and mask.sum(axis=1).min() == 4
    scores = compiled(functools.partial(actor.score, full=True))(params, samples)
    reference = compiled(functools.partial(actor.reference, full=True))(params, samples)
    np.testing.assert_allclose(np.asarray(scores.log_probs)[mask], samples.log_probs[mask], atol=1e-5)
    assert np.all(np.asarray(reference.distribution)[:, :, [0, 2]] == -np.inf)
    assert np.all(np.asarray(scores.distribution)[:, :3, 1] == -np.inf)
    if name == "plain":  # by hand, one token after another
        row = 1
        for t in np.flatnonzero(mask[row]):
            past, seen = samples.tokens[row, : LENGTH + t], samples.mask[row, : LENGTH + t]
            state = np.where(seen[:, None], PARAMS["in"][past], 0.0).sum(axis=0)
            x = np.tanh(state) @ PARAMS["out"].T
            x[1], x[3] = x[1] + 3.0, x[3] - 0.5
            for token in set(past[seen]):
                x[token] = x[token] / 1.7 if x[token] > 0 else x[token] * 1.7
            x[[0, 2]] = -np.inf
            x[1] = -np.inf if t < 3 else x[1]
            expected = x[said[row, t]] / 0.8 - np.log(np.exp(x / 0.8).sum())
            np.testing.assert_allclose(np.asarray(reference.log_probs)[row, t], expected, atol=1e-5)


@pytest.mark.slow
def test_a_stream_follows_the_same_penalties():
    sampling, params = lm.SamplingConfig(**ENDS), rough(CONFIG, 0.7)
    samples = compiled(lambda key: lm.sample(key, params, TOKENS, CONFIG, NEW, sampling=sampling))(KEY)
    streamed = np.stack(list(lm.stream(KEY, params, TOKENS, CONFIG, NEW, sampling=sampling)), axis=1)
    longest = int(np.asarray(samples.response_mask).sum(axis=1).max())
    np.testing.assert_array_equal(streamed, np.asarray(samples.tokens)[:, LENGTH : LENGTH + longest])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_new_tokens": 2}, "min_new_tokens must be 0 without a stop token, got 2"),
        ({"min_new_tokens": -1, "stop_token": 1}, "min_new_tokens must be an integer ≥ 0, got -1"),
        ({"banned_tokens": 3}, "banned_tokens must be a collection of integers, or None, got 3"),
        ({"banned_tokens": ()}, "banned_tokens must be a collection of integers"),
        ({"logit_bias": [0.1]}, r"logit_bias must be a dict \{token: number\} or an array"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias must be a collection of integers"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a number > 0, got 0.0"),
    ],
)
def test_settings_of_sampling_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"SamplingConfig: {message}"):
        lm.SamplingConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"banned_tokens": [6]}, "banned_tokens must be from 0 to 5"),
        ({"banned_tokens": range(6)}, "banned_tokens must be fewer than the vocabulary"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must be from 0 to 5"),
        ({"logit_bias": jnp.ones(5)}, r"logit_bias.shape must be \(6,\)"),
    ],
)
def test_settings_of_other_vocabularies_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lm.make_actor(CONFIG, NEW, sampling=lm.SamplingConfig(**settings))


def forgetful(actor, **changes):
    """The actor whose samples are changed after the fact."""
    change = lambda samples: samples._replace(**{k: fn(samples) for k, fn in changes.items()})
    return actor._replace(sample=lambda *data: change(actor.sample(*data)))


FREE = lm.SamplingConfig()
FAULTS = {
    "ratio": MAKE(logits)._replace(score=MAKE(logits, sampling=FREE).score),
    "causality": MAKE(lambda p, t, m: logits(p, t, m)[0] + p["out"][jnp.roll(t, -1, 1)] @ p["in"].T),
    "padding": MAKE(lambda p, t, m: logits(p, t, jnp.ones_like(m))),
    "rows": MAKE(lambda p, t, m: (x := logits(p, t, m)[0]) - jnp.mean(x, axis=0, keepdims=True) * 3),
    "reference": MAKE(logits, sampling=FREE)._replace(
        reference=MAKE(logits, sampling=lm.SamplingConfig(temperature=2.0)).reference
    ),
    "stops": forgetful(MAKE(logits), ended=lambda samples: ~samples.ended),
    "shapes": forgetful(MAKE(logits), log_probs=lambda samples: samples.log_probs[:, 1:]),
    "keys": MAKE(logits, sampling=FREE)._replace(
        sample=lambda key, *data: MAKE(logits, sampling=FREE).sample(KEY, *data)
    ),
}


@pytest.mark.parametrize("law", FAULTS)
def test_the_checker_names_the_law_that_does_not_hold(law):
    with pytest.raises(ValueError, match=rf"check_actor: actor \({law}\) must be "):
        policy.check_actor(FAULTS[law], PARAMS, PROMPTS, key=KEY)


def test_a_model_without_padding_can_say_so():
    unpadded = lm.Prompts(TOKENS)
    assert np.isnan(policy.check_actor(FAULTS["padding"], PARAMS, unpadded, padding=False).padding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": None}, "logits must be a function, got None"),
        ({"num_tokens": 0}, "num_tokens must be an integer ≥ 1, got 0"),
        ({"step": step}, "init_cache must be a function beside the other one, got None"),
        ({"sampling": 0.7}, "sampling must be a SamplingConfig, got 0.7"),
        (
            {"sampling": lm.SamplingConfig(stop_token=1, min_new_tokens=NEW)},
            "min_new_tokens must be less than num_tokens=5, got 5",
        ),
    ],
)
def test_what_makes_no_actor_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"actor_from_logits: {message}"):
        policy.actor_from_logits(**{"logits": logits, "num_tokens": NEW} | arguments)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"logits": lambda p, t, m: p["in"]}, r"result of logits must be of shape \(\*\(4, 8\), V\)"),
        ({"init_cache": lambda *data: (jnp.ones(3), 0), "step": step}, "result of init_cache must be logits"),
        ({"sampling": lm.SamplingConfig(stop_token=9)}, "stop_token must be from 0 to 5"),
    ],
)
def test_results_of_a_wrong_shape_are_refused(functions, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(MAKE(**{"logits": logits} | functions).sample, KEY, PARAMS, PROMPTS)
    with pytest.raises(ValueError, match="Give actor_from_logits its init"):
        MAKE(logits).init(KEY)
