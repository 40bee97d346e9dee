"""The policy that sampled beside the reference: the KL of its tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from proxlm.policy import kl, protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._configuration.partials import Partial
from proxlm.policy._configuration.partials import partial as partial

__all__ = ["Comparison", "compare", "needs_distribution", "params_of", "truncates"]


class Comparison(NamedTuple):
    """k1, None without a reference, and the KL of the reward, [B, R]; log-probs for the loss, or None."""

    k1: jax.Array | None
    penalty: jax.Array
    for_loss: jax.Array | None


def params_of(ref_params: Any, params: optax.Params) -> optax.Params:
    """The reference's parameters: as they are kept, or as a function of those of the policy.

    >>> params_of(partial(lambda params: params - 1), 3), params_of(5, 3)
    (2, 5)
    """
    return ref_params(params) if isinstance(ref_params, Partial) else ref_params


def needs_distribution(actor: protocols.Actor, config: PPOConfig, ref_params: Any) -> bool:
    """Whether the old policy's whole distribution is asked for: by an exact KL, or for its support."""
    if config.kl is None or ref_params is None:
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
    if config.kl is None or state.ref_params is None:
        return Comparison(None, zeros, None)
    exact, in_loss = config.kl.estimator == "exact", config.kl.placement == "loss"
    truncated = truncates(actor)
    ref_params = params_of(state.ref_params, state.params)
    reference = actor.reference(ref_params, samples, full=exact or truncated)
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
