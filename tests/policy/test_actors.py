"""Actors of any model: foreign logits sample and score as our own, and the checker sees each fault."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm, policy
from tests.arrays import normal
from tests.policy.table_actor import compiled

VOCAB, WIDTH, LENGTH, NEW = 6, 4, 3, 5
TOKENS = np.arange(12).reshape(4, LENGTH) % VOCAB
PROMPTS = lm.Prompts(TOKENS, np.arange(LENGTH)[None] >= np.array([0, 1, 2, 0])[:, None])
PARAMS = {name: normal(i, (VOCAB, WIDTH)) for i, name in enumerate(("in", "out", "value"))}
HOT = lm.SamplingConfig(temperature=0.8, top_k=5, stop_token=(1, 2))
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
    config = lm.ModelConfig(VOCAB, num_layers=1, width=8, num_heads=2, value_head=True, init_scale=0.7)
    own = lm.make_actor(config, NEW, sampling=HOT)
    params = own.init(jax.random.key(0))

    def logits(params, tokens, mask):
        hidden = lm.encode(params["policy"], tokens, config, mask=mask)
        heads = (lm.logits(params["policy"], hidden, config), lm.values(params["policy"], hidden, config))
        return tuple(x.reshape(*tokens.shape, *x.shape[1:]) for x in heads)

    @compiled
    def both(key):
        samples = [actor.sample(key, params, PROMPTS) for actor in (own, MAKE(logits))]
        scores = [actor.score(params, samples[0], full=True) for actor in (own, MAKE(logits))]
        greedy = [actor.greedy(params, PROMPTS) for actor in (own, MAKE(logits))]
        return samples, scores, greedy

    for pair in both(KEY):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=0), *pair)


def test_a_cache_gives_the_same_tokens_and_the_laws_hold_of_both():
    plain, cached = MAKE(logits), MAKE(logits, init_cache=init_cache, step=step)
    one, other = (compiled(actor.sample)(KEY, PARAMS, PROMPTS) for actor in (plain, cached))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
    report = policy.check_actor(cached, PARAMS, PROMPTS, key=KEY)
    assert max(report.ratio, report.causality, report.padding, report.rows) < 1e-5 < report.ended
    # a critic of its own takes the place of a value head
    critic = MAKE(lambda *data: logits(*data)[0], values=lambda params, tokens, mask: tokens * 1.0)
    np.testing.assert_array_equal(critic.score(PARAMS, one).values, one.tokens[:, LENGTH - 1 : -1])
    assert critic.reference(PARAMS, one).values is None


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
