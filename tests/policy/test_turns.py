"""Responses of several turns: what a tool says, pure or Python, is read and not learnt from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import lm, policy
from proxlm.policy import ppo, recipes
from tests.arrays import numpy_normal as normal
from tests.policy.table_actor import assert_close, assert_equal, compilations, compiled

CONFIG = lm.ModelConfig(7, num_layers=1, width=8, num_heads=2, value_head=True, init_scale=0.5)
SAMPLING = lm.SamplingConfig(temperature=0.9, stop_token=1, min_new_tokens=1, logit_bias={1: 1.0})
SGD, KEY, NAN = optax.sgd(0.1), jax.random.key(4), np.nan
SETTINGS = recipes.make("ppo", num_epochs=1, num_minibatches=2, group_size=2, gae_lambda=0.9)
SETTINGS = SETTINGS.replace(kl_placement="loss", kl_estimator="k3")
TOKENS = np.array([[2, 3], [4, 0], [5, 6], [3, 3]])
PROMPTS = lm.Prompts(TOKENS, TOKENS > 0)


def pure(turn, samples):
    """To a turn that has ended the token before its end, and the one above if that is even; else nothing."""
    length = jnp.sum(turn.mask, axis=1, keepdims=True)
    token = lambda i: jnp.take_along_axis(turn.tokens, jnp.maximum(length - i, 0), axis=1)
    before, called = token(2), (token(1) == 1) & (length > 1)
    says = jnp.concatenate([before, (before + 1) % 7], axis=1)
    return lm.Prompts(says, called & jnp.concatenate([called, before % 2 == 0], axis=1))


def python(turn, samples):
    """The same as lists, of which the longer ones are cut."""
    assert isinstance(samples.tokens, np.ndarray) and samples.tokens.shape[1] > turn.tokens.shape[1]
    outputs = []
    for row, real in zip(turn.tokens, turn.mask, strict=True):
        said = row[real].tolist()
        called = len(said) > 1 and said[-1] == 1
        outputs.append([said[-2], (said[-2] + 1) % 7, 0][: 3 - 2 * (said[-2] % 2)] if called else None)
    return outputs


def actor(tool, **how):
    return lm.make_actor(CONFIG, 3, sampling=SAMPLING, turns=lm.Turns(tool, 2, **how))


PURE, PYTHON = actor(pure), actor(python, on_host=True)
REWARD = lambda samples: (samples.tokens * samples.mask).sum(axis=1) * 0.1


@pytest.fixture(scope="module")
def halves():
    collect, learn = ppo.make_collect_and_learn(PURE, SGD, SETTINGS)
    state = ppo.init(PURE.init(jax.random.key(0)), SGD, SETTINGS)
    collect, learn = compiled(collect), compiled(learn)
    return state, collect(state, KEY, PROMPTS), learn


def test_a_pure_tool_and_one_in_python_give_the_same_samples(halves):
    state, samples, _ = halves
    on_host = ppo.make_collect_and_learn(PYTHON, SGD, SETTINGS)[0](state, KEY, PROMPTS)
    assert_close(on_host, samples, atol=1e-5)
    mask = np.asarray(samples.response_mask)
    assert mask.shape == (8, 8) and not mask[:, 3:5].any() and 0 < mask[:, 5].sum() < 8
    np.testing.assert_array_equal(mask[:, 5], np.asarray(samples.mask)[:, 3 + 3])
    ended = np.asarray(samples.ended)
    assert ended.any() and not ended.all()


def test_what_stands_in_holes_changes_no_bit_of_an_update(halves):
    state, samples, learn = halves
    holes = ~np.asarray(samples.response_mask)
    rewards = np.asarray(REWARD(samples))[:, None] * np.ones(holes.shape, np.float32)
    after, metrics = learn(state, KEY, samples, jnp.asarray(rewards))
    assert metrics.first_ratio_error < 1e-5 and metrics.grad_norm > 0
    np.testing.assert_allclose(metrics.length, (~holes).sum(axis=1).mean())
    padding = ~np.asarray(samples.mask)
    poisoned = samples._replace(
        tokens=jnp.where(padding, 6, samples.tokens), log_probs=jnp.where(holes, NAN, samples.log_probs)
    )
    assert_equal(learn(state, KEY, poisoned, jnp.where(holes, NAN, rewards)), (after, metrics))
    # but what a tool says is read
    read = np.asarray(samples.mask)[:, 2:] & holes
    other = samples._replace(tokens=samples.tokens.at[:, 2:].set(jnp.where(read, 6, samples.tokens[:, 2:])))
    changed, _ = learn(state, KEY, other, jnp.asarray(rewards))
    assert jnp.any(
        changed.params["policy"]["embedding"]["kernel"] != after.params["policy"]["embedding"]["kernel"]
    )


def test_a_tool_in_python_is_called_in_the_loop_and_refused_in_a_traced_step(halves):
    prompts = lambda key: PROMPTS
    settings = recipes.make("dr_grpo", num_epochs=1, num_minibatches=1, group_size=2, kl_coef=0.0)
    state = ppo.init(halves[0].params, SGD, settings)
    loop = ppo.iterate(state, KEY, 3, PYTHON, REWARD, prompts, SGD, settings)
    turn = next(loop)
    assert turn.metrics.first_ratio_error < 1e-5 and turn.samples.tokens.shape == (8, 10)
    with compilations() as found:
        assert len(list(loop)) == 2 and not found
    with pytest.raises(ValueError, match=r"ppo.make_step: actor.turns.on_host must be False, got True"):
        ppo.make_step(PYTHON, REWARD, prompts, SGD, SETTINGS)


def running_sum(params, state):
    """Logits and values of a sum of embeddings by position, which is all that this model remembers."""
    return jnp.tanh(state) @ params["in"].T, state[..., 0]


def foreign(params, tokens, mask):
    """A model for rows padded on the left, which would read the tokens in holes."""
    first = jnp.argmax(mask, axis=1)[:, None]
    place = jnp.arange(tokens.shape[1])[None] - first
    weights = jnp.where(place >= 0, 1.0 + 0.1 * jnp.cos(place), 0.0)[:, :, None]
    return running_sum(params, jnp.cumsum(weights * params["in"][tokens], axis=1))


def init_cache(params, tokens, mask, num_tokens):
    place = jnp.arange(tokens.shape[1])[None] - jnp.argmax(mask, axis=1)[:, None]
    weights = jnp.where(place >= 0, 1.0 + 0.1 * jnp.cos(place), 0.0)[:, :, None]
    state = jnp.sum(weights * params["in"][tokens], axis=1)
    return running_sum(params, state)[0], (state, place[:, -1])


def step(params, tokens, cache):
    state, place = cache[0], cache[1] + 1
    state = state + (1.0 + 0.1 * jnp.cos(place))[:, None] * params["in"][tokens]
    return running_sum(params, state)[0], (state, place)


def test_any_model_has_turns_with_and_without_a_cache_and_is_given_no_holes():
    params = {"in": 0.7 * normal(4, (7, 5))}
    make = functools.partial(policy.actor_from_logits, num_tokens=3, sampling=SAMPLING)
    cache, turns = {"init_cache": init_cache, "step": step}, lm.Turns(pure, 2, num_turns=3)
    host = lm.Turns(python, 2, num_turns=3, on_host=True)
    plain, cached = make(foreign, turns=turns), make(foreign, turns=host, **cache)
    many = lm.Prompts(np.tile(TOKENS, (6, 1)), np.tile(TOKENS > 0, (6, 1)))
    one, other = compiled(plain.sample)(KEY, params, many), cached.sample(KEY, params, many)
    one, other = jax.tree.map(np.asarray, (one, other))
    assert_equal(one._replace(log_probs=0), other._replace(log_probs=0))
    assert_close(one.log_probs, other.log_probs, atol=1e-5)
    mask = np.asarray(one.response_mask)
    assert mask.shape == (24, 13) and not mask[:, [3, 4, 8, 9]].any() and 0 < mask[:, 10].sum() < 24
    assert (~np.asarray(one.mask)[:, 4:] & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > mask)[:, 2:]).any()
    scores, after = compiled(lambda *given: (plain.score(*given), plain.final_values(*given)))(params, one)
    np.testing.assert_allclose(np.asarray(scores.log_probs)[mask], one.log_probs[mask], atol=1e-5)
    # by hand: a row without its holes
    row = int(np.flatnonzero(mask[:, 10])[0])
    real = np.asarray(one.mask)[row]
    said = np.asarray(one.tokens)[row][real][None]
    values = np.asarray(compiled(foreign)(params, said, np.ones(said.shape, bool))[1])[0]
    before = (np.cumsum(real) - 2)[2:][mask[row]]
    np.testing.assert_allclose(scores.values[row][mask[row]], values[before], atol=1e-5)
    np.testing.assert_allclose(after[row], values[-1], atol=1e-5)
    with pytest.raises(ValueError, match="actor_from_logits: turns must be a Turns, got"):
        make(foreign, turns=pure)


# By default each is scored as it was sampled, and holes are poisoned.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_the_laws_of_an_actor_hold_over_turns(kind):
    foreign_actor = policy.actor_from_logits(
        foreign, num_tokens=3, sampling=SAMPLING, turns=lm.Turns(pure, 2, num_turns=3)
    )
    tried, params = {
        "own": (PURE, PURE.init(jax.random.key(0))),
        "foreign": (foreign_actor, {"in": 0.7 * jax.random.normal(KEY, (7, 5))}),
    }[kind]
    report = policy.check_actor(tried, params, PROMPTS, key=KEY)
    assert max(report.ratio, report.causality, report.padding, report.rows, report.reference) < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lm.Turns(3, 2), "Turns: tool must be a function, got 3"),
        (lambda: lm.Turns(pure, 0), "Turns: num_outputs must be an integer ≥ 1, got 0"),
        (lambda: lm.Turns(pure, 2, 1), "num_turns must be an integer ≥ 2, got 1. Without a tool"),
        (lambda: lm.make_actor(CONFIG, 3, turns=pure), "make_actor: turns must be Turns or None"),
        (lambda: actor(pure, num_turns=0), "num_turns"),
        (lambda: lm.make_actor(CONFIG, 3, turns=PURE.turns, num_microbatches=2), "must be 1 with turns"),
        (lambda: lm.make_actor(CONFIG, 900, turns=PURE.turns), "columns of a response must be fewer than"),
        (lambda: lm.text_tool(3, str, list), "text_tool: fn must be a function, got 3"),
    ],
)
def test_what_makes_no_turns_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("tool", "on_host", "message"),
    [
        (lambda turn, samples: turn.tokens, False, r"output of the tool must be Prompts .* shape \(4, 2\)"),
        (lambda turn, samples: turn, False, r"output of the tool must be Prompts .* shape \(4, 2\)"),
        (lambda turn, samples: [[1]], True, "tool must be a list of 4 lists of token ids"),
        pytest.param(
            lambda turn, samples: ["a"] * 4,
            True,
            "a list of 4 lists of token ids, or None",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_outputs_of_a_wrong_kind_are_refused(halves, tool, on_host, message):
    with pytest.raises(ValueError, match=message):
        acts = actor(tool, on_host=on_host)
        if on_host:
            acts.sample(KEY, halves[0].params, PROMPTS)
        jax.eval_shape(acts.sample, KEY, halves[0].params, PROMPTS)
