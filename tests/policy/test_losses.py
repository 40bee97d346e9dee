import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import aggregation
from proxlm.policy import losses as loss_lib
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

FAMILY = {
    "clip": loss_lib.clipped,
    "dual clip": functools.partial(loss_lib.clipped, dual_clip=3.0),
    "gspo": functools.partial(loss_lib.clipped, level="sequence"),
    "gspo by tokens": functools.partial(loss_lib.clipped, level="sequence_token"),
    "product by tokens": functools.partial(loss_lib.clipped, level="product_token"),
    "clip, no bound": functools.partial(loss_lib.clipped, max_log_ratio=88.0),
    "policy gradient": loss_lib.policy_gradient,
    "dro": functools.partial(loss_lib.dro, beta=0.5),
    "kl penalty": functools.partial(loss_lib.kl_penalty, coef=0.5),
    "reverse kl penalty": functools.partial(loss_lib.kl_penalty, direction="reverse"),
    "reverse kl penalty, no bound": functools.partial(
        loss_lib.kl_penalty, direction="reverse", max_log_ratio=88.0
    ),
    "cispo": functools.partial(loss_lib.cispo, clip_high=0.3),
    "sapo": loss_lib.sapo,
    "geometric mean": loss_lib.geometric_mean,
    "vespo": loss_lib.vespo,
    "topr": loss_lib.topr,
    "clip cov": functools.partial(loss_lib.clip_cov, share=0.2, low=0.09),
    "kl cov": functools.partial(loss_lib.kl_cov, share=0.2),
    "dppo tv": functools.partial(loss_lib.dppo, clip_low=0.1, clip_high=0.1),
    "dppo kl": functools.partial(loss_lib.dppo, clip_high=0.01, divergence="kl"),
}
GIVEN = vectors_on_disk.inputs()
MASK = np.asarray(GIVEN.mask)
# on samples of the policy itself, with one advantage per sequence, all are the policy gradient
AGREE = [name for name in FAMILY if name != "clip cov"]


