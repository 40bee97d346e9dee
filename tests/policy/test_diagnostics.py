import jax
import numpy as np
import pytest

from proxlm.policy import diagnostics, losses, partial
from tests.policy import vectors_on_disk

diagnose = jax.jit(diagnostics.policy_diagnostics)
explained_variance = jax.jit(diagnostics.explained_variance)


def test_policy_diagnostics_by_hand(variant):
    rho = np.float32([0.5, 0.5, 1.0, 2.0, 1.25])
    advantages = np.float32([1.0, -1.0, 1.0, 3.0, np.nan])
    mask = np.array([True, True, True, True, False])
    report = variant(diagnostics.policy_diagnostics)(np.log(rho), np.zeros(5, np.float32), advantages, mask)
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
    report = diagnose(given.logp, given.logp_old, given.advantages, given.mask, clip_high=clip_high)
    np.testing.assert_allclose(report.clip_fraction_active, expected["clip_ratio"], rtol=1e-6)


def test_approx_kl_is_the_kl_from_the_old_policy_in_expectation():
    old, new = np.float32([0.5, 0.3, 0.2]), np.float32([0.2, 0.3, 0.5])
    # 10 tokens in the proportions of the policy that sampled
    tokens = np.repeat(np.arange(3), [5, 3, 2])
    report = diagnose(np.log(new)[tokens], np.log(old)[tokens], 0.0, np.ones(10, bool))
    np.testing.assert_allclose(report.approx_kl, np.sum(old * np.log(old / new)), rtol=1e-5)


def test_nan_under_the_mask_changes_no_bit(variant):
    given = vectors_on_disk.inputs()

    def at(fill):
        put = lambda x: np.where(given.mask, x, np.float32(fill))
        inputs = put(given.logp), put(given.logp_old), put(given.advantages), given.mask
        explained = variant(diagnostics.explained_variance)(put(given.values), put(given.returns), given.mask)
        return [*variant(diagnostics.policy_diagnostics)(*inputs), explained]

    np.testing.assert_array_equal(np.stack(at(0.5)), np.stack(at(np.nan)))


@pytest.mark.parametrize("valid", [0, 1])
def test_a_policy_that_has_not_moved_reports_so(valid, variant):
    mask = np.arange(3) < valid
    log_probs = np.float32([-2.0, np.nan, np.nan])
    report = variant(diagnostics.policy_diagnostics)(log_probs, log_probs, log_probs, mask)
    np.testing.assert_array_equal(np.stack(report), [0, 0, 0, 0, 0, 1, 1, 1])


def test_everything_is_finite_at_any_distance():
    log_probs, ones = np.float32([1e4, -1e4, 0.0]), np.ones(3, np.float32)
    report = diagnose(log_probs, 0 * ones, ones, ones > 0)
    assert np.all(np.isfinite(np.stack(report)))
    np.testing.assert_allclose(report.effective_sample_size, 1 / 3, rtol=1e-5)


def test_effective_sample_size_is_scale_free_and_in_its_bounds():
    weights, mask = np.float32([1.0, 2.0, 5.0, 9.0]), np.array([True, True, True, False])
    share_of = jax.jit(diagnostics.effective_sample_size)
    expected = 64.0 / (3 * 30.0)
    for scale in (1e-30, 1.0, 1e30):
        share = share_of(np.float32(scale) * weights, mask)
        np.testing.assert_allclose(share, expected, rtol=1e-5)
    assert share_of(np.full(7, np.float32(0.1)), np.ones(7, bool)) <= 1.0


def test_explained_variance_of_known_critics(variant):
    given = vectors_on_disk.inputs()
    explained = variant(diagnostics.explained_variance)
    returns, mask = given.returns, given.mask
    np.testing.assert_allclose(explained(returns, returns, mask), 1.0)
    np.testing.assert_allclose(explained(returns + 3.0, returns, mask), 1.0, atol=1e-5)
    np.testing.assert_allclose(explained(np.full_like(returns, 0.3), returns, mask), 0.0, atol=1e-5)
    np.testing.assert_allclose(explained(-returns, returns, mask), -3.0, atol=1e-4)
    np.testing.assert_allclose(explained(0.5 * returns, returns, mask), 0.75, atol=1e-5)


def test_explained_variance_is_0_where_returns_do_not_vary():
    same, noise = np.full(7, np.float32(0.1)), np.linspace(0.0, 1.0, 7, dtype=np.float32)
    for count in (7, 1, 0):
        assert explained_variance(noise, same, np.arange(7) < count) == 0.0


def test_diagnostics_can_be_batched():
    given = vectors_on_disk.inputs()
    inputs = given.logp, given.logp_old, given.advantages, given.mask
    report = jax.jit(jax.vmap(diagnostics.policy_diagnostics))(*inputs)
    first = diagnose(*(x[0] for x in inputs))
    np.testing.assert_allclose(np.stack(report)[:, 0], np.stack(first), rtol=1e-5)


def test_a_clipped_loss_of_ones_own_declares_its_bounds():
    @losses.clips_ratio(lambda width: losses.ClipBounds(width, 2 * width, "sequence"))
    def own(log_probs, old_log_probs, advantages, mask, width=0.1):
        return log_probs

    assert diagnostics.clip_bounds(own) == (0.1, 0.2, "sequence")
    assert diagnostics.clip_bounds(partial(own, width=0.3)) == (0.3, 0.6, "sequence")


def test_wrong_arguments_are_named():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"advantages\.shape must be .*, got \(2,\)"):
        diagnostics.policy_diagnostics(x, x, x[:, 0], x == 0)
    with pytest.raises(ValueError, match=r"mask\.dtype must be bool, got dtype\('float32'\)"):
        diagnostics.explained_variance(x, x, x)
    with pytest.raises(ValueError, match=r"clip_low must be .*, got -1"):
        diagnostics.policy_diagnostics(x, x, x, x == 0, clip_low=-1)
