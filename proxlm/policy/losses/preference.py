"""Losses of preferences: of a reward model, and of a policy that is trained without one.

They take one number per response: its reward, or log π(y) as `sequence_log_probs` sums it. An infinite
number, such as the log-prob -inf of a response of probability 0, counts as ±1e9 with gradient 0; all losses
are written with log σ and softplus, so that none overflows. Of a pair, `chosen` is log π(y₊) of the preferred
response and `rejected` log π(y₋) of the other, in nats, any shape; `ref_...` are those of the reference, and
β is positive. For `orpo` and `simpo` they are log p₊ and log p₋, the *mean* log-probability of a token; for
`bradley_terry` the rewards r₊ and r₋. The result is a loss per pair. All raise ValueError if shapes differ, a
mask is not boolean or a setting is out of range.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import aggregation
from proxlm.policy._finite import Number, finite

__all__ = ["bradley_terry", "dpo", "ipo", "kto", "orpo", "sequence_log_probs", "simpo"]


@_validation.typed
def sequence_log_probs(log_probs: ArrayLike, mask: ArrayLike, average: bool = False) -> jax.Array:
    """The log-probability of a whole response, log π(y) = Σₜ log π(yₜ), or its mean over the tokens of y.

    Args:
      log_probs: nats [..., T].
      mask: bool [..., T].
      average: True divides by the number of valid tokens, as ORPO, SimPO and often IPO need it.

    Returns:
      Nats [...], 0 without a valid token.

    >>> mask = jnp.array([True, True, False])
    >>> sequence_log_probs(jnp.array([-1.0, -2.0, jnp.nan]), mask, average=True)
    Array(-1.5, dtype=float32)
    """
    (log_probs,) = finite(aggregation.select(log_probs, mask, "log_probs"))
    total = jnp.sum(log_probs, axis=-1)
    return total / jnp.maximum(jnp.sum(jnp.asarray(mask), axis=-1), 1) if average else total


@_validation.typed
def bradley_terry(
    chosen: ArrayLike, rejected: ArrayLike, margin: ArrayLike = 0.0, centre_coef: Number = 0.0
) -> jax.Array:
    """The loss of a reward model, -log σ(r₊ - r₋ - margin) + c (r₊ + r₋)².

    Args:
      margin: the same shape or a scalar; how much better the preferred one was judged to be.
      centre_coef: c ≥ 0; draws the sum of the rewards of a pair to 0.

    Source: Bradley and Terry (1952); margin: Llama 2 (2023); centring: Eisenstein et al. (2023).

    >>> f"{bradley_terry(1.0, 0.0):.4f} {bradley_terry(1.0, 0.0, margin=1.0):.4f}"
    '0.3133 0.6931'
    """
    _validation.same_shape("bradley_terry", chosen=chosen, rejected=rejected, margin=margin)
    _validation.at_least(0, "bradley_terry", centre_coef=centre_coef)
    _validation.finite("bradley_terry", centre_coef=centre_coef)
    chosen, rejected = finite(chosen, rejected)
    loss = jax.nn.softplus(margin - (chosen - rejected))
    return loss + centre_coef * jnp.square(chosen + rejected)


@_validation.typed
def dpo(
    chosen: ArrayLike,
    rejected: ArrayLike,
    ref_chosen: ArrayLike,
    ref_rejected: ArrayLike,
    beta: Number = 0.1,
    label_smoothing: Number = 0.0,
) -> jax.Array:
    """Direct preference optimisation, -(1 - s) log σ(β h) - s log σ(-β h).

    h = log π/π_ref(y₊) - log π/π_ref(y₋). With s > 0 it is cDPO: a share s of the labels may be wrong.

    Args:
      beta: β > 0.
      label_smoothing: s in [0, ½].

    Source: Rafailov et al. (2023); cDPO: Mitchell (2023).

    >>> f"{dpo(-1.0, -2.0, -1.0, -1.0, beta=1.0):.4f}"
    '0.3133'
    """
    _validation.positive("dpo", beta=beta)
    _validation.finite("dpo", beta=beta)
    _validation.within(0, 0.5, "dpo", label_smoothing=label_smoothing)
    h = beta * _log_ratio_gap(chosen, rejected, ref_chosen, ref_rejected)
    right, wrong = jax.nn.softplus(-h), jax.nn.softplus(h)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


@_validation.typed
def ipo(
    chosen: ArrayLike, rejected: ArrayLike, ref_chosen: ArrayLike, ref_rejected: ArrayLike, beta: Number = 0.1
) -> jax.Array:
    """Identity preference optimisation, (h - 1/(2β))² with h as in `dpo`: h is drawn to a finite number.

    Source: Azar et al. (2023).

    >>> ipo(-1.0, -2.0, -1.0, -1.0, beta=0.25).item()
    1.0
    """
    _validation.positive("ipo", beta=beta)
    _validation.finite("ipo", beta=beta)
    h = _log_ratio_gap(chosen, rejected, ref_chosen, ref_rejected)
    return jnp.square(h - 1.0 / (2.0 * beta))


@_validation.typed
def kto(
    log_ratio: ArrayLike,
    desirable: ArrayLike,
    kl: ArrayLike = 0.0,
    beta: Number = 0.1,
    desirable_weight: Number = 1.0,
    undesirable_weight: Number = 1.0,
) -> jax.Array:
    """KTO, a loss without pairs: λ₊ (1 - σ(β (h - z))) for a desirable response, λ₋ (1 - σ(β (z - h))) else.

    Args:
      log_ratio: nats, h = log π/π_ref(y), any shape.
      desirable: bool, the same shape.
      kl: z, nats, an estimate of KL(π‖π_ref), such as the mean h of responses to other prompts; a negative
        one counts as 0, and no gradient flows into it.
      beta: β > 0.
      desirable_weight: λ₊ ≥ 0.
      undesirable_weight: λ₋ ≥ 0.

    Source: Ethayarajh et al. (2024).

    >>> kto(jnp.array([0.0, 0.0]), jnp.array([True, False]), undesirable_weight=2.0)
    Array([0.5, 1. ], dtype=float32)
    """
    _validation.boolean("kto", desirable=desirable)
    _validation.same_shape("kto", log_ratio=log_ratio, desirable=desirable, kl=kl)
    _validation.positive("kto", beta=beta)
    _validation.at_least(0, "kto", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    _validation.finite("kto", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    h, z = finite(log_ratio, jax.lax.stop_gradient(kl))
    z = jnp.maximum(z, 0.0)
    sign = jnp.where(desirable, 1.0, -1.0)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weight * jax.nn.sigmoid(-beta * sign * (h - z))


@_validation.typed
def orpo(chosen: ArrayLike, rejected: ArrayLike, coef: Number = 0.1) -> jax.Array:
    """ORPO, a loss without a reference: -log p₊ - λ log σ(log odds(p₊) - log odds(p₋)).

    The odds of p are p / (1 - p).

    Args:
      coef: λ ≥ 0.

    Source: Hong et al. (2024).

    >>> f"{orpo(jnp.log(0.5), jnp.log(0.5), coef=1.0) / jnp.log(2.0):.4f}"
    '2.0000'
    """
    _validation.same_shape("orpo", chosen=chosen, rejected=rejected)
    _validation.at_least(0, "orpo", coef=coef)
    _validation.finite("orpo", coef=coef)
    chosen, rejected = finite(chosen, rejected)
    return coef * jax.nn.softplus(_log_odds(rejected) - _log_odds(chosen)) - chosen


@_validation.typed
def simpo(chosen: ArrayLike, rejected: ArrayLike, beta: Number = 2.0, margin: ArrayLike = 1.0) -> jax.Array:
    """SimPO, a loss without a reference: -log σ(β (log p₊ - log p₋) - γ), γ the margin.

    Source: Meng et al. (2024).

    >>> f"{simpo(-1.0, -2.0, beta=1.0, margin=1.0):.4f}"
    '0.6931'
    """
    _validation.same_shape("simpo", chosen=chosen, rejected=rejected, margin=margin)
    _validation.positive("simpo", beta=beta)
    _validation.finite("simpo", beta=beta)
    chosen, rejected = finite(chosen, rejected)
    return jax.nn.softplus(margin - beta * (chosen - rejected))


def _log_ratio_gap(chosen, rejected, ref_chosen, ref_rejected):
    refs = {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    _validation.same_shape(chosen=chosen, rejected=rejected, **refs)
    chosen, rejected, ref_chosen, ref_rejected = finite(chosen, rejected, ref_chosen, ref_rejected)
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def _log_odds(log_p):
    """The log-odds log p - log(1 - p); a p of 1, whose odds are infinite, counts as 1 - 1e-7."""
    log_p = jnp.minimum(log_p, -1e-7)
    return log_p - jnp.log(-jnp.expm1(log_p))
