import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import kl
from proxlm.policy._finite import scaled
from tests import arrays
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled


def two_policies(shape=(5,)):
    return 0.7 * arrays.normal(0, shape), 0.7 * arrays.normal(1, shape)


@functools.cache
def everything():
    """Values and slopes of all estimators, in one program."""
    both = lambda fn: lambda x, ref: jax.vmap(jax.value_and_grad(fn))(x, ref)
    return compiled(lambda x, ref: {kind: both(fn)(x, ref) for kind, fn in kl.ESTIMATORS.items()})


def test_estimators_and_their_gradients_are_verls():
    given = vectors_on_disk.inputs()
    ours = everything()(given.logp.ravel(), given.logp_ref.ravel())
    for kind, expected in vectors_on_disk.load("verl")["kl"].items():
        for mine, theirs in zip(ours[kind], (expected["value"], expected["gradient"]), strict=True):
            np.testing.assert_allclose(mine, np.ravel(theirs), atol=1e-5, rtol=1e-5, err_msg=kind)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind):
    logits, ref_logits = two_policies()
    log_probs, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    expected = jnp.sum(jnp.exp(log_probs) * kl.estimator(kind)(log_probs, ref))
    np.testing.assert_allclose(expected, kl.exact(log_probs, ref), rtol=1e-5)


def expected_gradient_in_the_loss(kind, logits, ref):
    """Averages the estimator's gradient over the policy's own samples, by enumeration."""
    probs = jax.lax.stop_gradient(jax.nn.softmax(logits))
    estimate = kl.estimator(kind)
    return jax.grad(lambda z: jnp.sum(probs * estimate(jax.nn.log_softmax(z), ref)))(logits)


def test_in_the_loss_k1_pulls_nowhere_and_k2_where_the_exact_kl_pulls_and_k3_backwards():
    logits, ref_logits = two_policies()
    ref = jax.nn.log_softmax(ref_logits)
    exact = jax.grad(lambda z: kl.exact(jax.nn.log_softmax(z), ref))(logits)
    reverse = jax.grad(lambda z: kl.exact(ref, jax.nn.log_softmax(z)))(logits)
    of = lambda kind: expected_gradient_in_the_loss(kind, logits, ref)
    assert jnp.max(jnp.abs(exact)) > 0.1
    np.testing.assert_allclose(of("k1"), jnp.zeros(5), atol=1e-6)
    np.testing.assert_allclose(of("k2"), exact, atol=1e-6)
    np.testing.assert_allclose(of("k3"), reverse, atol=1e-6)


def test_exact_kl_by_hand_and_as_rlax(variant):
    log = lambda *p: jnp.log(jnp.array(p))
    by_hand = 0.5 * np.log(2.0) + 0.5 * np.log(2.0 / 3.0)
    np.testing.assert_allclose(variant(kl.exact)(log(0.5, 0.5), log(0.25, 0.75)), by_hand, 1e-6)
    expected = vectors_on_disk.load("rlax")["exact_kl"]
    log_probs = jax.nn.log_softmax(jnp.array(expected["logits"]))
    ours = variant(kl.exact)(log_probs, log_probs[::-1])
    np.testing.assert_allclose(ours, expected["kl_to_reversed"], rtol=1e-5)


def test_exact_kl_of_truncated_policies_has_finite_gradients(variant):
    logits = jnp.array([0.5, -jnp.inf, 1.0, -1e4])
    ref = jax.nn.log_softmax(jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf]))

    def divergence(logits, ref):
        return kl.exact(jax.nn.log_softmax(logits), ref)

    value, gradients = variant(jax.value_and_grad(divergence, argnums=(0, 1)))(logits, ref)
    small = divergence(logits[jnp.array([0, 2])], jax.nn.log_softmax(jnp.zeros(2)))
    np.testing.assert_allclose(value, small, rtol=1e-6)
    assert value > 0.01 and all(jnp.all(jnp.isfinite(g)) for g in gradients)


def test_what_the_reference_cannot_say_costs_infinitely_much():
    half = jnp.log(jnp.array([0.5, 0.5]))
    assert kl.exact(half, jnp.array([0.0, -jnp.inf])) == jnp.inf
    assert kl.exact(jnp.array([0.0, -jnp.inf]), half) == pytest.approx(np.log(2.0))


