"""Links that limit updates by the KL of the policy from the one that sampled, an extra argument.

    optimizer = skip_on_kl(optax.chain(optax.adam(1e-3), apply_prox(...)), max_kl=0.02)

`policy.ppo` hands every optimizer the extra argument `approx_kl`, the KL in nats per token on the minibatch,
before the update. Other loops do so by hand: optimizer.update(grads, state, params, approx_kl=kl). To end an
iteration's updates at a limit, set `PPOConfig.max_kl`, which skips their gradients too.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from proxlm import _validation
from proxlm.transforms import _arguments, _updates

__all__ = ["SkipState", "scale_by_kl", "skip_on_kl"]


class SkipState(NamedTuple):
    """State of `skip_on_kl`.

    Attributes:
      skipped: the updates dropped so far, int32.
      inner: the state of the optimizer.
    """

    skipped: jax.Array
    inner: Any


def skip_on_kl(
    inner: optax.GradientTransformation, max_kl: chex.Numeric
) -> optax.GradientTransformationExtraArgs:
    """Drops the update of a minibatch whose KL exceeds a limit; the next minibatch is tried again.

    For a dropped update, updates are 0 and the optimizer's state does not change. NaN exceeds any limit, so
    that a minibatch with invalid log-probs changes neither params nor moments.

    Args:
      inner: the optimizer, prox included; its extra arguments are handed on.
      max_kl: the limit ≥ 0, in nats per token. May be traced.

    Raises:
      ValueError: if an argument is invalid; on update, without `approx_kl`.

    Source: `optax.apply_if_finite`, with the KL in place of finiteness.

    >>> tx = skip_on_kl(optax.sgd(1.0), 0.1)
    >>> state = tx.init(jnp.ones(1))
    >>> for kl in (0.0, 0.2, jnp.nan, 0.1):
    ...     updates, state = tx.update(jnp.ones(1), state, approx_kl=kl)
    ...     print(updates.item(), state.skipped)
    -1.0 0
    0.0 1
    0.0 2
    -1.0 2
    """
    _arguments.require_link("skip_on_kl", "inner", inner)
    _validation.tree_at_least(0, "skip_on_kl", max_kl=max_kl)
    _require_one("skip_on_kl", "max_kl", max_kl)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return SkipState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        within = _approx_kl("skip_on_kl", extra_args) <= max_kl
        go = lambda: inner.update(updates, state.inner, params, **extra_args)
        zeros = lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(go)[0])
        updates, kept = jax.lax.cond(within, go, lambda: (zeros(), state.inner))
        skipped = jnp.where(within, state.skipped, _updates.increment(state.skipped))
        return updates, SkipState(skipped, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_kl(
    target: chex.Numeric, least: chex.Numeric = 0.1, most: chex.Numeric = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Shortens steps as the KL passes a target: u ↦ u · min(max(target / approx_kl, least), most).

    With most=1 steps keep their length up to the target and shrink beyond it; a larger `most` lengthens steps
    while the KL is small. A KL ≤ 0, which an estimate may be, gives `most`; NaN gives `least`.

    Put it after the preconditioner, which would undo it (Adam's update does not change with the
    scale of gradients), and before `apply_prox`: the threshold keeps the learning rate that the
    prox was given, so that the penalty pulls as before while the loss's step is shortened. To guard
    the prox as well, stop or skip.

    Args:
      target: the KL up to which steps are whole, > 0, in nats per token. May be traced, as may the bounds.
      least: the smallest factor, ≥ 0.
      most: the largest.

    Raises:
      ValueError: if an argument is invalid; on update, without `approx_kl`.

    Source: the idea of an adaptive learning rate by KL (Schulman et al. 2017, section 4, adapt the
    penalty instead); the formula is ours.

    >>> tx = optax.chain(optax.sgd(1.0), scale_by_kl(0.02))
    >>> state = tx.init(jnp.ones(1))
    >>> move = lambda kl: tx.update(jnp.ones(1), state, approx_kl=kl)[0].item()
    >>> [round(move(kl), 3) for kl in (0.0, 0.02, 0.04, 9.0)]
    [-1.0, -1.0, -0.5, -0.1]
    """
    _validation.tree_positive("scale_by_kl", target=target)
    _validation.tree_at_least(0, "scale_by_kl", least=least, most=most)
    for argument, number in (("target", target), ("least", least), ("most", most)):
        _require_one("scale_by_kl", argument, number)
    known = [_validation.known("scale_by_kl", "bounds", bound) for bound in (least, most)]
    if all(known) and known[0][0] > known[1][0]:
        raise ValueError(f"scale_by_kl: least must be at most most, got {least} and {most}.")

    def update(updates, state, params=None, **extra_args):
        del params
        approx_kl = _approx_kl("scale_by_kl", extra_args)
        quotient = target / jnp.where(approx_kl > 0, approx_kl, 1.0)
        factor = jnp.where(approx_kl > 0, jnp.clip(quotient, least, most), most)
        factor = jnp.where(jnp.isnan(approx_kl), least, factor)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _require_one(name, argument, number):
    if jnp.ndim(number) != 0:
        raise ValueError(f"{name}: {argument} must be one number, got shape {jnp.shape(number)}.")


def _approx_kl(name, extra_args):
    if "approx_kl" not in extra_args:
        raise ValueError(
            f"{name}: update was not given approx_kl, an extra argument. policy.ppo hands it to "
            "its optimizer; in your own loop call update(grads, state, params, approx_kl=...)."
        )
    return jnp.asarray(extra_args["approx_kl"])
