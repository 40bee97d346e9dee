import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import diagnostics
from tests.policy import vectors_on_disk


def test_policy_diagnostics_by_hand(variant):
    rho = jnp.array([0.5, 0.5, 1.0, 2.0, 1.25])
    advantages = jnp.array([1.0, -1.0, 1.0, 3.0, jnp.nan])
    mask = jnp.array([True, True, True, True, False])
    report = variant(diagnostics.policy_diagnostics)(jnp.log(rho), jnp.zeros(5), advantages, mask)
    valid = np.array([0.5, 0.5, 1.0, 2.0])
    expected = diagnostics.PolicyDiagnostics(
        approx_kl=np.mean(valid - 1.0 - np.log(valid)),
        approx_kl_k2=np.mean(0.5 * np.log(valid) ** 2),
        clip_fraction_low=2 / 4,
        clip_fraction_high=1 / 4,
        clip_fraction_active=2 / 4,
        ratio_min=0.5,
        ratio_max=2.0,
        effective_sample_size=16.0 / (4 * 5.5),
    )
    for name, value in report._asdict().items():
        np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["token", "clip_higher"])
def test_active_clip_fraction_is_openrlhfs_clip_ratio(name):
    given, expected = vectors_on_disk.inputs(), vectors_on_disk.load("openrlhf")[name]
    clip_high = expected.get("clip_high", 0.2)
    report = diagnostics.policy_diagnostics(
        given.logp, given.logp_old, given.advantages, given.mask, clip_high=clip_high
    )
    np.testing.assert_allclose(report.clip_fraction_active, expected["clip_ratio"], rtol=1e-6)


def test_approx_kl_is_the_kl_from_the_old_policy_in_expectation():
    old, new = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.3, 0.5])
    # 10 tokens in the proportions of the policy that sampled
    counts = jnp.array([5, 3, 2])
    tokens = jnp.repeat(jnp.arange(3), counts, total_repeat_length=10)
    report = diagnostics.policy_diagnostics(
        jnp.log(new)[tokens], jnp.log(old)[tokens], 0.0, jnp.ones(10, bool)
    )
    np.testing.assert_allclose(report.approx_kl, jnp.sum(old * jnp.log(old / new)), rtol=1e-5)


def test_nan_under_the_mask_changes_no_bit(variant):
    given = vectors_on_disk.inputs()

    def at(fill):
        put = lambda x: jnp.where(given.mask, x, fill)
        inputs = put(given.logp), put(given.logp_old), put(given.advantages), given.mask
        explained = variant(diagnostics.explained_variance)(put(given.values), put(given.returns), given.mask)
        return [*variant(diagnostics.policy_diagnostics)(*inputs), explained]

    np.testing.assert_array_equal(jnp.stack(at(0.5)), jnp.stack(at(jnp.nan)))


@pytest.mark.parametrize("valid", [0, 1])
def test_a_policy_that_has_not_moved_reports_so(valid, variant):
    mask = jnp.arange(3) < valid
    log_probs = jnp.array([-2.0, jnp.nan, jnp.nan])
    report = variant(diagnostics.policy_diagnostics)(log_probs, log_probs, log_probs, mask)
    np.testing.assert_array_equal(jnp.stack(report), [0, 0, 0, 0, 0, 1, 1, 1])


def test_everything_is_finite_at_any_distance():
    log_probs = jnp.array([1e4, -1e4, 0.0])
    mask = jnp.ones(3, bool)
    report = diagnostics.policy_diagnostics(log_probs, jnp.zeros(3), jnp.ones(3), mask)
    assert jnp.all(jnp.isfinite(jnp.stack(report)))
    np.testing.assert_allclose(report.effective_sample_size, 1 / 3, rtol=1e-5)


def test_effective_sample_size_is_scale_free_and_in_its_bounds():
    weights, mask = jnp.array([1.0, 2.0, 5.0, 9.0]), jnp.array([True, True, True, False])
    expected = 64.0 / (3 * 30.0)
    for scale in (1e-30, 1.0, 1e30):
        share = diagnostics.effective_sample_size(scale * weights, mask)
        np.testing.assert_allclose(share, expected, rtol=1e-5)
    assert diagnostics.effective_sample_size(jnp.full(7, 0.1), jnp.ones(7, bool)) <= 1.0


def test_explained_variance_of_known_critics(variant):
    given = vectors_on_disk.inputs()
    explained = variant(diagnostics.explained_variance)
    returns, mask = given.returns, given.mask
    np.testing.assert_allclose(explained(returns, returns, mask), 1.0)
    np.testing.assert_allclose(explained(returns + 3.0, returns, mask), 1.0, atol=1e-5)
    np.testing.assert_allclose(explained(jnp.full_like(returns, 0.3), returns, mask), 0.0, atol=1e-5)
    np.testing.assert_allclose(explained(-returns, returns, mask), -3.0, atol=1e-4)
    np.testing.assert_allclose(explained(0.5 * returns, returns, mask), 0.75, atol=1e-5)


def test_explained_variance_is_0_where_returns_do_not_vary():
    same = jnp.full((7,), 0.1)
    noise = jnp.linspace(0.0, 1.0, 7)
    for mask in (jnp.ones(7, bool), jnp.arange(7) < 1, jnp.zeros(7, bool)):
        assert diagnostics.explained_variance(noise, same, mask) == 0.0


def test_diagnostics_can_be_batched():
    given = vectors_on_disk.inputs()
    inputs = given.logp, given.logp_old, given.advantages, given.mask
    report = jax.vmap(diagnostics.policy_diagnostics)(*inputs)
    first = diagnostics.policy_diagnostics(*(x[0] for x in inputs))
    np.testing.assert_allclose(jnp.stack(report)[:, 0], jnp.stack(first), rtol=1e-5)


def test_wrong_arguments_are_named():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"advantages\.shape must be .*, got \(2,\)"):
        diagnostics.policy_diagnostics(x, x, x[:, 0], x == 0)
    with pytest.raises(ValueError, match=r"mask\.dtype must be bool, got dtype\('float32'\)"):
        diagnostics.explained_variance(x, x, x)
    with pytest.raises(ValueError, match=r"clip_low must be .*, got -1"):
        diagnostics.policy_diagnostics(x, x, x, x == 0, clip_low=-1)
