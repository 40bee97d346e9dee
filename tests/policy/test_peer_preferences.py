"""Preference losses of TRL 1.16.0 with their gradients, composed of our pieces, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import losses
from proxlm.policy.losses import preference, preference_variants
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

VECTORS = vectors_on_disk.load("peer_preferences")
PAIRS = 5
part = functools.partial


def pairs(loss, average=False):
    """The mean of a loss of (h₊, h₋) over the pairs; chosen answers come first."""

    def total(x, g):
        of = part(preference.sequence_log_probs, mask=g["mask"], average=average)
        h = of(x) - of(g["ref"])
        return jnp.mean(loss(h[:PAIRS], h[PAIRS:]))

    return total


def without_reference(loss, average=False):
    def total(x, g):
        y = preference.sequence_log_probs(x, g["mask"], average)
        return jnp.mean(loss(y[:PAIRS], y[PAIRS:]))

    return total


def dpo(score=lambda h: h, **settings):
    return lambda good, bad: preference.dpo(
        score(good), score(bad), jnp.zeros(PAIRS), jnp.zeros(PAIRS), 0.3, **settings
    )


def ipo(good, bad):
    return preference.ipo(good, bad, jnp.zeros(PAIRS), jnp.zeros(PAIRS), 0.3)


def sorted_apart(x, g):
    """Alignment by optimal transport: the i-th largest gap against the reference's i-th largest."""
    gap = lambda y: jnp.sort(y[:PAIRS] - y[PAIRS:])
    of = part(preference.sequence_log_probs, mask=g["mask"])
    return gap(of(x)), gap(of(g["ref"]))


def aot(label_smoothing=0.0):
    zero = jnp.zeros(PAIRS)

    def total(x, g):
        ours, refs = sorted_apart(x, g)
        return jnp.mean(preference.dpo(ours, zero, refs, zero, 0.3, label_smoothing))

    return total


def answers(kl=0.0):
    """KTO: every answer by itself, the first ones good."""

    def total(x, g):
        of = part(preference.sequence_log_probs, mask=g["mask"])
        good = jnp.arange(2 * PAIRS) < PAIRS
        return jnp.mean(preference.kto(of(x) - of(g["ref"]), good, kl, 0.3, 1.3, 0.8))

    return total


def odds(good, bad):
    """Without the likelihood that ORPO adds to them."""
    return preference.orpo(good, bad, 0.3) - preference.orpo(good, bad, 0.0)


def chosen_alone(x, g):
    return losses.sft(x[:PAIRS], g["mask"][:PAIRS])


RENAMED = {"nca_pair": "nca", "bco_pair": "bco", "sppo_hard": "sppo"}
CASES = {
    name: pairs(part(preference_variants.pair_loss, kind=RENAMED.get(name, name), beta=0.3))
    for name in ("hinge", "apo_zero", "apo_down", "discopop", *RENAMED)
}
CASES |= {
    f"{name} smoothed": pairs(part(preference_variants.pair_loss, kind=kind, beta=0.3, label_smoothing=0.15))
    for name, kind in (("robust", "robust"), ("exo_pair", "exo"))
}
CASES |= {
    "sigmoid": pairs(dpo()),
    "sigmoid_norm": pairs(dpo(), average=True),
    "sigmoid forward_kl": pairs(dpo(part(preference_variants.f_score, divergence="forward_kl"))),
    "sigmoid js_divergence": pairs(dpo(part(preference_variants.f_score, divergence="js"))),
    "ipo": pairs(ipo, average=True),
    "sft": chosen_alone,
    "aot": aot(),
    "aot smoothed": aot(0.15),
    "aot_unpaired": pairs(lambda good, bad: dpo()(jnp.sort(good), jnp.sort(bad))),
    "cpo sigmoid": without_reference(dpo()),
    "cpo sigmoid smoothed": without_reference(dpo(label_smoothing=0.1)),
    "cpo hinge": without_reference(part(preference_variants.pair_loss, kind="hinge", beta=0.3)),
    "cpo ipo": without_reference(ipo, average=True),
    "cpo simpo": without_reference(part(preference.simpo, beta=2.0, margin=0.5), average=True),
    "orpo odds": without_reference(odds, average=True),
    "kto": answers(kl=0.4),
    "apo_zero_unpaired": answers(),
}


QUICK = ("sigmoid js_divergence", "ipo", "cpo simpo", "kto", "robust smoothed", "apo_down", "aot")


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_losses_and_gradients_are_trls(quick):
    assert set(CASES) == set(VECTORS["cases"])
    mask = np.array(VECTORS["inputs"]["mask"]) > 0

    @compiled
    def ours(x, ref):
        g = {"ref": ref, "mask": jnp.array(mask)}
        names = QUICK if quick else CASES
        return {name: jax.value_and_grad(CASES[name])(x, g) for name in names}

    with jax.enable_x64(True):
        x, ref = (jnp.array(VECTORS["inputs"][name], jnp.float64) for name in ("log_probs", "ref"))
        results = jax.tree.map(np.asarray, ours(x, ref))
    for name, (loss, gradient) in results.items():
        assert not np.any(gradient[~mask]), name
        mine, theirs = np.append(loss, gradient[mask]), VECTORS["cases"][name]
        # eight digits are kept; of ORPO's, what TRL computes in float32
        near = 5e-7 if name == "orpo odds" else 1e-7
        np.testing.assert_allclose(mine, theirs, rtol=near, atol=near, err_msg=name)


def test_pair_losses_are_finite_at_any_distance():
    h = np.float32([-np.inf, -1e4, -90.0, 0.0, 90.0, 1e4, np.inf])
    good, bad = (jnp.array(x) for x in np.meshgrid(h, h))

    @compiled
    def both(good, bad):
        smoothing = lambda kind: 0.1 * (kind in ("robust", "exo"))
        of = lambda kind: lambda *h: jnp.sum(losses.pair_loss(*h, kind, 1.0, smoothing(kind)))
        return [jax.value_and_grad(of(kind), (0, 1))(good, bad) for kind in preference_variants.PAIR_LOSSES]

    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(both(good, bad)))


def test_f_scores_are_slopes_of_their_divergences():
    u = np.float32([0.25, 0.5, 1.0, 2.0])
    slopes = {"forward_kl": 1 - 1 / u, "js": np.log(2 * u / (1 + u)), "reverse_kl": np.log(u)}
    slopes["alpha"] = (u**-0.5 - 1) / -0.5
    for divergence, slope in slopes.items():
        score = jax.jit(lambda h, name=divergence: preference_variants.f_score(h, name))
        np.testing.assert_allclose(score(np.log(u)), slope, atol=1e-6)
        assert np.all(np.isfinite(score(np.float32([-1e4, 0.0, 0.0, 1e4]))))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"kind must be one of 'hinge', 'robust'.*, got 'dpo'"):
        preference_variants.pair_loss(0.0, 0.0, "dpo")
    with pytest.raises(ValueError, match=r"label_smoothing must be .*, got 0\.0"):
        preference_variants.pair_loss(0.0, 0.0, "exo")
    with pytest.raises(ValueError, match=r'label_smoothing must be 0, got 0\.1. Only "robust" and "exo"'):
        preference_variants.pair_loss(0.0, 0.0, "hinge", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"beta must be .*, got 0"):
        preference_variants.pair_loss(0.0, 0.0, "bco", beta=0)
    with pytest.raises(ValueError, match=r"alpha must be .*, got 1"):
        preference_variants.f_score(0.0, "alpha", alpha=1.0)
