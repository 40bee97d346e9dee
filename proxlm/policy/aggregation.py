"""From one value per token to one number: masked sums and the weights of a batch.

How tokens are weighed is part of the objective. A weight function looks at the mask of the *whole*
batch once; a microbatch then takes its slice of the weights, so however the batch is cut, the parts
add up to the same loss and the same gradient.
"""

import jax
import jax.numpy as jnp

from proxlm.policy import _validation

Rows = str | jax.typing.ArrayLike


def select(x: jax.typing.ArrayLike, mask: jax.typing.ArrayLike, name: str = "x") -> jax.Array:
    """Keeps x where the mask is True and puts 0 elsewhere, NaN or not.

    Selecting the *inputs* of a formula, and not only its output, is what keeps a NaN under the mask
    out of the gradient too: later, the zero cotangent of a masked slot would meet 0 · NaN = NaN.

    Args:
      x: array of any shape, or a scalar.
      mask: bool, the shape of x.
      name: what to call x in an error.

    Returns:
      An array of the mask's shape, float32 (or float64 if x is).

    Raises:
      ValueError: if the mask is not boolean or the shapes differ.

    >>> select(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
    Array([1., 0.], dtype=float32)
    """
    _validation.boolean(mask=mask)
    _validation.same_shape(mask=mask, **{name: x})
    x = jnp.asarray(x, jnp.result_type(x, jnp.float32))
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def masked_sum(x: jax.typing.ArrayLike, mask: jax.typing.ArrayLike) -> jax.Array:
    """Σ x over the mask; 0 where nothing is valid.

    Args:
      x: array of any shape.
      mask: bool, the shape of x.

    Returns:
      A scalar.

    Raises:
      ValueError: if the mask is not boolean or the shapes differ.

    >>> masked_sum(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False]))
    Array(3., dtype=float32)
    """
    return jnp.sum(select(x, mask))


def masked_mean(x: jax.typing.ArrayLike, mask: jax.typing.ArrayLike) -> jax.Array:
    """Mean of x over the mask, Σ x / n; 0 where nothing is valid.

    Args:
      x: array of any shape.
      mask: bool, the shape of x.

    Returns:
      A scalar.

    Raises:
      ValueError: if the mask is not boolean or the shapes differ.

    >>> masked_mean(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False]))
    Array(1.5, dtype=float32)
    """
    return masked_sum(x, mask) / jnp.maximum(jnp.sum(mask), 1)


def masked_var(x: jax.typing.ArrayLike, mask: jax.typing.ArrayLike, *, ddof: int = 0) -> jax.Array:
    """Variance of x over the mask, Σ (x - μ)² / (n - ddof); 0 where n ≤ ddof.

    Args:
      x: array of any shape.
      mask: bool, the shape of x.
      ddof: 0 divides by n, 1 by n - 1.

    Returns:
      A scalar.

    Raises:
      ValueError: if the mask is not boolean, the shapes differ, or ddof is negative.

    >>> masked_var(jnp.array([1.0, 3.0, jnp.inf]), jnp.array([True, True, False]), ddof=1)
    Array(2., dtype=float32)
    """
    _validation.at_least(0, ddof=ddof)
    x = select(x, mask)
    squares = jnp.square(x - masked_mean(x, mask))
    return masked_sum(squares, mask) / jnp.maximum(jnp.sum(mask) - ddof, 1)


def token_weights(mask: jax.typing.ArrayLike, total: float | None = None) -> jax.Array:
    """Every token counts the same: w = 1/N, N the valid tokens of the batch.

    Args:
      mask: bool [..., T].
      total: N, above 0, where the mask is a part of the batch; 1 sums. None counts the mask.

    Returns:
      float32 weights of the mask's shape, 0 where masked, that sum to 1.

    Raises:
      ValueError: if the mask is not boolean or N not positive.

    Source: the token mean of PPO as in CleanRL and TRL; DAPO (Yu et al. 2025) returns to it. N is
    verl's `batch_num_tokens` and TRL's `num_items_in_batch`; verl's "token-sum" has N = 1.

    >>> token_weights(jnp.array([[True, True, True], [True, False, False]])).tolist()
    [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
    """
    _validation.positive(total=total)
    valid = select(jnp.ones(()), mask)
    return valid / (jnp.maximum(jnp.sum(valid), 1) if total is None else total)


