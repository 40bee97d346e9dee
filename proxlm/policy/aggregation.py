"""Masked sums, means and variances, and the weights that turn a loss per token into one number.

`masked_...` take x of any shape and a mask, bool of that shape; a `ddof` of 0 divides a variance by n, one of
1 by n - 1. The weights take a mask, bool [..., T] of the whole batch, and are float32 of its shape, 0 where
masked; `rows` is that of `sequence_sum_weights`. All raise ValueError if the mask is not boolean, shapes
differ or a setting is out of range.

How tokens are weighed is part of the objective. A weight function looks at the mask of the *whole* batch
once; a microbatch then takes its slice of the weights, so that the parts add up to the same loss and the same
gradient however the batch is cut.

Means and variances are taken about an entry of x, the largest one: if all valid entries are equal, what is
left is exactly 0 and not a rounding error, which an ε below it would blow up; and of entries that are nearly
equal the differences are those of the numbers given.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from proxlm import _validation
from proxlm.policy._finite import Number

__all__ = [
    "WEIGHTS",
    "constant_weights",
    "masked_deviation",
    "masked_mean",
    "masked_scale",
    "masked_sum",
    "masked_var",
    "select",
    "sequence_sum_weights",
    "sequence_weights",
    "token_weights",
    "weighted_sum",
    "weights",
]

Rows = str | ArrayLike


@_validation.typed
def select(x: ArrayLike, mask: ArrayLike, name: str = "x") -> jax.Array:
    """Replaces the masked entries of x by 0, whatever they hold; `name` is of x in messages.

    Selecting the *inputs* of a formula, and not only its output, keeps a NaN under the mask out of the
    gradient too: the zero cotangent of a masked slot would otherwise meet 0 · NaN = NaN on its way back.

    >>> select(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
    Array([1., 0.], dtype=float32)
    """
    _validation.boolean(mask=mask)
    _validation.same_shape("", mask=mask, **{name: x})
    (x,) = _validation.floats(x)
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def masked_sum(x: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Σ x over the mask; 0 where nothing is valid.

    >>> masked_sum(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False]))
    Array(3., dtype=float32)
    """
    return jnp.sum(select(x, mask))


def masked_mean(x: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Mean of x over the mask, Σ x / n; 0 where nothing is valid.

    >>> masked_mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False]))
    Array(1.5, dtype=float32)
    """
    return masked_sum(x, mask) / jnp.maximum(jnp.sum(mask), 1)


def masked_deviation(x: ArrayLike, mask: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
    """Deviations x - μ from the mean μ = Σ w x / Σ w over the mask: exactly 0 if all valid entries are equal.

    Args:
      weights: w ≥ 0, the shape of x, without gradient; None weighs every entry the same. If all are 0, μ is.

    Returns:
      The shape of x, 0 where masked; finite wherever x is.

    >>> masked_deviation(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    >>> masked_deviation(jnp.full(3, 0.1), jnp.ones(3, bool)).tolist()
    [0.0, 0.0, 0.0]
    """
    x, mask = select(x, mask), jnp.asarray(mask)
    weights = mask.astype(x.dtype) if weights is None else select(weights, mask, "weights")
    weights = jax.lax.stop_gradient(weights)
    unit = _unit(x)
    x = x / unit
    highest = jnp.max(jax.lax.stop_gradient(x), initial=-jnp.inf, where=mask)
    lowest = jnp.min(jax.lax.stop_gradient(x), initial=jnp.inf, where=mask)
    total = jnp.sum(weights)
    reference = jnp.where(total > 0, highest, 0.0)
    distance = jnp.where(mask, x - reference, 0.0)
    mean = jnp.sum(weights * distance) / jnp.where(total > 0, total, 1.0)
    deviation = jnp.where(mask, distance - mean, 0.0)
    # a compiler may round x in the difference other than in the maximum: equal is what is equal here
    noise = jnp.where((highest == lowest) & (total > 0), jax.lax.stop_gradient(deviation), 0.0)
    largest = jnp.finfo(x.dtype).max / unit
    return jnp.clip(deviation - noise, -largest, largest) * unit


def masked_var(x: ArrayLike, mask: ArrayLike, *, ddof: int = 0) -> jax.Array:
    """Variance of x over the mask, Σ (x - μ)² / (n - ddof); 0 where n ≤ ddof or all entries are equal.

    >>> masked_var(jnp.array([1.0, 3.0, jnp.inf]), jnp.array([True, True, False]), ddof=1)
    Array(2., dtype=float32)
    """
    unit, variance = _variance(masked_deviation(x, mask), mask, ddof)
    return jnp.square(unit) * variance


def masked_scale(
    deviation: jax.Array, mask: ArrayLike, ddof: int, epsilon: Number, inside: bool
) -> jax.Array:
    """The number that normalises deviations: σ + ε, or √(σ² + ε) with ε `inside`; its slope at σ = 0 is 0.

    >>> masked_scale(jnp.array([-1.0, 1.0]), jnp.ones(2, bool), 0, 0.5, inside=False).item()
    1.5
    """
    _validation.positive(epsilon=epsilon)
    unit, variance = _variance(deviation, mask, ddof)
    if inside:
        return unit * jnp.sqrt(variance + epsilon / unit / unit)
    varies = variance > 0
    return unit * jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0) + epsilon


def _variance(deviation, mask, ddof):
    """(u, v) with variance u² v: u is 1 unless the squares would overflow."""
    _validation.integer(0, ddof=ddof)
    deviation = select(deviation, mask, "deviation")
    unit = _unit(deviation)
    return unit, masked_sum(jnp.square(deviation / unit), mask) / jnp.maximum(jnp.sum(mask) - ddof, 1)


def _unit(x):
    """A power of two, which rounds nothing, where sums or squares of x could overflow; otherwise 1."""
    return jnp.where(jnp.max(jnp.abs(jax.lax.stop_gradient(x)), initial=0.0) > 1e15, 2.0**80, 1.0)


def token_weights(mask: ArrayLike, total: Number | None = None) -> jax.Array:
    """Weights that count every token the same, w = 1/N with N the valid tokens of the batch.

    Args:
      total: N > 0, where the mask is a part of the batch; 1 sums. None counts the mask.

    Source: the token mean of PPO as in CleanRL and TRL; DAPO (Yu et al. 2025) returns to it. N is
    verl's `batch_num_tokens` and TRL's `num_items_in_batch`; verl's "token-sum" has N = 1.

    >>> token_weights(jnp.array([[True, True, True], [True, False, False]])).tolist()
    [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
    """
    _validation.positive(total=total)
    valid = select(jnp.ones(()), mask)
    return valid / (jnp.maximum(jnp.sum(valid), 1) if total is None else total)


def sequence_weights(mask: ArrayLike, rows: Rows = "valid") -> jax.Array:
    """Weights that count every sequence the same, w = 1/(B · n_b): a token of a long one counts less.

    Source: GRPO (Shao et al. 2024); verl's "seq-mean-token-mean", TRL's "grpo" with rows="all".

    >>> sequence_weights(jnp.array([[True, True], [True, False], [False, False]])).tolist()
    [[0.25, 0.25], [0.5, 0.0], [0.0, 0.0]]
    """
    lengths = jnp.sum(select(jnp.ones(()), mask), axis=-1, keepdims=True)
    return sequence_sum_weights(mask, rows) / jnp.maximum(lengths, 1)


def sequence_sum_weights(mask: ArrayLike, rows: Rows = "valid") -> jax.Array:
    """Weights of the mean over sequences of the sum over tokens, w = 1/B.

    Args:
      rows: "valid" counts in B the sequences with a valid token (verl), "all" every one (TRL); or B itself,
        a number > 0, where the mask is a part of the batch (verl's `global_batch_size`).

    Source: the policy gradient of a whole sequence; LUSPO with a sequence's ratio; verl's
    "seq-mean-token-sum".

    >>> sequence_sum_weights(jnp.array([[True, True], [False, True]])).tolist()
    [[0.5, 0.5], [0.0, 0.5]]
    """
    if isinstance(rows, str) or rows is None:
        _validation.one_of(("valid", "all"), rows=rows)
        counted = jnp.any(mask, axis=-1) if rows == "valid" else jnp.ones(jnp.shape(mask)[:-1])
        rows = jnp.maximum(jnp.sum(counted), 1)
    _validation.positive(rows=rows)
    return select(jnp.ones(()), mask) / rows


def constant_weights(mask: ArrayLike, length: Number | None = None, rows: Rows = "valid") -> jax.Array:
    """Weights of the sum over tokens divided by one constant, w = 1/(B · length): no bias by length.

    Args:
      length: tokens, a number > 0; None takes T, the padded length.

    Source: Dr. GRPO (Liu et al. 2025); TRL's "dr_grpo" with rows="all", verl's
    "seq-mean-token-sum-norm".

    >>> constant_weights(jnp.array([[True, True], [True, False]]), length=4.0).tolist()
    [[0.125, 0.125], [0.125, 0.0]]
    """
    _validation.positive(length=length)
    return sequence_sum_weights(mask, rows) / (jnp.shape(mask)[-1] if length is None else length)


WEIGHTS: dict[str, Callable[..., jax.Array]] = {
    "token": token_weights,
    "sequence": sequence_weights,
    "sequence_sum": sequence_sum_weights,
    "constant": constant_weights,
}


def weights(mask: ArrayLike, kind: str | Callable[..., jax.Array] = "token") -> jax.Array:
    """The weights of a batch by name, one of `WEIGHTS`, or by a function of the mask.

    Args:
      kind: "token", "sequence", "sequence_sum", "constant", or (mask) -> weights.

    Returns:
      float32 weights of the mask's shape; the loss is `weighted_sum(x, weights)`.

    >>> weights(jnp.array([[True, False], [True, True]]), "sequence").tolist()
    [[0.5, 0.0], [0.25, 0.25]]
    """
    if callable(kind):
        return kind(mask)
    _validation.one_of(tuple(WEIGHTS), kind=kind)
    return WEIGHTS[kind](mask)


def weighted_sum(x: ArrayLike, weights: jax.Array) -> jax.Array:
    """Σ w x over the slots whose weight is not 0; x may be NaN elsewhere.

    >>> weighted_sum(jnp.array([4.0, jnp.nan]), jnp.array([0.5, 0.0]))
    Array(2., dtype=float32)
    """
    return jnp.sum(select(x, weights != 0) * weights)
