"""The next-token loss by hand and against Optax."""

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
    with pytest.raises(ValueError, match=r"targets has shape \(3, 1\)"):
        losses.next_token(jnp.zeros((3, 5)), jnp.zeros((3, 1), int))
