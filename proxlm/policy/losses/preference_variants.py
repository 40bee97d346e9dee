"""Nine relatives of DPO: losses of the log-ratios h = log π/π_ref(y) of a preferred and a rejected response.

With h₊ and h₋ of the pair, x = β (h₊ - h₋), σ the logistic function and s the share of labels that may be
wrong,

    hinge     max(0, 1 - x)                                                 SLiC, Zhao et al. 2023
    robust    (-(1 - s) log σ(x) + s log σ(-x)) / (1 - 2s)                 Chowdhury et al. 2024
    exo       KL((σ(x), σ(-x)) ‖ (1 - s, s)), s > 0                        Ji et al. 2024
    nca       -log σ(βh₊) - ½ log σ(-βh₊) - ½ log σ(-βh₋)                  Chen et al. 2024
    bco       -log σ(βh₊) - log σ(-βh₋)                                    Jung et al. 2024
    sppo      (h₊ - 1/(2β))² + (h₋ + 1/(2β))²                               Wu et al. 2024
    apo_zero  σ(-βh₊) + σ(βh₋): both towards their side of the reference   D'Oosterlinck et al. 2024
    apo_down  σ(βh₊) + σ(-x): both down, the worse one further             D'Oosterlinck et al. 2024
    discopop  -(1 - m) log σ(x) + m e^-x, m = σ(x / 0.05)                  Lu et al. 2024

as TRL 1.16 defines them; ValueError if shapes differ or a setting is out of range or not one of that kind.
`preference` has DPO itself, IPO, KTO, ORPO and SimPO.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy._finite import Number, finite

__all__ = ["PAIR_LOSSES", "f_score", "pair_loss"]

DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")


@_validation.typed
def pair_loss(
    chosen: ArrayLike, rejected: ArrayLike, kind: str, beta: Number = 0.1, label_smoothing: Number = 0.0
) -> jax.Array:
    """The loss of that name, one of `PAIR_LOSSES`, per pair.

    Args:
      chosen: nats, h₊ = log π/π_ref of the preferred responses, any shape.
      rejected: nats, h₋ of the rejected ones, the same shape.
      kind: "hinge", "robust", "exo", "nca", "bco", "sppo", "apo_zero", "apo_down" or "discopop".
      beta: β > 0.
      label_smoothing: s in [0, ½), of "robust" and "exo"; 0 for the others.

    >>> f"{pair_loss(1.0, 0.0, 'hinge', beta=0.25):.2f} {pair_loss(0.0, 0.0, 'apo_zero'):.2f}"
    '0.75 1.00'
    """
    _validation.one_of(tuple(PAIR_LOSSES), "pair_loss", kind=kind)
    _validation.same_shape("pair_loss", chosen=chosen, rejected=rejected)
    _validation.positive("pair_loss", beta=beta)
    _validation.finite("pair_loss", beta=beta)
    _validation.within(0, 0.499, "pair_loss", label_smoothing=label_smoothing)
    if kind == "exo":
        _validation.positive(
            "pair_loss", 'It is a logarithm\'s argument in "exo".', label_smoothing=label_smoothing
        )
    elif kind != "robust" and _validation.is_known(label_smoothing) and np.any(np.asarray(label_smoothing)):
        remedy = 'Only "robust" and "exo" read it.'
        raise _validation.invalid("label_smoothing", label_smoothing, "0", remedy, "pair_loss")
    chosen, rejected = finite(chosen, rejected)
    return PAIR_LOSSES[kind](beta * chosen, beta * rejected, beta, label_smoothing)


_log_sigmoid, _sigmoid = jax.nn.log_sigmoid, jax.nn.sigmoid


def _exo(good, bad, beta, s):
    x = good - bad
    right = _sigmoid(x) * (_log_sigmoid(x) - jnp.log1p(-s))
    return right + _sigmoid(-x) * (_log_sigmoid(-x) - jnp.log(s))


def _discopop(good, bad, beta, s):
    # m e^-x in one exponential, so that 0 · ∞ does not come up
    x = good - bad
    return jnp.exp(_log_sigmoid(x / 0.05) - x) - _sigmoid(-x / 0.05) * _log_sigmoid(x)


# (βh₊, βh₋, β, s) -> loss
PAIR_LOSSES = {
    "hinge": lambda good, bad, beta, s: jnp.maximum(1.0 - (good - bad), 0.0),
    "robust": lambda good, bad, beta, s: (
        (s * _log_sigmoid(bad - good) - (1.0 - s) * _log_sigmoid(good - bad)) / (1.0 - 2.0 * s)
    ),
    "exo": _exo,
    "nca": lambda good, bad, beta, s: -_log_sigmoid(good) - 0.5 * (_log_sigmoid(-good) + _log_sigmoid(-bad)),
    "bco": lambda good, bad, beta, s: -_log_sigmoid(good) - _log_sigmoid(-bad),
    "sppo": lambda good, bad, beta, s: (jnp.square(good - 0.5) + jnp.square(bad + 0.5)) / beta**2,
    "apo_zero": lambda good, bad, beta, s: _sigmoid(-good) + _sigmoid(bad),
    "apo_down": lambda good, bad, beta, s: _sigmoid(good) + _sigmoid(bad - good),
    "discopop": _discopop,
}


@_validation.typed
def f_score(log_ratio: ArrayLike, divergence: str = "reverse_kl", alpha: Number = 0.5) -> jax.Array:
    """The slope f'(u) at u = π/π_ref(y), which replaces log u in DPO if f is the divergence from π_ref.

    reverse_kl: log u; forward_kl: 1 - 1/u; js: log(2u/(1 + u)); alpha: (u^(α-1) - 1)/(α - 1). Give the two of
    a pair to `dpo`, with references of 0.

    Args:
      log_ratio: nats, log u, any shape.
      divergence: "reverse_kl", "forward_kl", "js" or "alpha".
      alpha: α, not 1.

    Returns:
      An array of that shape; exponents are clipped at 80.

    Source: Wang et al. (2023), f-DPO; TRL's `f_divergence_type`.

    >>> f_score(0.0, "js").item(), f_score(jnp.log(2.0), "forward_kl").item()
    (0.0, 0.5)
    """
    _validation.one_of(DIVERGENCES, "f_score", divergence=divergence)
    _validation.finite("f_score", alpha=alpha)
    (log_ratio,) = finite(log_ratio)
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "js":
        return jnp.log(2.0) + jax.nn.log_sigmoid(log_ratio)
    power = -1.0 if divergence == "forward_kl" else alpha - 1.0
    if _validation.is_known(power) and power == 0:
        remedy = 'Take divergence="reverse_kl", its limit.'
        raise _validation.invalid("alpha", alpha, "a number other than 1", remedy, "f_score")
    return jnp.expm1(jnp.minimum(power * log_ratio, 80.0)) / power
