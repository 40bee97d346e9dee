"""Learning from comparisons: reward models, and policies without one.

Losses take what a whole answer scores, one number per pair or answer: rewards, or log π(y) as
`sequence_log_probs` sums it.  All are written with log σ and softplus, so no distance overflows.
"""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation, aggregation


def sequence_log_probs(
    log_probs: jax.typing.ArrayLike, mask: jax.typing.ArrayLike, average: bool = False
) -> jax.Array:
    """What a whole answer scores, log π(y) = Σₜ log π(yₜ), or its mean over the tokens of y.

    Args:
      log_probs: nats [..., T].
      mask: bool [..., T].
      average: over valid tokens, as ORPO, SimPO and often IPO want it.

    Returns:
      Nats [...], 0 without a valid token.

    Raises:
      ValueError: if the shapes differ or the mask is not boolean.

    >>> mask = jnp.array([True, True, False])
    >>> sequence_log_probs(jnp.array([-1.0, -2.0, jnp.nan]), mask, average=True)
    Array(-1.5, dtype=float32)
    """
    total = jnp.sum(aggregation.select(log_probs, mask, "log_probs"), axis=-1)
    return total / jnp.maximum(jnp.sum(jnp.asarray(mask), axis=-1), 1) if average else total


def bradley_terry(
    chosen: jax.typing.ArrayLike,
    rejected: jax.typing.ArrayLike,
    margin: jax.typing.ArrayLike = 0.0,
    centre_coef: float = 0.0,
) -> jax.Array:
    """-log σ(r₊ - r₋ - margin) + c (r₊ + r₋)²: the loss of a reward model.

    Args:
      chosen: r₊, rewards of the preferred answers, any shape.
      rejected: r₋, the same shape.
      margin: the same shape or a scalar; how much better the preferred one was said to be.
      centre_coef: c ≥ 0, holds the rewards of a pair around 0.

    Returns:
      A loss per pair.

    Raises:
      ValueError: if shapes differ or c is negative.

    Source: Bradley and Terry (1952); margin: Llama 2 (2023); centring: Eisenstein et al. (2023).

    >>> f"{bradley_terry(1.0, 0.0):.4f} {bradley_terry(1.0, 0.0, margin=1.0):.4f}"
    '0.3133 0.6931'
    """
    _validation.same_shape(chosen=chosen, rejected=rejected, margin=margin)
    _validation.at_least(0.0, centre_coef=centre_coef)
    chosen, rejected = _validation.floats(chosen, rejected)
    loss = jax.nn.softplus(margin - (chosen - rejected))
    return loss + centre_coef * jnp.square(chosen + rejected)


