"""Smooth losses, one value per prediction; the caller masks and reduces.

Two gradients of means are here in closed form; autodiff finds the same.
"""

import jax
import jax.numpy as jnp


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


def logistic(logits, labels):
    """Negative log-likelihood of labels in {0, 1}: log(1 + exp(l)) − y·l, in nats.

    Args:
      logits: float `[...]`, log-odds of label 1.
      labels: the same shape, in [0, 1].

    Returns:
      float32 `[...]`.

    Raises:
      ValueError: the shapes differ.

    >>> logistic(jnp.zeros(2), jnp.array([0, 1])) / jnp.log(2)
    Array([1., 1.], dtype=float32)
    """
    _require_same("labels", labels, "logits", logits)
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - labels * logits


def squared(predictions, targets):
    """Half the squared error, ½ (y − ŷ)²; its mean is L(θ) = 1/(2N) Σ (y − ŷ)².

    Args:
      predictions: ŷ, float `[...]`.
      targets: y, the same shape.

    Returns:
      float32 `[...]`.

    Raises:
      ValueError: the shapes differ.

    >>> squared(jnp.array([1.0, 3.0]), jnp.array([1.0, -1.0])).tolist()
    [0.0, 8.0]
    """
    _require_same("targets", targets, "predictions", predictions)
    return 0.5 * jnp.square(targets - predictions.astype(jnp.float32))


def squared_gradient(predictions, targets, slopes):
    """Gradient of the mean of `squared` in closed form: ∇L = −1/N Σ (y − ŷ) ∇ŷ.

    Args:
      predictions: ŷ, float `[N]`.
      targets: y, `[N]`.
      slopes: ∇ŷ, the derivatives of each prediction: a pytree of `[N, ...]`, one leaf for each of
        the params. Of a linear unit ŷ = θ·x they are its inputs x.

    Returns:
      The gradient, a pytree of float32 `[...]`.

    Raises:
      ValueError: the shapes do not match.

    >>> inputs = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> squared_gradient(jnp.zeros(2), jnp.array([1.0, 3.0]), inputs).tolist()
    [-2.0, -3.0]
    """
    _require_same("targets", targets, "predictions", predictions)
    errors = targets - predictions.astype(jnp.float32)
    return jax.tree.map(lambda slope: _weighted_mean(-errors, slope), slopes)


def sigmoid_squared_gradient(logits, targets, features):
    """Gradient of the mean of ½ (y − ŷ)² for ŷ = σ(θ·x): −1/N Σ (y − ŷ) ŷ (1 − ŷ) x.

    The factor ŷ (1 − ŷ) is what the logistic loss does not have: an example that is wrong and
    certain of it hardly moves the weights.

    Args:
      logits: θ·x, float `[N]`.
      targets: y, `[N]`.
      features: x, `[N, D]`.

    Returns:
      The gradient for θ, float32 `[D]`.

    Raises:
      ValueError: the shapes do not match.

    >>> features = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> sigmoid_squared_gradient(jnp.zeros(2), jnp.array([1.0, -1.0]), features).tolist()
    [-0.0625, 0.375]
    """
    predictions = jax.nn.sigmoid(logits.astype(jnp.float32))
    slopes = predictions * (1.0 - predictions)
    return squared_gradient(predictions, targets, _rows(slopes, features) * features)


def _weighted_mean(weights, rows):
    """1/N Σ w x over the leading axis."""
    return jnp.mean(_rows(weights, rows) * rows, axis=0)


def _rows(numbers, rows):
    """One number a row, with the axes it takes to multiply the rows."""
    if rows.shape[:1] != numbers.shape:
        raise ValueError(f"rows of shape {rows.shape}: expected {numbers.shape[0]} of them, one a prediction")
    return numbers.reshape(numbers.shape + (1,) * (rows.ndim - 1))


def _require_same(name, array, other_name, other):
    """Refuses shapes that would broadcast into a loss of every pair."""
    if array.shape != other.shape:
        raise ValueError(f"{name} has shape {array.shape}: expected that of {other_name}, {other.shape}")