def test_exact_kl_does_not_hide_nan():
    assert jnp.isnan(kl.exact(jnp.array([jnp.nan, 0.0]), jnp.zeros(2)))


def test_values_and_gradients_stay_finite_at_any_distance():
    shift = np.resize(np.float32([-np.inf, -1e4, -30.0, 0.0, 30.0, 1e4, np.inf]), 42)
    for kind, results in everything()(shift - 1.0, np.full(42, -1.0, np.float32)).items():
        assert all(np.all(np.isfinite(x)) for x in results), kind


def test_k3_still_pulls_back_a_token_that_became_too_likely():
    gradient = jax.grad(kl.k3)(0.0, -1e4)
    np.testing.assert_allclose(gradient, 1.0)


def test_k2_and_k3_are_never_negative_however_close_the_policies():
    tiny = arrays.normal(0, (10_000,)) * 10.0 ** jnp.linspace(-9.0, 1.0, 10_000)
    for estimate in (kl.k2, kl.k3):
        assert jnp.min(estimate(tiny, jnp.zeros_like(tiny))) >= 0.0


def test_half_precision_inputs_are_subtracted_in_float32():
    log_probs, ref = jnp.bfloat16(-100.0), jnp.float32(-100.25)
    assert kl.k1(log_probs, ref) == 0.25
    assert kl.k1(log_probs, log_probs).dtype == jnp.float32


def test_adaptive_coefficient_follows_verls_and_the_n_details_sequences(variant):
    verl, details = (vectors_on_disk.load(name)["adaptive_kl"] for name in ("verl", "n_details"))
    for sequence in (verl, details):
        coef = jnp.float32(sequence["initial"])
        for observed, num_sequences, expected in sequence["kl_n_value"]:
            coef = variant(kl.adapt)(coef, observed, num_sequences)
            np.testing.assert_allclose(coef, expected, rtol=1e-6)


def test_adaptive_coefficient_is_clipped_and_still_at_the_target():
    assert kl.adapt(0.5, 6.0, 1000) == 0.5
    np.testing.assert_allclose(kl.adapt(0.5, 1e6, 1000), 0.5 * 1.02, rtol=1e-6)
    np.testing.assert_allclose(kl.adapt(0.5, 6.6, 1000), 0.5 * 1.01, rtol=1e-6)
    np.testing.assert_allclose(kl.adapt(0.5, 0.0, 1000), 0.5 * 0.98, rtol=1e-6)


def test_a_kl_that_is_not_known_is_refused_or_leaves_the_coefficient():
    with pytest.raises(ValueError, match="adapt: observed_kl must be a number, got nan"):
        kl.adapt(0.1, float("nan"), 8)
    step = jax.jit(lambda observed: kl.adapt(0.5, observed, 1000))
    assert step(jnp.nan) == 0.5 and step(jnp.inf) == jnp.float32(0.5 * 1.02)


def test_what_cannot_be_said_counts_as_a_billion_nats():
    assert kl.k1(-1.0, -jnp.inf) == jnp.float32(1e9) and kl.k1(-jnp.inf, -jnp.inf) == 0


def test_an_infinite_divergence_has_no_gradient_and_no_weight_where_its_coefficient_is_0():
    half, never = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])
    loss = lambda x, coef: scaled(coef, kl.exact(jax.nn.log_softmax(x), never))
    for coef, value in ((0.0, 0.0), (0.1, jnp.inf)):
        found, gradient = jax.jit(jax.value_and_grad(loss))(half, coef)
        assert found == value and not np.any(gradient)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"kind must be one of 'k1', 'k2', 'k3'.*, got 'k4'"):
        kl.estimator("k4")
    with pytest.raises(ValueError, match=r"ref_log_probs\.shape must be .*, got \(2,\)"):
        kl.k1(np.zeros((3, 2), np.float32), np.zeros((2,), np.float32))
    with pytest.raises(ValueError, match=r"coef must be .*, got -0\.1"):
        kl.adapt(-0.1, 6.0, 8)
    with pytest.raises(ValueError, match=r"coef must be .*, got nan"):
        kl.adapt(float("nan"), 6.0, 8)
    with pytest.raises(ValueError, match=r"target must be .*, got 0\.0"):
        kl.adapt(0.1, 6.0, 8, target=0.0)
    with pytest.raises(ValueError, match=r"horizon must be a number ≥ 20000\.0, got 10000\.0"):
        kl.adapt(0.1, 6.0, 100_000)
