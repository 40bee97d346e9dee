"""Turns that go on from the cache are those of the whole row, and are scored as they were sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from tests import arrays
from tests.policy.table_actor import compiled

SIZES = {"vocab_size": 11, "width": 16, "num_heads": 4, "num_kv_heads": 2, "max_length": 32}
CONFIGS = {
    "list": lm.ModelConfig(num_layers=1, window=6, **SIZES),
    "stacked": lm.ModelConfig(num_layers=2, unroll=1, window=6, **SIZES),
}
SAMPLING = lm.SamplingConfig(
    temperature=0.8, top_k=9, stop_token=(1, 2, 5), min_new_tokens=1, repetition_penalty=1.3
)
PROMPTS = jnp.array([[3, 1, 4], [1, 5, 9], [2, 6, 5], [0, 0, 7]])
PROMPT_MASK = jnp.array([[True] * 3, [True] * 3, [True, True, False], [False, False, True]])
OUTPUTS = jnp.array([[[7, 8], [8, 0], [0, 0], [6, 10]], [[9, 9], [4, 0], [3, 3], [0, 0]]])
KEYS = jax.random.split(jax.random.key(3), 12).reshape(3, 4)


@pytest.fixture(scope="module", params=[pytest.param("list", marks=pytest.mark.slow), "stacked"])
def played(request):
    """Three turns of four tokens; their scores; the second one by the whole row, and by a forged one."""
    config = CONFIGS[request.param]
    params = arrays.rough(config, scale=0.35)
    how = {"config": config, "num_tokens": 4, "sampling": SAMPLING}

    def more(i, rollout):
        return lm.continue_rollout(
            KEYS[i], params, rollout, OUTPUTS[i - 1], output_mask=OUTPUTS[i - 1] > 0, **how
        )

    @compiled
    def play(forged):
        first = lm.start_rollout(KEYS[0], params, PROMPTS, prompt_mask=PROMPT_MASK, **how)
        second = more(1, first)
        samples = more(2, second).samples
        rows = {"mask": samples.mask, "start": 3, "sampling": SAMPLING}
        scores = lm.score(params, samples.tokens, config, response_mask=samples.response_mask, **rows)
        whole = second.samples.tokens[:, :9], second.samples.mask[:, :9]
        anew = lm.sample(KEYS[1], params, whole[0], prompt_mask=whole[1], **how)
        tokens = first.samples.tokens
        turned = tokens.at[:2, :5].set(jnp.roll(tokens[:2, :5], forged, axis=1))
        other = more(1, first._replace(samples=first.samples._replace(tokens=turned)))
        return samples, scores, second.samples, anew, other.samples

    return play(2)


def test_columns_are_aligned_and_masks_tell_tokens_of_tools_and_padding(played):
    samples = jax.tree.map(np.asarray, played[0])
    assert samples.tokens.shape == (4, 19) and samples.log_probs.shape == (4, 16)
    np.testing.assert_array_equal(samples.mask[:, 7:9].sum(axis=1), [2, 1, 0, 2])
    np.testing.assert_array_equal(samples.tokens[:, 7:9], [[7, 8], [0, 8], [0, 0], [6, 10]])
    holes = ~samples.response_mask
    assert holes[:, [4, 5, 10, 11]].all() and not samples.log_probs[holes].any()
    np.testing.assert_array_equal(
        holes[:, 6:].all(axis=1), [False, False, True, False]
    )  # it has ended for good
    np.testing.assert_array_equal(holes[:, 12:].all(axis=1), [False, False, True, True])
    turns = samples.response_mask.reshape(4, 16)[:, [0, 1, 6, 7, 12, 13]].reshape(4, 3, 2)
    assert (turns[:, :, 0] == turns[:, :, 1]).all()  # two tokens at least, in each turn
    said = samples.tokens[:, 3:]
    assert not said[~samples.mask[:, 3:]].any()
    stops = np.isin(said, SAMPLING.stop_token) & samples.response_mask
    assert stops[:, 6:].any() and not stops[:, [0, 6, 12]].any()
    last = [np.flatnonzero(row)[-1] for row in samples.response_mask]
    np.testing.assert_array_equal(samples.ended, stops[range(4), last])


def test_each_turn_is_scored_as_it_was_sampled(played):
    samples, scores = jax.tree.map(np.asarray, played[:2])
    error = np.abs(scores.log_probs - samples.log_probs)[samples.response_mask]
    assert error.max() < 1e-5


def test_a_turn_is_that_of_the_whole_row_as_a_prompt_and_the_cache_is_not_filled_anew(played):
    _, _, second, anew, forged = jax.tree.map(np.asarray, played)
    for rows, other in {(0, 1, 3): anew, (0, 1): forged}.items():
        here = np.ix_(rows, range(9, 13))
        np.testing.assert_array_equal(other.tokens[here], second.tokens[here])
        here = np.ix_(rows, range(-4, 0))
        np.testing.assert_allclose(other.log_probs[here], second.log_probs[here], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollout": 3}, "continue_rollout: rollout must be a Rollout, got 3"),
        ({"outputs": OUTPUTS[0, :2]}, r"outputs.shape must be \(4, K\), a row for each of the rollout"),
        ({"outputs": OUTPUTS[0] * 1.0}, "outputs.dtype must be an integer one"),
        ({"outputs": OUTPUTS[0] + 9}, "outputs must be ids from 0 to 10"),
        ({"output_mask": jnp.ones((4, 3), bool)}, r"output_mask.shape must be \(4, 2\)"),
        ({"num_tokens": 27}, "33 tokens do not fit"),
        ({"key": jax.random.key(0)[None]}, r"key.shape must be \(\) or \(4,\)"),
    ],
)
def test_what_continues_no_rollout_is_refused(change, message):
    config = CONFIGS["list"]
    cache = [lm._rollout._cache.LayerCache(*[jnp.zeros((4, 2, 3, 4))] * 2)]
    mask = jnp.ones((4, 1), bool)
    samples = lm.Samples(jnp.ones((4, 4), int), jnp.ones((4, 4), bool), mask * 0.0, mask, mask[:, 0])
    good = {"key": jax.random.key(0), "params": arrays.rough(config, scale=0.3), "outputs": OUTPUTS[0]}
    good |= {"rollout": lm.Rollout(samples, cache, mask[:, 0]), "config": config, "num_tokens": 2}
    with pytest.raises(ValueError, match=message):
        lm.continue_rollout(**good | change)