def sequence_weights(mask: jax.typing.ArrayLike, rows: Rows = "valid") -> jax.Array:
    """Every sequence counts the same: w = 1/(B · n_b), so a token of a long answer counts less.

    Args:
      mask: bool [..., T].
      rows: as in `sequence_sum_weights`.

    Returns:
      float32 weights of the mask's shape, 0 where masked, that sum to 1.

    Raises:
      ValueError: if the mask is not boolean or `rows` unknown.

    Source: GRPO (Shao et al. 2024); verl's "seq-mean-token-mean", TRL's "grpo" with rows="all".

    >>> sequence_weights(jnp.array([[True, True], [True, False], [False, False]])).tolist()
    [[0.25, 0.25], [0.5, 0.0], [0.0, 0.0]]
    """
    lengths = jnp.sum(select(jnp.ones(()), mask), axis=-1, keepdims=True)
    return sequence_sum_weights(mask, rows) / jnp.maximum(lengths, 1)


def sequence_sum_weights(mask: jax.typing.ArrayLike, rows: Rows = "valid") -> jax.Array:
    """The mean over sequences of the sum over tokens: w = 1/B.

    Args:
      mask: bool [..., T].
      rows: "valid" counts in B the sequences with a valid token (verl), "all" every one (TRL); or
        B itself, above 0, where the mask is a part of the batch (verl's `global_batch_size`).

    Returns:
      float32 weights of the mask's shape, 0 where masked.

    Raises:
      ValueError: if the mask is not boolean, the name unknown or B not positive.

    Source: the policy gradient of a whole sequence, and with a sequence's ratio the length-unbiased
    LUSPO; verl's "seq-mean-token-sum".

    >>> sequence_sum_weights(jnp.array([[True, True], [False, True]])).tolist()
    [[0.5, 0.5], [0.0, 0.5]]
    """
    if isinstance(rows, str):
        _validation.one_of(("valid", "all"), rows=rows)
        counted = jnp.any(mask, axis=-1) if rows == "valid" else jnp.ones(jnp.shape(mask)[:-1])
        rows = jnp.maximum(jnp.sum(counted), 1)
    _validation.positive(rows=rows)
    return select(jnp.ones(()), mask) / rows


def constant_weights(
    mask: jax.typing.ArrayLike, length: float | None = None, rows: Rows = "valid"
) -> jax.Array:
    """The sum over tokens divided by one constant: w = 1/(B · length), free of length bias.

    Args:
      mask: bool [..., T].
      length: tokens; None takes T, the padded length.
      rows: as in `sequence_sum_weights`.

    Returns:
      float32 weights of the mask's shape, 0 where masked.

    Raises:
      ValueError: if the mask is not boolean or the length not positive.

    Source: Dr. GRPO (Liu et al. 2025); TRL's "dr_grpo" with rows="all", verl's
    "seq-mean-token-sum-norm".

    >>> constant_weights(jnp.array([[True, True], [True, False]]), length=4.0).tolist()
    [[0.125, 0.125], [0.125, 0.0]]
    """
    _validation.positive(length=length)
    return sequence_sum_weights(mask, rows) / (jnp.shape(mask)[-1] if length is None else length)


WEIGHTS = {
    "token": token_weights,
    "sequence": sequence_weights,
    "sequence_sum": sequence_sum_weights,
    "constant": constant_weights,
}


def weights(mask: jax.typing.ArrayLike, kind: str = "token") -> jax.Array:
    """The weights of a batch by name, one of `WEIGHTS`, or by a function of the mask.

    Args:
      mask: bool [..., T], of the whole batch; microbatches take slices of the result.
      kind: "token", "sequence", "sequence_sum", "constant", or (mask) -> weights.

    Returns:
      float32 weights of the mask's shape; the loss is `weighted_sum(x, weights)`.

    Raises:
      ValueError: if the mask is not boolean or the kind unknown.

    >>> weights(jnp.array([[True, False], [True, True]]), "sequence").tolist()
    [[0.5, 0.0], [0.25, 0.25]]
    """
    if callable(kind):
        return kind(mask)
    _validation.one_of(tuple(WEIGHTS), kind=kind)
    return WEIGHTS[kind](mask)


def weighted_sum(x: jax.typing.ArrayLike, weights: jax.Array) -> jax.Array:
    """Σ w · x over the slots whose weight is not 0, so that x may be NaN elsewhere.

    Args:
      x: one value per token, any shape.
      weights: the shape of x.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes differ.

    >>> weighted_sum(jnp.array([4.0, jnp.nan]), jnp.array([0.5, 0.0]))
    Array(2., dtype=float32)
    """
    return jnp.sum(select(x, weights != 0) * weights)
