"""The next-token loss by hand and against Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import losses
from tests.arrays import normal


def test_next_token_is_the_cross_entropy_of_optax(variant):
    logits, targets = normal(0, (2, 3, 5)), jnp.array([[0, 4, 2], [1, 1, 3]])
    expected = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(variant(losses.next_token)(logits, targets), expected, rtol=1e-6)


def test_half_precision_is_computed_in_float32():
    found = losses.next_token(jnp.zeros((2, 4), jnp.bfloat16), jnp.array([0, 3]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.log(4.0), rtol=1e-6)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"targets\.shape must be \(3,\), .*, got \(3, 1\)"):
        losses.next_token(jnp.zeros((3, 5)), jnp.zeros((3, 1), int))


def test_a_label_of_minus_100_is_not_learnt_and_other_ids_outside_the_vocabulary_are_refused_or_nan():
    logits, targets = normal(0, (3, 5)), jnp.array([2, -100, 4])
    total = lambda logits, targets: jnp.sum(losses.next_token(logits, targets))
    value, gradient = jax.jit(jax.value_and_grad(total))(logits, targets)
    each = losses.next_token(logits[::2], targets[::2])
    np.testing.assert_allclose(value, each.sum(), rtol=1e-6)
    assert not np.any(gradient[1]) and np.all(np.any(np.asarray(gradient)[::2] != 0, axis=1))
    for outside in (-1, 5, 99):
        with pytest.raises(
            ValueError, match=rf"next_token: targets must be ids in \[0, 5\), or -100, got {outside}"
        ):
            losses.next_token(logits, targets.at[0].set(outside))
        found = jax.jit(losses.next_token)(logits, targets.at[0].set(outside))
        np.testing.assert_array_equal(np.isnan(found), [True, False, False])


def test_known_targets_may_be_closed_over_inside_jit():
    targets = jnp.array([0, 3])
    loss = jax.jit(lambda logits: losses.next_token(logits, targets))(jnp.zeros((2, 4)))
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
    with pytest.raises(ValueError, match=r"ids in \[0, 3\), or -100, got 3"):
        jax.jit(lambda logits: losses.next_token(logits, targets))(jnp.zeros((2, 3)))
