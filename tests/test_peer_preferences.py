"""Preference losses of TRL 1.16.0 with their gradients, composed of our pieces, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import imitation, pair_losses, preference
from tests import policy_vectors
from tests.table_actor import compiled

VECTORS = policy_vectors.load("peer_preferences")
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
    return imitation.sft(x[:PAIRS], g["mask"][:PAIRS])


RENAMED = {"nca_pair": "nca", "bco_pair": "bco", "sppo_hard": "sppo"}
CASES = {
    name: pairs(part(pair_losses.pair_loss, kind=RENAMED.get(name, name), beta=0.3))
    for name in ("hinge", "apo_zero", "apo_down", "discopop", *RENAMED)
}
CASES |= {
    f"{name} smoothed": pairs(
        part(pair_losses.pair_loss, kind=kind, beta=0.3, label_smoothing=0.15)
    )
    for name, kind in (("robust", "robust"), ("exo_pair", "exo"))
}
CASES |= {
    "sigmoid": pairs(dpo()),
    "sigmoid_norm": pairs(dpo(), average=True),
    "sigmoid forward_kl": pairs(dpo(part(pair_losses.f_score, divergence="forward_kl"))),
    "sigmoid js_divergence": pairs(dpo(part(pair_losses.f_score, divergence="js"))),
    "ipo": pairs(ipo, average=True),
    "sft": chosen_alone,
    "aot": aot(),
    "aot smoothed": aot(0.15),
    "aot_unpaired": pairs(lambda good, bad: dpo()(jnp.sort(good), jnp.sort(bad))),
    "cpo sigmoid": without_reference(dpo()),
    "cpo sigmoid smoothed": without_reference(dpo(label_smoothing=0.1)),
    "cpo hinge": without_reference(part(pair_losses.pair_loss, kind="hinge", beta=0.3)),
    "cpo ipo": without_reference(ipo, average=True),
    "cpo simpo": without_reference(part(preference.simpo, beta=2.0, margin=0.5), average=True),
    "orpo odds": without_reference(odds, average=True),
    "kto": answers(kl=0.4),
    "apo_zero_unpaired": answers(),
}


def test_losses_and_gradients_are_trls():
    assert set(CASES) == set(VECTORS["cases"])
    mask = np.array(VECTORS["inputs"]["mask"]) > 0

    @compiled
    def ours(x, ref):
        g = {"ref": ref, "mask": jnp.array(mask)}
        return {name: jax.value_and_grad(loss)(x, g) for name, loss in CASES.items()}

    with jax.enable_x64(True):
        x, ref = (jnp.array(VECTORS["inputs"][name], jnp.float64) for name in ("log_probs", "ref"))
        results = jax.tree.map(np.asarray, ours(x, ref))
    for name, (loss, gradient) in results.items():
        assert not np.any(gradient[~mask]), name
        mine, theirs = np.append(loss, gradient[mask]), VECTORS["cases"][name]
        # eight digits are kept; of ORPO's, what TRL computes in float32
        near = 5e-7 if name == "orpo odds" else 1e-7
        np.testing.assert_allclose(mine, theirs, rtol=near, atol=near, err_msg=name)


@pytest.mark.parametrize("kind", pair_losses._KINDS)
def test_pair_losses_are_finite_at_any_distance(kind):
    h = jnp.array([-1e4, -90.0, 0.0, 90.0, 1e4])
    loss = lambda good, bad: jnp.sum(pair_losses.pair_loss(good, bad, kind, 1.0, 0.1))
    values = jax.value_and_grad(loss, (0, 1))(h[:, None] + 0 * h[None], h[None] + 0 * h[:, None])
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(values))


def test_f_scores_are_slopes_of_their_divergences():
    u = jnp.array([0.25, 0.5, 1.0, 2.0])
    slopes = {"forward_kl": 1 - 1 / u, "js": jnp.log(2 * u / (1 + u)), "reverse_kl": jnp.log(u)}
    slopes["alpha"] = (u**-0.5 - 1) / -0.5
    for divergence, slope in slopes.items():
        np.testing.assert_allclose(pair_losses.f_score(jnp.log(u), divergence), slope, atol=1e-6)
        assert jnp.all(jnp.isfinite(pair_losses.f_score(jnp.array([-1e4, 1e4]), divergence)))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="kind is 'dpo'; expected one of 'hinge', 'robust'"):
        pair_losses.pair_loss(0.0, 0.0, "dpo")
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.0; expected a number above 0"):
        pair_losses.pair_loss(0.0, 0.0, "exo")
    with pytest.raises(ValueError, match="beta is 0"):
        pair_losses.pair_loss(0.0, 0.0, "bco", beta=0)
    with pytest.raises(ValueError, match="alpha is 1; expected another number"):
        pair_losses.f_score(0.0, "alpha", alpha=1.0)
