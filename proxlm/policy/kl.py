"""Kullback-Leibler divergence from a reference policy: sampled, exact, and a coefficient that adapts.

With a ~ π and d = log π(a) - log π_ref(a), three estimators of KL(π‖π_ref) per token:

    k1 = d            unbiased, may be negative
    k2 = ½ d²         biased, but its gradient is that of the exact KL in expectation
    k3 = e^-d - 1 + d unbiased, never negative, heavy-tailed where π forgets what π_ref knows

Where an estimator is used matters more than which one. In the *reward* take k1: its policy gradient is the
gradient of the KL of whole sequences. In the *loss* take `exact` or k2: the expected gradient of k1 is 0, so
that a coefficient in front of it does nothing, and the expected gradient of k3 is that of KL(π_ref‖π).

All take log π(a) and log π_ref(a), nats of sampled tokens of one shape, and give one estimate per token,
float32 or better; all raise ValueError if shapes differ or a setting is out of range. A log-prob of -inf
counts as -1e9 nats, with gradient 0, so that every estimate is a number.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy._finite import MAX_LOG_RATIO, Number, finite
from proxlm.policy._finite import scaled as scaled

__all__ = [
    "ESTIMATORS",
    "absolute",
    "adapt",
    "estimator",
    "exact",
    "k1",
    "k2",
    "k3",
    "log_mass",
    "straight_through",
]

Estimator = Callable[[ArrayLike, ArrayLike], jax.Array]


@_validation.typed
def k1(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> jax.Array:
    """k1 = log π(a) - log π_ref(a), the log-ratio, subtracted in float32 or better.

    Source: Schulman, "Approximating KL divergence" (2020).

    >>> k1(jnp.array([-1.0]), jnp.array([-1.5]))
    Array([0.5], dtype=float32)
    """
    _validation.same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_probs, ref_log_probs = finite(log_probs, ref_log_probs)
    return log_probs - ref_log_probs


@_validation.typed
def k2(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> jax.Array:
    """k2 = ½ (log π(a) - log π_ref(a))².

    Source: Schulman, "Approximating KL divergence" (2020).

    >>> k2(jnp.array([-1.0]), jnp.array([-1.5]))
    Array([0.125], dtype=float32)
    """
    return 0.5 * jnp.square(k1(log_probs, ref_log_probs))


@_validation.typed
def k3(
    log_probs: ArrayLike,
    ref_log_probs: ArrayLike,
    max_log_ratio: Number = MAX_LOG_RATIO,
    max_value: Number | None = None,
) -> jax.Array:
    """k3 = eˣ - 1 - x with x = log π_ref(a) - log π(a), clipped above at `max_log_ratio`.

    Beyond the bound value and gradient stay finite (the gradient is 0). It is the argument that is clipped:
    clipping the result would leave 0 · ∞ = NaN in the gradient.

    Args:
      max_log_ratio: nats, from 0 to 88; 20 in verl and OpenRLHF, 88 is TRL's "no bound".
      max_value: nats, bound of the estimate, or None; 10 in verl and OpenRLHF.

    Source: Schulman, "Approximating KL divergence" (2020); the overflow is OpenRLHF issue 1335.

    >>> f"{k3(-1.0, -2.0):.4f}", f"{k3(-1e4, 0.0):.1e}"
    ('0.3679', '4.9e+08')
    """
    _validation.within(0, 88, "k3", max_log_ratio=max_log_ratio)
    _validation.at_least(0, "k3", max_value=max_value)
    x = jnp.minimum(-k1(log_probs, ref_log_probs), max_log_ratio)
    estimate = jnp.expm1(x) - x
    return estimate if max_value is None else jnp.minimum(estimate, max_value)


@_validation.typed
def absolute(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> jax.Array:
    """|log π(a) - log π_ref(a)|: verl's "abs", a penalty that estimates no KL.

    >>> absolute(jnp.array([-1.5]), jnp.array([-1.0]))
    Array([0.5], dtype=float32)
    """
    difference = k1(log_probs, ref_log_probs)
    # a slope of 0 at 0, which jnp.abs does not have
    return difference * jax.lax.stop_gradient(jnp.sign(difference))


@_validation.typed
def straight_through(value_of: Estimator) -> Estimator:
    """An estimator with the value of another one and the gradient of k2: sg[x - k2] + k2.

    Source: verl's "k1+", "k3+" and "abs+".

    >>> jax.value_and_grad(straight_through(k1))(-1.0, -1.5)
    (Array(0.5, dtype=float32), Array(0.5, dtype=float32, weak_type=True))
    """

    def estimate(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> jax.Array:
        square = k2(log_probs, ref_log_probs)
        value = value_of(log_probs, ref_log_probs)
        return square + jax.lax.stop_gradient(value - square)

    return estimate


ESTIMATORS: dict[str, Estimator] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "abs": absolute,
    "k1+": straight_through(k1),
    "k3+": straight_through(k3),
    "abs+": straight_through(absolute),
}


def estimator(kind: str) -> Estimator:
    """The sampled estimator of that name, one of `ESTIMATORS`.

    Args:
      kind: "k1", "k2", "k3", "abs", or with a "+" and the gradient of k2.

    >>> estimator("k2") is k2
    True
    """
    _validation.one_of(tuple(ESTIMATORS), "kl.estimator", kind=kind)
    return ESTIMATORS[kind]


@_validation.typed
def exact(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> jax.Array:
    """KL(π‖π_ref) = Σᵥ π(v) (log π(v) - log π_ref(v)) over the whole vocabulary.

    Log-probs are nats [..., V], normalised; the KL is nats [...]. A token with π(v) = 0 (log π(v) = -inf, or
    so low that π(v) is 0 in this precision) adds 0 to value and gradient, whatever π_ref(v) is. One with
    π_ref(v) = 0 < π(v) makes the KL infinite, with gradient 0.

    >>> log_probs = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    >>> f"{exact(log_probs, jnp.log(jnp.array([0.25, 0.75, 0.0]))):.4f}"
    '0.1438'
    """
    _validation.same_shape("kl.exact", log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_probs, ref_log_probs = _validation.floats(log_probs, ref_log_probs)
    possible = jnp.exp(log_probs) != 0  # also NaN, which must show
    infinite = jnp.any(possible & (ref_log_probs == -jnp.inf), axis=-1)
    # the inner selection keeps inf - inf out of the backward pass, the outer one e^0 out of the sum
    log_probs = jnp.where(possible, log_probs, 0.0)
    d = k1(log_probs, jnp.where(possible, ref_log_probs, 0.0))
    divergence = jnp.sum(jnp.where(possible, jnp.exp(log_probs), 0.0) * d, axis=-1)
    return jnp.where(infinite, jnp.inf, divergence)


@_validation.typed
def log_mass(ref_log_probs: ArrayLike, log_probs: ArrayLike) -> jax.Array:
    """The log-probability log Σ π_ref(v) of the tokens v with π(v) > 0: 0 where these are all.

    Log-probs are nats [..., V], the result is nats [...]. Taken off the reference's log-probs it renormalises
    the reference on the support S of a truncated policy (top-k, top-p, min-p). KL(π_S‖π_ref,S) is then finite
    and never negative, and k1 and k3 of tokens drawn from π_S are unbiased for it. Against a reference that
    is truncated on its own, or not at all, the KL is infinite or E[k1] negative.

    >>> ref = jnp.log(jnp.array([0.25, 0.25, 0.5]))
    >>> f"{log_mass(ref, jnp.array([-0.7, -0.7, -jnp.inf])):.4f}"
    '-0.6931'
    """
    _validation.same_shape("kl.log_mass", ref_log_probs=ref_log_probs, log_probs=log_probs)
    inside = jnp.asarray(log_probs) != -jnp.inf
    return jax.nn.logsumexp(jnp.asarray(ref_log_probs, jnp.float32), axis=-1, where=inside)


@_validation.typed
def adapt(
    coef: Number,
    observed_kl: Number,
    num_sequences: Number,
    *,
    target: Number = 6.0,
    horizon: Number = 10_000.0,
    max_error: Number = 0.2,
) -> jax.Array:
    """A proportional controller of the KL coefficient: β ← β (1 + e · n / horizon).

    With the error e = clip(KL / target - 1, ±max_error).

    Args:
      coef: β ≥ 0.
      observed_kl: nats per sequence, the mean over sequences of the sum of k1 over tokens (verl takes the
        mean over tokens, so its target is one per token). Where a traced one is NaN, β stays.
      num_sequences: n, sequences seen in this step.
      target: nats per sequence.
      horizon: sequences, at least max_error · n, since β could otherwise lose its sign.
      max_error: bound on the relative error.

    Source: Ziegler et al., "Fine-tuning language models from human preferences" (2019).

    >>> f"{adapt(0.15, observed_kl=12.0, num_sequences=512):.6f}"
    '0.151536'
    """
    _validation.at_least(0, "adapt", coef=coef, max_error=max_error)
    _validation.finite("adapt", coef=coef, target=target)
    _validation.positive("adapt", num_sequences=num_sequences, target=target, horizon=horizon)
    if _validation.is_known(observed_kl) and np.any(np.isnan(observed_kl)):
        remedy = "The log-probs of one of the two policies are NaN."
        raise _validation.invalid("observed_kl", observed_kl, "a number", remedy, "adapt")
    if all(map(_validation.is_known, (max_error, num_sequences))):
        remedy = "It is below max_error times num_sequences, where β could lose its sign."
        _validation.at_least(float(max_error * num_sequences), "adapt", remedy, horizon=horizon)
    error = jnp.clip(jnp.asarray(observed_kl, jnp.float32) / target - 1.0, -max_error, max_error)
    error = jnp.where(jnp.isnan(error), 0.0, error)
    return coef * (1.0 + error * (num_sequences / horizon))