def dpo(
    chosen: jax.typing.ArrayLike,
    rejected: jax.typing.ArrayLike,
    ref_chosen: jax.typing.ArrayLike,
    ref_rejected: jax.typing.ArrayLike,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """-(1 - s) log σ(β h) - s log σ(-β h), h = log π/π_ref(y₊) - log π/π_ref(y₋).

    With s > 0 it is cDPO: a share s of the preferences may be the wrong way round.

    Args:
      chosen: nats, log π(y₊), any shape.
      rejected: nats, log π(y₋), the same shape.
      ref_chosen: nats, log π_ref(y₊), the same shape.
      ref_rejected: nats, log π_ref(y₋), the same shape.
      beta: above 0.
      label_smoothing: s in [0, ½].

    Returns:
      A loss per pair.

    Raises:
      ValueError: if shapes differ or a setting is out of range.

    Source: Rafailov et al. (2023); cDPO: Mitchell (2023).

    >>> f"{dpo(-1.0, -2.0, -1.0, -1.0, beta=1.0):.4f}"
    '0.3133'
    """
    _validation.positive(beta=beta)
    _validation.within(0.0, 0.5, label_smoothing=label_smoothing)
    h = beta * _log_ratio_gap(chosen, rejected, ref_chosen, ref_rejected)
    right, wrong = jax.nn.softplus(-h), jax.nn.softplus(h)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


def ipo(
    chosen: jax.typing.ArrayLike,
    rejected: jax.typing.ArrayLike,
    ref_chosen: jax.typing.ArrayLike,
    ref_rejected: jax.typing.ArrayLike,
    beta: float = 0.1,
) -> jax.Array:
    """(h - 1/(2β))² with h as in `dpo`: the gap is drawn to a finite one.

    Args:
      chosen: nats, log π(y₊), any shape.
      rejected: nats, log π(y₋), the same shape.
      ref_chosen: nats, log π_ref(y₊), the same shape.
      ref_rejected: nats, log π_ref(y₋), the same shape.
      beta: above 0.

    Returns:
      A loss per pair.

    Raises:
      ValueError: if shapes differ or β is not positive.

    Source: Azar et al. (2023).

    >>> ipo(-1.0, -2.0, -1.0, -1.0, beta=0.25).item()
    1.0
    """
    _validation.positive(beta=beta)
    h = _log_ratio_gap(chosen, rejected, ref_chosen, ref_rejected)
    return jnp.square(h - 1.0 / (2.0 * beta))


def kto(
    log_ratio: jax.typing.ArrayLike,
    desirable: jax.typing.ArrayLike,
    kl: jax.typing.ArrayLike = 0.0,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> jax.Array:
    """λ₊ (1 - σ(β (h - z))) for a good answer, λ₋ (1 - σ(β (z - h))) for a bad one: no pairs.

    Args:
      log_ratio: nats, h = log π/π_ref(y), any shape.
      desirable: bool, the same shape.
      kl: z, nats, an estimate of KL(π‖π_ref), such as the mean h of answers to other prompts; taken
        as at least 0, and no gradient flows into it.
      beta: above 0.
      desirable_weight: λ₊ ≥ 0.
      undesirable_weight: λ₋ ≥ 0.

    Returns:
      A loss per answer.

    Raises:
      ValueError: if shapes differ, `desirable` is not boolean or a setting is out of range.

    Source: Ethayarajh et al. (2024).

    >>> kto(jnp.array([0.0, 0.0]), jnp.array([True, False]), undesirable_weight=2.0)
    Array([0.5, 1. ], dtype=float32)
    """
    _validation.boolean(desirable=desirable)
    _validation.same_shape(log_ratio=log_ratio, desirable=desirable, kl=kl)
    _validation.positive(beta=beta)
    _validation.at_least(0.0, desirable_weight=desirable_weight)
    _validation.at_least(0.0, undesirable_weight=undesirable_weight)
    (h,) = _validation.floats(log_ratio)
    z = jax.lax.stop_gradient(jnp.maximum(kl, 0.0))
    sign = jnp.where(desirable, 1.0, -1.0)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weight * jax.nn.sigmoid(-beta * sign * (h - z))


def orpo(chosen: jax.typing.ArrayLike, rejected: jax.typing.ArrayLike, coef: float = 0.1) -> jax.Array:
    """-log p₊ - λ log σ(log odds(p₊) - log odds(p₋)), odds(p) = p / (1 - p): no reference.

    Args:
      chosen: nats, log p₊, the *mean* log-probability of a token of y₊, any shape.
      rejected: nats, log p₋, the same shape.
      coef: λ ≥ 0.

    Returns:
      A loss per pair, the likelihood of the preferred answer included.

    Raises:
      ValueError: if shapes differ or λ is negative.

    Source: Hong et al. (2024).

    >>> f"{orpo(jnp.log(0.5), jnp.log(0.5), coef=1.0) / jnp.log(2.0):.4f}"
    '2.0000'
    """
    _validation.same_shape(chosen=chosen, rejected=rejected)
    _validation.at_least(0.0, coef=coef)
    chosen, rejected = _validation.floats(chosen, rejected)
    return coef * jax.nn.softplus(_log_odds(rejected) - _log_odds(chosen)) - chosen


def simpo(
    chosen: jax.typing.ArrayLike,
    rejected: jax.typing.ArrayLike,
    beta: float = 2.0,
    margin: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """-log σ(β (log p₊ - log p₋) - γ), with mean log-probabilities of tokens: no reference.

    Args:
      chosen: nats, log p₊, the *mean* log-probability of a token of y₊, any shape.
      rejected: nats, log p₋, the same shape.
      beta: above 0.
      margin: γ.

    Returns:
      A loss per pair.

    Raises:
      ValueError: if shapes differ or β is not positive.

    Source: Meng et al. (2024).

    >>> f"{simpo(-1.0, -2.0, beta=1.0, margin=1.0):.4f}"
    '0.6931'
    """
    _validation.same_shape(chosen=chosen, rejected=rejected, margin=margin)
    _validation.positive(beta=beta)
    chosen, rejected = _validation.floats(chosen, rejected)
    return jax.nn.softplus(margin - beta * (chosen - rejected))


def _log_ratio_gap(chosen, rejected, ref_chosen, ref_rejected):
    refs = {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    _validation.same_shape(chosen=chosen, rejected=rejected, **refs)
    chosen, rejected, *refs = _validation.floats(chosen, rejected, *refs.values())
    return (chosen - refs[0]) - (rejected - refs[1])


def _log_odds(log_p):
    """The log-odds, log p - log(1 - p); p is held below 1, where the odds end."""
    log_p = jnp.minimum(log_p, -1e-7)
    return log_p - jnp.log(-jnp.expm1(log_p))
