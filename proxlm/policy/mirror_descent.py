"""The proximal point step of a policy in the geometry of the KL divergence.

    π⁺ = argmax_π  E_π[A] - β KL(π‖π_ref) - KL(π‖π_old)/τ

τ is the step size. PPO's clip and its KL penalty approximate this step; here it is solved in closed
form on logits, and stated as a loss for a policy that is a network.

All take advantages [..., V], to which a constant added to a row adds nothing; log-probs, nats [..., V], of
the old policy and, if there is one, of the reference; and β ≥ 0 and τ > 0. A loss has gradient in `log_probs`
alone. All raise ValueError if shapes differ, β or τ is out of range, or β is given without a reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy import kl

__all__ = ["proximal_loss", "proximal_regression", "proximal_step"]


@_validation.typed
def proximal_step(
    advantages: ArrayLike,
    old_log_probs: ArrayLike,
    ref_log_probs: ArrayLike | None = None,
    kl_coef: float | jax.Array = 0.0,
    step_size: float | jax.Array = 1.0,
) -> jax.Array:
    """The exact step, log π⁺ ∝ (A + β log π_ref + log π_old/τ) / (β + 1/τ), over the last axis.

    An infinite τ ends at the optimum, if β > 0.

    Returns:
      Nats [..., V], normalised; -inf where the old policy or the reference is.

    Source: Nemirovski and Yudin (1983); Geist et al. (2019), regularised Markov decision processes.

    >>> uniform = jnp.log(jnp.full(2, 0.5))
    >>> jnp.exp(proximal_step(jnp.log(jnp.array([1.0, 3.0])), uniform)).round(2).tolist()
    [0.25, 0.75]
    """
    _check(advantages, old_log_probs, ref_log_probs, kl_coef, step_size)
    inertia = 1.0 / step_size
    (pull, old) = _validation.floats(advantages, old_log_probs)
    # an infinite step leaves the old policy's support alone, and 0 · ∞ nowhere
    pull = jnp.where(old == -jnp.inf, -jnp.inf, pull + inertia * jnp.where(old == -jnp.inf, 0.0, old))
    if ref_log_probs is not None:
        (ref,) = _validation.floats(ref_log_probs)
        inside = ref > -jnp.inf
        pull = jnp.where(inside, pull + kl_coef * jnp.where(inside, ref, 0.0), -jnp.inf)
    return jax.nn.log_softmax(pull / (kl_coef + inertia), axis=-1)


@_validation.typed
def proximal_loss(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    old_log_probs: ArrayLike,
    ref_log_probs: ArrayLike | None = None,
    kl_coef: float | jax.Array = 0.0,
    step_size: float | jax.Array = 1.0,
) -> jax.Array:
    """-Σᵥ π(v) A(v) + β KL(π‖π_ref) + KL(π‖π_old)/τ: what `proximal_step` minimises.

    For a policy that is a network: minimise its mean over prefixes of the old policy by gradients. With
    sampled tokens alone, `losses.kl_penalty` in the reverse direction estimates it. One number a prefix,
    [...].

    Source: Tomar et al. (2020), mirror descent policy optimisation.

    >>> uniform = jnp.log(jnp.full(2, 0.5))
    >>> proximal_loss(uniform, jnp.array([1.0, 3.0]), uniform)
    Array(-2., dtype=float32)
    """
    _validation.same_shape(log_probs=log_probs, advantages=advantages)
    _check(advantages, old_log_probs, ref_log_probs, kl_coef, step_size)
    log_probs, advantages = _validation.floats(log_probs, jax.lax.stop_gradient(advantages))
    probs = jnp.exp(log_probs)
    gain = jnp.sum(jnp.where(probs > 0, probs * advantages, 0.0), axis=-1)
    loss = kl.exact(log_probs, jax.lax.stop_gradient(old_log_probs)) / step_size - gain
    if ref_log_probs is None:
        return loss
    return loss + kl.scaled(kl_coef, kl.exact(log_probs, jax.lax.stop_gradient(ref_log_probs)))


@_validation.typed
def proximal_regression(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    rewards: ArrayLike,
    ref_log_probs: ArrayLike | None = None,
    kl_coef: float | jax.Array = 0.0,
    step_size: float | jax.Array = 1.0,
) -> jax.Array:
    """The step on whole answers as regression: ½ (f - mean f)² with f = (β + 1/τ) d - r'.

    d = log π/π_old(y) and r' = r - β log π_old/π_ref(y). For the exact step f is one number for
    every answer to a prompt, so the loss is 0 there, whoever sampled; on the policy's own samples
    its gradient is (β + 1/τ) times the policy gradient with a mean baseline. Log-probs log π(y) are
    sums over an answer's tokens, nats [G] of one group, as the rewards are and the loss is.

    Source: Gao et al. (2024), REBEL; Flet-Berliac et al. (2024), contrastive policy gradient.

    >>> old = jnp.log(jnp.array([0.5, 0.5]))
    >>> best = proximal_step(jnp.array([0.0, 1.0]), old)
    >>> bool(jnp.all(proximal_regression(best, old, jnp.array([0.0, 1.0])) < 1e-12))
    True
    """
    _validation.one_sequence(log_probs=log_probs)
    _validation.same_shape(log_probs=log_probs, rewards=rewards)
    for name, array in {"old_log_probs": old_log_probs, "rewards": rewards}.items():
        _validation.one_sequence("proximal_regression", **{name: array})
    _check(rewards, old_log_probs, ref_log_probs, kl_coef, step_size)
    log_probs, old, rewards = _validation.floats(log_probs, old_log_probs, rewards)
    goal = rewards if ref_log_probs is None else rewards - kl_coef * kl.k1(old, ref_log_probs)
    old, goal = jax.lax.stop_gradient((old, goal))
    f = (kl_coef + 1.0 / step_size) * (log_probs - old) - goal
    return 0.5 * jnp.square(f - jnp.mean(f))


def _check(advantages, old_log_probs, ref_log_probs, kl_coef, step_size):
    _validation.same_shape(advantages=advantages, old_log_probs=old_log_probs)
    _validation.at_least(0.0, kl_coef=kl_coef)
    _validation.finite(kl_coef=kl_coef)
    _validation.positive(step_size=step_size)
    if ref_log_probs is not None:
        _validation.same_shape(advantages=advantages, ref_log_probs=ref_log_probs)
    elif _validation.is_known(kl_coef) and np.any(np.asarray(kl_coef) != 0):
        remedy = "Give the reference, or leave kl_coef at 0."
        raise _validation.invalid("kl_coef", kl_coef, "0 without ref_log_probs", remedy)
