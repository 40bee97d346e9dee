"""Smooth losses that Optax lacks, one value per prediction; the caller masks and reduces."""

import jax
import jax.numpy as jnp

__all__ = ["next_token"]


def next_token(logits, targets):
    """Negative log-likelihood of each target: log Σ_v exp(l_v) − l_target, in nats.

    The target's logit is selected by a mask and a sum and not gathered: they fuse with the rest,
    and so does the gradient softmax(l) − 1[v = target].

    Args:
      logits: float `[..., V]`; computed in float32.
      targets: integers `[...]`.

    Returns:
      float32 `[...]`.

    Raises:
      ValueError: the shapes do not match.

    >>> next_token(jnp.zeros((2, 4)), jnp.array([0, 3])) / jnp.log(4)
    Array([1., 1.], dtype=float32)
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets has shape {targets.shape}: expected {logits.shape[:-1]}, that of logits "
            f"{logits.shape} without the vocabulary"
        )
    logits = logits.astype(jnp.float32)
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = jnp.sum(jnp.where(places == targets[..., None], logits, 0.0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen
