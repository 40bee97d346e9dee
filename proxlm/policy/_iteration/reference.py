"""The policy that sampled beside the reference: the KL of its tokens."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from proxlm._decoding import distribution
from proxlm.policy import kl, protocols
from proxlm.policy._configuration.config import PPOConfig
from proxlm.policy._configuration.partials import Partial
from proxlm.policy._configuration.partials import partial as partial
from proxlm.policy._iteration.grouping import GroupedActor

__all__ = ["Comparison", "compare", "params_of", "renormalised", "truncates"]


class Comparison(NamedTuple):
    """k1, None without a reference, and the KL of the reward, [B, R]; `Experience.reference`, or None."""

    k1: jax.Array | None
    penalty: jax.Array
    for_loss: Any


def params_of(ref_params: Any, params: optax.Params) -> optax.Params:
    """The reference's parameters: as they are kept, or as a function of those of the policy.

    >>> params_of(partial(lambda params: params - 1), 3), params_of(5, 3)
    (2, 5)
    """
    return ref_params(params) if isinstance(ref_params, Partial) else ref_params


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
    state: Any, samples: protocols.Samples, actor: GroupedActor, config: PPOConfig
) -> tuple[protocols.Scores, Comparison]:
    """The scores of the policy, and its KL to the reference, on the tokens that the policy could say.

    Where sampling is truncated, the reference is renormalised on the policy's own support S, token
    by token: KL(π_S‖π_ref,S) is finite and not negative, and the sampled estimators estimate it.
    """
    settings, params = config.kl, state.params
    if settings is None or state.ref_params is None:
        scores = actor.score(params, samples)
        return scores, Comparison(None, jnp.zeros_like(scores.log_probs), None)
    exact, in_loss, truncated = settings.estimator == "exact", settings.placement == "loss", truncates(actor)
    ref_params, in_reward = params_of(state.ref_params, params), exact and not in_loss
    if exact or truncated:
        reference, known = actor.known(ref_params, samples)
    else:
        reference, known = actor.reference(ref_params, samples), None
    if in_reward or truncated:
        of = functools.partial(_of_tokens, exact=in_reward, truncated=truncated)
        scores, (log_probs, penalty) = actor.compare(of, params, samples, ref_params, known)
    else:
        scores, log_probs, penalty = actor.score(params, samples), reference.log_probs, None
    old = samples if config.correction is None else scores
    k1 = kl.k1(old.log_probs, log_probs)
    if in_loss:
        # a distribution is renormalised in the loss, on the support of the policy that learns
        return scores, Comparison(k1, jnp.zeros_like(k1), known if exact else log_probs)
    if penalty is None:
        penalty = kl.estimator(settings.estimator)(old.log_probs, log_probs)
    return scores, Comparison(k1, penalty, None)


def renormalised(log_probs: jax.Array, ref_log_probs: jax.Array, truncated: bool) -> jax.Array:
    """The reference's log-probs `[N, V]`, of a truncated policy on its support.

    >>> renormalised(jnp.array([[0.0, -jnp.inf]]), jnp.log(jnp.full((1, 2), 0.5)), truncated=True).tolist()
    [[0.0, 0.0]]
    """
    if not truncated:
        return ref_log_probs
    return ref_log_probs - kl.log_mass(ref_log_probs, jax.lax.stop_gradient(log_probs))[:, None]


def _of_tokens(log_probs, ref_log_probs, tokens, exact, truncated):
    """The reference's log-probs of the tokens, and the exact KL or None."""
    ref_log_probs = renormalised(log_probs, ref_log_probs, truncated)
    return distribution.select(ref_log_probs, tokens), kl.exact(log_probs, ref_log_probs) if exact else None
