"""The distribution of a sampler: supports by sorting in NumPy, and draws that follow the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm._decoding import distribution
from tests import arrays

SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.7},
    "hot": {"temperature": 1.3},
    "top k": {"top_k": 5},
    "top p": {"top_p": 0.8},
    "min p": {"min_p": 0.1},
    "all at once": {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
    "greedy": {"greedy": True, "temperature": 3.0},
}


BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))

inverse_cdf = jax.jit(distribution.inverse_cdf)


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def reference(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, greedy=False):
    """Probabilities [V] in float64, by sorting."""
    scaled = np.asarray(logits, np.float64) / temperature
    if greedy:
        return np.eye(len(scaled))[np.argmax(scaled)]
    if top_k is not None:
        scaled = np.where(scaled >= np.sort(scaled)[::-1][top_k - 1], scaled, -np.inf)
    if top_p is not None:
        falling = np.sort(softmax(scaled))[::-1]
        last = falling[np.argmax(np.cumsum(falling) >= top_p)]
        scaled = np.where(softmax(scaled) >= last, scaled, -np.inf)
    if min_p is not None:
        scaled = np.where(softmax(scaled) >= min_p * softmax(scaled).max(), scaled, -np.inf)
    return softmax(scaled)


def kept(probabilities, **settings):
    """The support as a list of tokens."""
    sampling = lm.SamplingConfig(**settings)
    logits = distribution.adjust(jnp.log(jnp.array(probabilities)), sampling)
    return np.flatnonzero(distribution.truncation(logits, sampling)).tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_log_probs_equal_a_reference_that_sorts(name, variant):
    logits = 2 * arrays.normal(0, (3, 4, 23))
    sampling = lm.SamplingConfig(**SETTINGS[name])
    log_probs = variant(distribution.log_probs)(logits, sampling)
    assert log_probs.dtype == jnp.float32
    for row, actual in zip(logits.reshape(-1, 23), log_probs.reshape(-1, 23), strict=True):
        expected = reference(row, **SETTINGS[name])
        np.testing.assert_array_equal(actual == -jnp.inf, expected == 0)
        np.testing.assert_allclose(jnp.exp(actual), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [2, 17, 300])
def test_top_p_keeps_the_fewest_tokens_that_hold_it(size):
    logits = 3 * arrays.normal(size, (size,))
    shares = np.linspace(0.01, 0.995, 41)
    support = lambda p: distribution.truncation(logits, lm.SamplingConfig(top_p=p))
    supports = jax.jit(jax.vmap(support))(jnp.array(shares))
    for share, actual in zip(shares, supports, strict=True):
        np.testing.assert_array_equal(actual, reference(logits, top_p=share) > 0)


def test_top_p_of_one_keeps_even_what_rounding_loses():
    assert kept([0.5, 0.5, 1e-12, 1e-30], top_p=1.0) == [0, 1, 2, 3]


def test_top_p_stops_at_an_exact_sum():
    assert kept([0.25, 0.125, 0.5, 0.125], top_p=0.5) == [2]
    assert kept([0.25, 0.125, 0.5, 0.125], top_p=0.75) == [0, 2]


def test_a_tiny_top_p_keeps_the_likeliest():
    assert kept([0.2, 0.5, 0.3], top_p=1e-9) == [1]


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 1.0, "top_k": 3}])
def test_ties_at_a_threshold_are_all_kept(settings):
    assert kept([0.25, 0.25, 0.125, 0.25, 0.125], **settings) == [0, 1, 3]


def test_settings_that_truncate_nothing_keep_all():
    assert kept([0.2, 0.5, 0.3], top_k=3, min_p=0) == [0, 1, 2]
    assert kept([0.2, 0.5, 0.3], min_p=0.0) == [0, 1, 2]
    assert distribution.truncation(jnp.zeros(3), lm.SamplingConfig(top_k=7)) is None


def test_truncations_go_in_order():
    probabilities = [0.4, 0.3, 0.2, 0.1]
    # Of the two that top-k leaves, the first alone holds half; of all four it does not.
    assert kept(probabilities, top_k=2, top_p=0.5) == [0]
    # Were min-p first, two would be left, and of those the first alone would hold 0.55.
    assert kept(probabilities, top_p=0.55, min_p=0.6) == [0, 1]
    # At half the temperature the first holds 16/30.
    assert kept(probabilities, top_p=0.5) == [0, 1]
    assert kept(probabilities, top_p=0.5, temperature=0.5) == [0]
    # At temperature 2 the second is √(3/4) times as likely as the first, the last half.
    assert kept(probabilities, min_p=0.6, temperature=2.0) == [0, 1, 2]


def test_greedy_takes_the_first_of_equals():
    assert kept([0.2, 0.4, 0.4], greedy=True) == [1]
    assert distribution.argmax(jnp.array([[1.0, 3.0, 3.0], [-jnp.inf, -2.0, -5.0]])).tolist() == [1, 1]


def test_a_kept_token_joins_the_support_and_the_normalisation():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]] * 2))
    keep = jnp.array([2, 0])
    actual = jnp.exp(distribution.log_probs(logits, lm.SamplingConfig(top_k=1), keep=keep))
    np.testing.assert_allclose(actual, [[5 / 7, 0, 2 / 7], [1, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "hot", "top p", "all at once"])
def test_the_gradient_is_that_of_a_softmax_over_the_support(name):
    """∂ log p(v) / ∂ l_u = ([u = v] − p(u)) / τ inside the support and 0 outside."""
    logits = 2 * arrays.normal(4, (23,))
    sampling = lm.SamplingConfig(**SETTINGS[name])
    probabilities = reference(logits, **SETTINGS[name])
    token = int(np.argsort(probabilities)[-2])
    log_prob = lambda logits: distribution.log_probs(logits, sampling)[token]
    gradient = jax.jit(jax.grad(log_prob))(logits)
    expected = (np.eye(23)[token] - probabilities) / SETTINGS[name].get("temperature", 1.0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_of_minus_infinity_leave_finite_gradients(name):
    logits = (2 * arrays.normal(5, (4, 23))).at[:, ::3].set(-jnp.inf)
    sampling = lm.SamplingConfig(**SETTINGS[name])

    def expectation(logits):
        log_probs = distribution.log_probs(logits, sampling)
        return jnp.sum(jnp.where(log_probs > -jnp.inf, log_probs, 0.0)), log_probs

    gradient, log_probs = jax.jit(jax.grad(expectation, has_aux=True))(logits)
    assert jnp.isfinite(gradient).all()
    assert (log_probs[:, ::3] == -jnp.inf).all()


def test_the_temperature_may_be_vmapped_and_differentiated():
    logits = arrays.normal(6, (23,))
    log_prob = lambda t: distribution.log_probs(logits, lm.SamplingConfig(temperature=t))[3]
    temperatures = jnp.array([0.5, 1.0, 2.0])
    together = jax.vmap(log_prob)(temperatures)
    np.testing.assert_allclose(together, [log_prob(float(t)) for t in temperatures], rtol=1e-5)
    step = 1e-2
    slope = (log_prob(1 + step) - log_prob(1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(log_prob)(1.0), slope, rtol=1e-3)


def test_low_precision_logits_are_widened():
    logits = arrays.normal(7, (2, 23)).astype(jnp.bfloat16)
    log_probs = distribution.log_probs(logits, lm.SamplingConfig(temperature=0.7))
    assert log_probs.dtype == jnp.float32
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_probs), axis=-1), 1.0, rtol=1e-6)


def weights_with_holes(size):
    """Weights [V] over several magnitudes; a third are 0, among them the first and the last."""
    weights = np.exp(1.5 * np.asarray(arrays.normal(size, (size,))))
    weights[::3] = 0
    weights[-5:] = 0
    return weights


@pytest.mark.parametrize("size", [1, 17, 256, 300])
def test_every_token_is_drawn_in_proportion_to_its_weight(size):
    weights = weights_with_holes(size) if size > 6 else np.ones(size)
    uniform = ((np.arange(20_000) + 0.5) / 20_000).astype(np.float32)
    rows = np.broadcast_to(weights.astype(np.float32), (20_000, size))
    drawn = np.asarray(inverse_cdf(rows, uniform))
    counts = np.bincount(drawn, minlength=size)
    # Evenly spaced numbers leave no chance: an interval of length p holds 20000·p of them, ±1.
    np.testing.assert_allclose(counts, 20_000 * weights / weights.sum(), atol=2)
    assert (counts[weights == 0] == 0).all()
    assert (np.diff(drawn) >= 0).all()


@pytest.mark.parametrize("size", [17, 256, 300])
def test_no_uniform_number_draws_a_token_of_weight_zero(size):
    weights = weights_with_holes(size)
    places = np.flatnonzero(weights)
    rows = np.array([weights, weights], np.float32)
    ends = np.array([0.0, BELOW_ONE], np.float32)
    assert inverse_cdf(rows, ends).tolist() == [places[0], places[-1]]


def test_a_number_on_a_boundary_draws_the_token_above_it():
    rows = np.tile(np.array([1.0, 1.0, 2.0], np.float32), (4, 1))
    assert inverse_cdf(rows, np.array([0.0, 0.25, 0.5, 0.75], np.float32)).tolist() == [0, 1, 2, 2]


def test_rounding_at_the_end_of_a_block_draws_no_token_of_weight_zero():
    rng = np.random.default_rng(0)
    weights = np.exp(2 * rng.normal(size=(500, 64))).astype(np.float32)
    weights[:, np.arange(64) % 16 > 10] = 0
    # Uniform numbers on the seams between blocks, where the two cumulative sums may disagree.
    ends = np.cumsum(weights, axis=1, dtype=np.float64)[:, 15:48:16]
    seams = (ends / weights.sum(axis=1, dtype=np.float64)[:, None]).astype(np.float32)
    for uniform in (seams, np.nextafter(seams, 0), np.nextafter(seams, 1)):
        drawn = inverse_cdf(np.repeat(weights, 3, axis=0), uniform.ravel())
        assert (np.repeat(weights, 3, axis=0)[np.arange(1500), drawn] > 0).all()


@pytest.mark.parametrize("size", [17, 300])
def test_a_single_token_with_weight_is_always_drawn(size):
    rows = np.tile(1e-3 * np.eye(size, dtype=np.float32), (3, 1))
    drawn = inverse_cdf(rows, np.repeat(np.array([0.0, 0.5, BELOW_ONE], np.float32), size))
    np.testing.assert_array_equal(drawn, np.tile(np.arange(size), 3))


def test_stop_tokens_are_one_or_several_in_any_collection():
    one, two = lm.SamplingConfig(stop_token=3), lm.SamplingConfig(stop_token=(2, 3))
    assert {lm.SamplingConfig(stop_token=stop) for stop in ([3, 2], {2, 3}, (np.int64(3), 2))} == {two}
    assert lm.SamplingConfig(stop_token=[np.int64(3)]) == one and one.stop_token == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, r"temperature must be a number > 0, got 0\. .* greedy=True"),
        ({"temperature": np.float32(0.0)}, r"temperature must be a number > 0, got np.float32\(0\.0\)"),
        ({"temperature": -1.0}, "temperature must be a number > 0"),
        ({"temperature": float("nan")}, "temperature must be a number > 0, got nan"),
        ({"top_p": 0.0}, r"top_p must be a number > 0, got 0\.0\. None is off"),
        ({"top_p": 1.5}, r"top_p must be a number in \[0, 1\]"),
        ({"top_p": np.float32(2.0)}, "top_p must be a number in"),
        ({"min_p": -0.1}, r"min_p must be a number in \[0, 1\], got -0\.1\. None is off"),
        ({"min_p": 1.1}, "min_p must be a number in"),
        ({"top_k": 0}, r"top_k must be an integer ≥ 1, got 0\. None is off"),
        ({"top_k": 2.0}, r"top_k must be an integer ≥ 1, got 2\.0"),
        ({"temperature": np.inf}, "temperature must be a finite number"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": jnp.array(-1.0)}, "temperature must be a number > 0"),
        ({"greedy": "yes"}, "greedy must be one of False, True"),
        ({"stop_token": 1.0}, r"stop_token must be an integer, a collection of integers, or None, got 1\.0"),
        ({"stop_token": [2.0, 3]}, "stop_token must be an integer, a collection"),
        ({"stop_token": ()}, "stop_token must be an integer, a collection"),
        ({"stop_token": "end"}, "stop_token must be an integer, a collection"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lm.SamplingConfig(**settings)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_a_number_for_each_token_of_the_vocabulary_is_refused(name):
    settings = lm.SamplingConfig(**{name: jnp.full(4, 0.5)})
    with pytest.raises(
        ValueError, match=rf"SamplingConfig: {name}.shape must be \(\), one number, got \(4,\)"
    ):
        distribution.log_probs(jnp.zeros((2, 4)), settings)
