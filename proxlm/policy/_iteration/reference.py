"""The policy that sampled beside the reference: the KL of its tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from proxlm.policy import kl, protocols
from proxlm.policy._configuration.config import PPOConfig


class Comparison(NamedTuple):
    """k1 and the KL of the reward, [B, R] each; log-probs that the loss compares with, or None."""

    k1: jax.Array
    penalty: jax.Array
    for_loss: jax.Array | None


def needs_distribution(actor: protocols.Actor, config: PPOConfig) -> bool:
    """Whether the old policy's whole distribution is asked for: by an exact KL, or for its support."""
    if config.kl is None:
        return False
    return truncates(actor) or (config.kl.estimator == "exact" and config.kl.placement == "reward")


def truncates(actor: protocols.Actor) -> bool:
    """Whether an actor samples from a truncated distribution, as its sampling settings say.

    >>> from proxlm import lm
    >>> model = lm.ModelConfig(8, num_layers=1, width=8, value_head=True)
    >>> truncates(lm.make_actor(model, 4, sampling=lm.SamplingConfig(top_k=2)))
    True
    """
    settings = getattr(actor, "sampling", None)
    return any(getattr(settings, name, None) is not None for name in ("top_k", "top_p", "min_p"))


def compare(
    state: Any,
    samples: protocols.Samples,
    old: protocols.Samples | protocols.Scores,
    scores: protocols.Scores,
    actor: protocols.Actor,
    config: PPOConfig,
) -> Comparison:
    """The KL to the reference, on the tokens that the policy could say.

    Where sampling is truncated, the reference is renormalised on the policy's own support S, token
    by token: KL(π_S‖π_ref,S) is finite and not negative, and the sampled estimators estimate it.
    """
    zeros = jnp.zeros_like(old.log_probs)
    if config.kl is None:
        return Comparison(zeros, zeros, None)
    exact, in_loss = config.kl.estimator == "exact", config.kl.placement == "loss"
    truncated = truncates(actor)
    reference = actor.reference(state.ref_params, samples, full=exact or truncated)
    log_probs, distribution = reference.log_probs, reference.distribution
    if truncated:
        log_mass = kl.log_mass(distribution, scores.distribution)
        log_probs = log_probs - log_mass
    k1 = kl.k1(old.log_probs, log_probs)
    if in_loss:
        # the loss renormalises a distribution on the support of the policy that learns
        return Comparison(k1, zeros, distribution if exact else log_probs)
    if exact:
        distribution = distribution - log_mass[..., None] if truncated else distribution
        return Comparison(k1, kl.exact(scores.distribution, distribution), None)
    return Comparison(k1, kl.estimator(config.kl.estimator)(old.log_probs, log_probs), None)
