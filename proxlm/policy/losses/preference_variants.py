"""Relatives of DPO: losses of the log-ratios h = log π/π_ref(y) of a preferred and another answer.

With h₊ and h₋ of the pair, x = β (h₊ - h₋), σ the logistic function and s the share of preferences
that may be the wrong way round,

    hinge     max(0, 1 - x)                                                 SLiC, Zhao et al. 2023
    robust    (-(1 - s) log σ(x) + s log σ(-x)) / (1 - 2s)                 Chowdhury et al. 2024
    exo       KL((σ(x), σ(-x)) ‖ (1 - s, s)), s > 0                        Ji et al. 2024
    nca       -log σ(βh₊) - ½ log σ(-βh₊) - ½ log σ(-βh₋)                  Chen et al. 2024
    bco       -log σ(βh₊) - log σ(-βh₋)                                    Jung et al. 2024
    sppo      (h₊ - 1/(2β))² + (h₋ + 1/(2β))²                               Wu et al. 2024
    apo_zero  σ(-βh₊) + σ(βh₋): both towards their side of the reference   D'Oosterlinck et al. 2024
    apo_down  σ(βh₊) + σ(-x): both down, the worse one further             D'Oosterlinck et al. 2024
    discopop  -(1 - m) log σ(x) + m e^-x, m = σ(x / 0.05)                  Lu et al. 2024

as TRL 1.16 defines them.  `preference` has DPO itself, IPO, KTO, ORPO and SimPO.
"""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation

_KINDS = (
    "hinge",
    "robust",
    "exo",
    "nca",
    "bco",
    "sppo",
    "apo_zero",
    "apo_down",
    "discopop",
)
_DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")


def pair_loss(
    chosen: jax.typing.ArrayLike,
    rejected: jax.typing.ArrayLike,
    kind: str,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """The loss of that name, per pair.

    Args:
      chosen: nats, h₊ = log π/π_ref of the preferred answers, any shape.
      rejected: nats, h₋ of the others, the same shape.
      kind: as above.
      beta: β > 0.
      label_smoothing: s in [0, ½), of "robust" and "exo".

    Returns:
      A loss per pair.

    Raises:
      ValueError: if shapes differ, the kind is unknown or a setting out of range.

    >>> f"{pair_loss(1.0, 0.0, 'hinge', beta=0.25):.2f} {pair_loss(0.0, 0.0, 'apo_zero'):.2f}"
    '0.75 1.00'
    """
    _validation.one_of(_KINDS, kind=kind)
    _validation.same_shape(chosen=chosen, rejected=rejected)
    _validation.positive(beta=beta)
    _validation.within(0.0, 0.499, label_smoothing=label_smoothing)
    if kind == "exo":
        _validation.positive(label_smoothing=label_smoothing)
    chosen, rejected = _validation.floats(chosen, rejected)
    return _loss(kind, beta * chosen, beta * rejected, beta, label_smoothing)


def _loss(kind, good, bad, beta, s):
    """The formulas, of βh₊ and βh₋."""
    x, log_sigmoid, sigmoid = good - bad, jax.nn.log_sigmoid, jax.nn.sigmoid
    if kind == "hinge":
        return jnp.maximum(1.0 - x, 0.0)
    if kind == "robust":
        return (s * log_sigmoid(-x) - (1.0 - s) * log_sigmoid(x)) / (1.0 - 2.0 * s)
    if kind == "exo":
        right = sigmoid(x) * (log_sigmoid(x) - jnp.log1p(-s))
        return right + sigmoid(-x) * (log_sigmoid(-x) - jnp.log(s))
    if kind == "nca":
        return -log_sigmoid(good) - 0.5 * (log_sigmoid(-good) + log_sigmoid(-bad))
    if kind == "bco":
        return -log_sigmoid(good) - log_sigmoid(-bad)
    if kind == "sppo":
        return (jnp.square(good - 0.5) + jnp.square(bad + 0.5)) / beta**2
    if kind == "apo_zero":
        return sigmoid(-good) + sigmoid(bad)
    if kind == "apo_down":
        return sigmoid(good) + sigmoid(-x)
    # m e^-x in one exponential, so that 0 · ∞ does not come up
    return jnp.exp(log_sigmoid(x / 0.05) - x) - sigmoid(-x / 0.05) * log_sigmoid(x)


def f_score(log_ratio: jax.typing.ArrayLike, divergence: str = "reverse_kl", alpha: float = 0.5) -> jax.Array:
    """f'(u) of u = π/π_ref(y), what stands for log u if another divergence holds π to π_ref.

    reverse_kl: log u; forward_kl: 1 - 1/u; js: log(2u/(1 + u)); alpha: (u^(α-1) - 1)/(α - 1).
    Hand two of them, with references of 0, to `preference.dpo`.

    Args:
      log_ratio: nats, log u, any shape.
      divergence: "reverse_kl", "forward_kl", "js" or "alpha".
      alpha: α, not 1.

    Returns:
      An array of that shape; exponents are held below 80.

    Raises:
      ValueError: if the divergence is unknown or α is 1.

    Source: Wang et al. (2023), f-DPO; TRL's `f_divergence_type`.

    >>> f_score(0.0, "js").item(), f_score(jnp.log(2.0), "forward_kl").item()
    (0.0, 0.5)
    """
    _validation.one_of(_DIVERGENCES, divergence=divergence)
    (log_ratio,) = _validation.floats(log_ratio)
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "js":
        return jnp.log(2.0) + jax.nn.log_sigmoid(log_ratio)
    power = -1.0 if divergence == "forward_kl" else alpha - 1.0
    if not isinstance(power, jax.core.Tracer) and power == 0:
        raise ValueError('alpha is 1; expected another number. Take "reverse_kl", its limit.')
    return jnp.expm1(jnp.minimum(power * log_ratio, 80.0)) / power
