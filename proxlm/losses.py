"""Smooth losses that Optax lacks, one value per prediction; the caller masks and reduces."""

import jax
import jax.numpy as jnp
import numpy as np

from proxlm import _validation

__all__ = ["IGNORED", "next_token"]

# The label of tokens that are not learnt, as in PyTorch and Hugging Face.
IGNORED = -100


@_validation.typed
def next_token(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target: log Σ_v exp(l_v) − l_target, in nats.

    The target's logit is selected by a mask and a sum and not gathered: they fuse with the rest,
    and so does the gradient softmax(l) − 1[v = target].

    Args:
      logits: float `[..., V]`; computed in float32.
      targets: integers `[...]` in [0, V), or -100 where nothing is learnt.

    Returns:
      float32 `[...]`: 0, without gradient, where the target is -100, and NaN where it is another id outside
      the vocabulary and traced.

    Raises:
      ValueError: if the shapes do not match, or a known target is outside the vocabulary.

    >>> next_token(jnp.zeros((3, 4)), jnp.array([0, 3, -100])) / jnp.log(4)
    Array([1., 1., 0.], dtype=float32)
    """
    shape, size = jnp.shape(logits)[:-1], jnp.shape(logits)[-1]
    if shape != jnp.shape(targets):
        expected = f"{shape}, that of logits without the vocabulary"
        raise _validation.invalid("targets.shape", jnp.shape(targets), expected, "", "next_token")
    if not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        dtype = jnp.result_type(targets)
        remedy = "Give ids of tokens."
        raise _validation.invalid("targets.dtype", dtype, "an integer one", remedy, "next_token")
    if _validation.is_known(targets):
        ids = np.asarray(targets)  # in NumPy, for inside jit JAX's operations on known arrays are traced
        outside = ids[(ids != IGNORED) & ((ids < 0) | (ids >= size))]
        if outside.size:
            expected, remedy = f"ids in [0, {size}), or -100", "Mark what is not learnt by -100."
            raise _validation.invalid("targets", int(outside[0]), expected, remedy, "next_token")
    learnt, inside = targets != IGNORED, (targets >= 0) & (targets < size)
    logits = logits.astype(jnp.float32)
    places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = jnp.sum(jnp.where(places == targets[..., None], logits, 0.0), axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.where(learnt, jnp.where(inside, loss, jnp.nan), 0.0)
