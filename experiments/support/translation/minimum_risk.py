"""Minimum risk training (Shen et al. 2016): the expected cost of a few candidates, made small.

    R(θ) = Σ_y Q(y)·cost(y),   Q(y) ∝ p_θ(y | x)^α over the distinct candidates y of a source x

Where policy gradients weigh the log-probability of each sample by its advantage, here the
candidates share one probability mass, so that a better one gains what a worse one loses.
"""

import jax
import jax.numpy as jnp


def risk(log_probs: jax.Array, costs: jax.Array, distinct: jax.Array, sharpness: float):
    """Expected cost under the renormalised weights p^α of the distinct candidates, all `[K]`.

    >>> half = jnp.log(jnp.array([0.5, 0.125, 0.5]))
    >>> first_two = jnp.array([True, True, False])
    >>> round(float(risk(half, jnp.array([0.0, 1.0, 9.0]), first_two, 0.5)), 4)
    0.3333
    """
    weights = jax.nn.softmax(jnp.where(distinct, sharpness * log_probs, -jnp.inf))
    return jnp.sum(jnp.where(distinct, weights * costs, 0.0))


def first_of_its_kind(tokens: jax.Array) -> jax.Array:
    """Which candidates `[K, R]` do not repeat an earlier one; bool `[K]`.

    >>> first_of_its_kind(jnp.array([[1, 2], [1, 3], [1, 2]])).tolist()
    [True, True, False]
    """
    same = jnp.all(tokens[:, None] == tokens[None], axis=2)
    return jnp.sum(jnp.tril(same), axis=1) == 1