FILLS = {"clean": 0.5, "nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def scenarios():
    """Name -> log-probs, old log-probs, advantages and mask, all [6, 7]."""
    arrays = [np.asarray(x) for x in (GIVEN.logp, GIVEN.logp_old, GIVEN.advantages)]
    _, old, _ = arrays
    own = np.broadcast_to(np.asarray(GIVEN.scores)[:, None], MASK.shape)
    found = {"own samples": (old, old, own, MASK)}
    found |= {name: (*(np.where(MASK, x, fill) for x in arrays), MASK) for name, fill in FILLS.items()}
    found["nothing valid"] = (*[np.full(MASK.shape, np.nan)] * 3, np.zeros_like(MASK))
    # log-ratios of one sign in some rows and mixed in others; tokens that one policy cannot say, or both
    shift = np.array([[-1e4], [1e4], [90.0], [-90.0], [50.0], [0.0]]) * np.where(np.arange(7) == 3, -1, 1)
    impossible = np.where(np.arange(7) % 3 == np.arange(6)[:, None] % 3, -np.inf, -1.0)
    everywhere, minus = np.ones_like(MASK), np.full(MASK.shape, -1.0)
    for size in (-1e4, -1.0, 0.0, 1.0, 1e4):
        found[f"far {size}"] = (minus + shift, minus, np.full(MASK.shape, size), everywhere)
    for sign in (-1.0, 0.0, 1.0):
        sign = np.full(MASK.shape, sign)
        found[f"impossible {sign[0, 0]}"] = (impossible, minus, sign, everywhere)
        found[f"impossible before {sign[0, 0]}"] = (minus, impossible, sign, everywhere)
        found[f"impossible then and now {sign[0, 0]}"] = (impossible, impossible, sign, everywhere)
    return {
        name: [np.asarray(x, bool if x.dtype == bool else np.float32) for x in xs]
        for name, xs in found.items()
    }


@functools.cache
def results(name):
    """Of one loss in every scenario: loss per token, and the gradients of their sum by the three arrays."""

    def one(*given):
        def total(*arrays):
            tokens = FAMILY[name](*arrays, given[3])
            return jnp.sum(tokens), tokens

        gradients, tokens = jax.grad(total, (0, 1, 2), has_aux=True)(*given[:3])
        return tokens, gradients

    cases = scenarios()
    stacked = [np.stack(xs) for xs in zip(*cases.values(), strict=True)]
    tokens, gradients = jax.tree.map(np.asarray, compiled(jax.vmap(one))(*stacked))
    return {case: (tokens[i], [g[i] for g in gradients]) for i, case in enumerate(cases)}


def losses_and_gradient(surrogate, log_probs, old, advantages, mask):
    """The loss of every token and the gradient of their sum."""

    def total(log_probs):
        losses = surrogate(log_probs, old, advantages, mask)
        return jnp.sum(losses), losses

    gradient, losses = compiled(jax.grad(total, has_aux=True))(log_probs)
    return np.asarray(losses), np.asarray(gradient)


def on_vectors(surrogate):
    return losses_and_gradient(surrogate, GIVEN.logp, GIVEN.logp_old, GIVEN.advantages, GIVEN.mask)


def by_hand():
    """Log-ratio, log-prob and advantage of the common inputs, in float64, 0 where masked."""
    arrays = GIVEN.logp - GIVEN.logp_old, GIVEN.logp, GIVEN.advantages
    return [np.where(MASK, np.asarray(x, np.float64), 0.0) for x in arrays]


def assert_vectors(surrogate, losses, gradient):
    ours = on_vectors(surrogate)
    np.testing.assert_allclose(ours[0], np.where(MASK, losses, 0.0), atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(ours[1], np.where(MASK, gradient, 0.0), atol=2e-5, rtol=2e-5)


def test_gspo_is_openrlhfs():
    expected = vectors_on_disk.load("openrlhf")["gspo"]
    weights = aggregation.sequence_weights(GIVEN.mask)
    gspo = functools.partial(loss_lib.clipped, level="sequence")

    def loss(log_probs):
        tokens = gspo(log_probs, GIVEN.logp_old, GIVEN.advantages, GIVEN.mask)
        return aggregation.weighted_sum(tokens, weights)

    value, gradient = jax.jit(jax.value_and_grad(loss))(GIVEN.logp)
    np.testing.assert_allclose(value, expected["loss"], atol=1e-5)
    np.testing.assert_allclose(gradient, expected["gradient"], atol=1e-5)


def test_cispo_weighs_every_token_by_its_clipped_ratio():
    d, log_probs, advantages = by_hand()
    weight = np.clip(np.exp(d), 0.8, 1.28)
    cispo = functools.partial(loss_lib.cispo, clip_low=0.2, clip_high=0.28)
    assert_vectors(cispo, -weight * advantages * log_probs, -weight * advantages)


def test_sapo_is_a_gate_of_slope_one_at_ratio_one():
    d, _, advantages = by_hand()
    rho, tau = np.exp(d), np.where(advantages > 0, 1.0, 1.05)
    gate = 1 / (1 + np.exp(-tau * (rho - 1)))
    assert_vectors(loss_lib.sapo, -advantages * gate * 4 / tau, -advantages * 4 * gate * (1 - gate) * rho)


def test_kl_penalties_are_estimates_of_the_divergence():
    d, _, advantages = by_hand()
    rho = np.exp(d)
    forward = functools.partial(loss_lib.kl_penalty, coef=0.5)
    loss = 0.5 * (rho - 1 - d) - advantages * rho
    assert_vectors(forward, loss, 0.5 * (rho - 1) - advantages * rho)
    reverse = functools.partial(loss_lib.kl_penalty, coef=0.5, direction="reverse")
    loss = 0.5 * (rho * d - rho + 1) - advantages * rho
    assert_vectors(reverse, loss, 0.5 * rho * d - advantages * rho)


def test_dro_draws_the_log_ratio_to_the_advantage():
    d, log_probs, advantages = by_hand()
    dro = functools.partial(loss_lib.dro, beta=0.5)
    assert_vectors(dro, 0.25 * d**2 - advantages * log_probs, 0.5 * d - advantages)
    with pytest.raises(ValueError, match=r"beta must be .*, got -1"):
        loss_lib.dro(GIVEN.logp, GIVEN.logp_old, GIVEN.advantages, GIVEN.mask, beta=-1)


def test_the_geometric_mean_is_clipped_token_by_token():
    d, _, advantages = by_hand()
    count = np.maximum(MASK.sum(1, keepdims=True), 1)
    held = np.where(advantages > 0, np.minimum(d, 0.1), np.maximum(d, -0.2))
    mean = advantages.sum(1, keepdims=True) / count
    loss = -mean * np.exp(held.sum(1, keepdims=True) / count)
    # every valid token carries the loss, so the sum over tokens counts it n times
    gradient = np.where(held == d, loss, 0.0)
    gmpo = functools.partial(loss_lib.geometric_mean, clip_low=0.2, clip_high=0.1)
    assert_vectors(gmpo, np.broadcast_to(loss, d.shape), gradient)


def test_vespo_weighs_sequences_by_a_gamma_density():
    d, log_probs, advantages = by_hand()
    w = np.exp(np.clip(d.sum(1, keepdims=True), np.log(1e-8), 20))
    good = advantages >= 0
    k, rate = np.where(good, 2.0, 3.0), np.where(good, 3.0, 2.0)
    phi = np.exp(rate) * w**k * np.exp(-rate * w)
    assert_vectors(loss_lib.vespo, -phi * advantages * log_probs, -phi * advantages)


def test_topr_imitates_the_good_and_tapers_the_bad():
    d, log_probs, advantages = by_hand()
    w = np.broadcast_to(np.exp(d.sum(1, keepdims=True)), d.shape)
    weight = np.where(advantages >= 0, 1.0, np.clip(w, 0, 1))
    assert_vectors(loss_lib.topr, -weight * advantages * log_probs, -weight * advantages)
    # half as likely as it was: a good answer counts whole, a bad one half
    half, signs = np.full((2, 1), np.log(0.5), np.float32), np.float32([[1.0], [-1.0]])
    found = compiled(loss_lib.topr)(half, np.zeros_like(half), signs, np.ones((2, 1), bool))
    np.testing.assert_allclose(found, np.log(2) * np.array([[1.0], [-0.5]]), rtol=1e-6)


def covariance():
    _, log_probs, advantages = by_hand()
    centre = lambda x: x - x[MASK].mean()
    return np.where(MASK, centre(advantages) * centre(log_probs), -np.inf)


def test_kl_cov_prices_the_tokens_of_largest_covariance():
    d, _, advantages = by_hand()
    chosen = covariance() >= np.sort(covariance()[MASK])[-4]
    assert chosen.sum() == 4 == int(MASK.sum() * 0.2)
    loss = np.where(chosen, 0.7 * np.abs(d), 0.0) - advantages * np.exp(d)
    gradient = np.where(chosen, 0.7 * np.sign(d), 0.0) - advantages * np.exp(d)
    kl_cov = functools.partial(loss_lib.kl_cov, share=0.2, coef=0.7)
    assert_vectors(kl_cov, loss, gradient)


@pytest.mark.parametrize("key", [None, pytest.param(jax.random.key(0), marks=pytest.mark.slow)])
def test_clip_cov_drops_tokens_inside_the_band(key):
    d, _, advantages = by_hand()
    rho = np.exp(d)
    plain, clipped = -advantages * rho, -advantages * np.clip(rho, 0.8, 1.2)
    loss = np.maximum(plain, clipped)
    cov = covariance()
    inside = MASK & (cov > 0.09) & (cov < 5.0) & (clipped <= plain)
    assert inside.sum() == 4
    gradient = np.where(clipped <= plain, plain, 0.0)
    largest = inside & (cov == cov[inside].max())
    # a share of less than a token is one token
    one = functools.partial(loss_lib.clip_cov, share=0.01, low=0.09, key=key)
    if key is None:
        assert_vectors(one, np.where(largest, 0, loss), np.where(largest, 0, gradient))
    dropped = MASK & (on_vectors(one)[0] == 0)
    assert dropped.sum() == 1 and inside[dropped].all()
    all_four = functools.partial(one, share=0.5)
    assert_vectors(all_four, np.where(inside, 0, loss), np.where(inside, 0, gradient))


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_dppo_drops_tokens_that_have_moved_too_far(divergence):
    log_probs = np.log([0.5, 0.9, 0.5, 0.1, 0.45])
    old = np.log([0.5, 0.5, 0.9, 0.5, 0.5])
    advantages = np.array([1.0, 1.0, 1.0, -1.0, -2.0])
    # far in the way its advantage asks for: the second and the fourth
    weight = np.array([1.0, 0.0, 5 / 9, 0.0, 0.9])
    bounds = {"clip_low": 0.2, "clip_high": 0.2, "divergence": divergence}
    losses, gradient = losses_and_gradient(
        functools.partial(loss_lib.dppo, **bounds),
        *map(jnp.float32, (log_probs, old, advantages)),
        jnp.ones(5, bool),
    )
    np.testing.assert_allclose(losses, -weight * advantages * log_probs, rtol=1e-5)
    np.testing.assert_allclose(gradient, -weight * advantages, rtol=1e-5)


def test_the_divergence_of_dppo_is_that_of_this_token_or_another():
    now, before = np.log(np.float32([0.9])), np.log(np.float32([0.5]))
    given = now, before, np.ones(1, np.float32), np.ones(1, bool)
    loss = jax.jit(lambda bound: loss_lib.dppo(*given, clip_high=bound, divergence="kl"))
    exact = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert loss(0.99 * exact)[0] == 0 and loss(1.01 * exact)[0] > 0.1


def test_levels_of_the_ratio():
    d, _, _ = by_hand()
    count = np.maximum(MASK.sum(1, keepdims=True), 1)
    mean, total = d.sum(1, keepdims=True) / count, d.sum(1, keepdims=True)
    shared = {"sequence": mean, "sequence_token": mean, "product": total, "product_token": total}
    for level, value in shared.items():
        fn = lambda x, level=level: loss_lib.log_ratio(x, GIVEN.logp_old, GIVEN.mask, level)
        both = lambda x, fn=fn: (fn(x), jax.grad(lambda x: jnp.sum(fn(x)))(x))
        found, gradient = jax.jit(both)(GIVEN.logp)
        np.testing.assert_allclose(found, np.where(MASK, np.broadcast_to(value, d.shape), 0.0), atol=1e-5)
        # every token of a product carries the sum, so it feels each of its n copies
        copies = count if level == "product" else 1
        np.testing.assert_allclose(gradient, MASK * copies)


def test_log_ratios_are_held_on_both_sides_or_on_each_by_its_own_bound():
    d = jnp.array([-90.0, -30.0, 5.0, 30.0])
    np.testing.assert_array_equal(loss_lib.clip_log_ratio(d, 20.0), [-20.0, -20.0, 5.0, 20.0])
    np.testing.assert_array_equal(loss_lib.clip_log_ratio(d, (88.0, 10.0)), [-88.0, -30.0, 5.0, 10.0])
    gradient = jax.grad(lambda d: jnp.sum(jnp.exp(loss_lib.clip_log_ratio(d, (88.0, 10.0)))))(d)
    np.testing.assert_allclose(gradient, [0.0, np.exp(-30.0), np.exp(5.0), 0.0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"max_log_ratio must be .*, got 89"):
        loss_lib.clip_log_ratio(d, (20.0, 89.0))


def test_the_token_form_of_a_sequence_has_the_gradient_of_the_sequence():
    advantages = np.broadcast_to(GIVEN.scores[:, None], MASK.shape)
    weights = aggregation.sequence_weights(GIVEN.mask)

    def sequence_form(log_probs):
        d = jnp.where(GIVEN.mask, log_probs - GIVEN.logp_old, 0.0)
        s = jnp.exp(jnp.sum(d, 1) / jnp.maximum(jnp.sum(GIVEN.mask, 1), 1))
        loss = jnp.maximum(-GIVEN.scores * s, -GIVEN.scores * jnp.clip(s, 0.8, 1.2))
        return jnp.sum(loss[:5]) / 5

    def token_form(log_probs):
        loss = loss_lib.clipped(log_probs, GIVEN.logp_old, advantages, GIVEN.mask, level="sequence_token")
        return aggregation.weighted_sum(loss, weights)

    ours, expected = (jax.jit(jax.value_and_grad(f))(GIVEN.logp) for f in (token_form, sequence_form))
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("name", AGREE)
def test_on_its_own_samples_each_is_the_policy_gradient(name):
    advantages = np.broadcast_to(np.asarray(GIVEN.scores)[:, None], MASK.shape)
    _, gradients = results(name)["own samples"]
    np.testing.assert_allclose(gradients[0], np.where(MASK, -advantages, 0.0), rtol=2e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_masked_slots_may_hold_anything(name):
    clean = jax.tree.leaves(results(name)["clean"])
    assert not any(np.any(x[~MASK]) for x in clean)
    for fill in list(FILLS)[1:]:
        for a, b in zip(clean, jax.tree.leaves(results(name)[fill]), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=fill)
    for x in jax.tree.leaves(results(name)["nothing valid"]):
        np.testing.assert_array_equal(x, 0.0)


@pytest.mark.parametrize("name", FAMILY)
def test_any_distance_is_finite_and_a_token_that_cannot_be_said_too(name):
    for case, result in results(name).items():
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result)), case


@pytest.mark.parametrize("name", FAMILY)
def test_without_an_advantage_an_impossible_token_costs_a_penalty_or_nothing(name):
    tokens, _ = results(name)["impossible 0.0"]
    charged = "dro" in name or "penalty" in name or name == "kl cov"
    assert charged or not np.any(tokens)


@pytest.mark.parametrize("name", FAMILY)
def test_no_gradient_flows_into_what_is_data(name):
    for case, (_, gradients) in results(name).items():
        assert not any(np.any(x) for x in gradients[1:]), case


def test_wrong_arguments_are_named():
    x, mask = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"level must be one of 'token', 'sequence'.*, got 'word'"):
        loss_lib.clipped(x, x, x, mask, level="word")
    with pytest.raises(ValueError, match=r"old_log_probs\.shape must be .*, got \(3,\)"):
        loss_lib.sapo(x, x[0], x, mask)
    with pytest.raises(ValueError, match=r"advantages\.shape must be .*, got \(2,\)"):
        loss_lib.policy_gradient(x, x, x[:, 0], mask)
    with pytest.raises(ValueError, match=r"coef must be .*, got -1"):
        loss_lib.kl_penalty(x, x, x, mask, coef=-1)
    with pytest.raises(ValueError, match=r"direction must be .*, got 'back'"):
        loss_lib.kl_penalty(x, x, x, mask, direction="back")
    with pytest.raises(ValueError, match=r"clip_low must be .*, got 2"):
        loss_lib.cispo(x, x, x, mask, clip_low=2)
    with pytest.raises(ValueError, match=r"tau_positive must be .*, got 0"):
        loss_lib.sapo(x, x, x, mask, tau_positive=0)
    with pytest.raises(ValueError, match=r"share must be .*, got 2"):
        loss_lib.kl_cov(x, x, x, mask, share=2)
    with pytest.raises(ValueError, match=r"divergence must be .*, got 'js'"):
        loss_lib.dppo(x, x, x, mask, divergence="js")
    with pytest.raises(ValueError, match=r"mask\.dtype must be bool, got dtype\('float32'\)"):
        loss_lib.clipped(x, x, x, x)
