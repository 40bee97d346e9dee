"""Closed-form gradients against autodiff and numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import losses
from tests.arrays import normal

FEATURES, TARGETS = normal(0, (12, 3)), jnp.sign(normal(1, (12,)))


def test_half_squares_by_hand():
    np.testing.assert_array_equal(
        losses.squared(jnp.array([1.0, -1.0, 0.5]), jnp.array([3.0, -1.0, 0.0])), [2.0, 0.0, 0.125]
    )


def test_the_gradient_of_a_linear_unit_is_that_of_autodiff():
    predict = lambda params: FEATURES @ params["weights"] + params["bias"]
    loss = lambda params: jnp.mean(losses.squared(predict(params), TARGETS))
    params = {"weights": normal(2, (3,)), "bias": jnp.float32(0.3)}
    slopes = {"weights": FEATURES, "bias": jnp.ones(12)}
    found = losses.squared_gradient(predict(params), TARGETS, slopes)
    expected = jax.grad(loss)(params)
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5)


def test_slopes_of_more_axes_give_a_gradient_of_their_shape():
    slopes = normal(3, (12, 3, 2))
    found = losses.squared_gradient(jnp.zeros(12), TARGETS, slopes)
    expected = -np.einsum("n,nij->ij", TARGETS, slopes) / 12
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_sigmoid_unit_is_that_of_autodiff(variant):
    weights = normal(4, (3,))
    predict = lambda weights: jax.nn.sigmoid(FEATURES @ weights)
    loss = lambda weights: jnp.mean(losses.squared(predict(weights), TARGETS))
    found = variant(losses.sigmoid_squared_gradient)(FEATURES @ weights, TARGETS, FEATURES)
    np.testing.assert_allclose(found, jax.grad(loss)(weights), rtol=1e-5)


def test_a_saturated_sigmoid_has_a_gradient_of_zero_and_no_nan():
    logits = jnp.array([-1e4, 1e4])
    found = losses.sigmoid_squared_gradient(logits, jnp.array([1.0, -1.0]), jnp.ones((2, 1)))
    assert found.tolist() == [0.0]


def test_half_precision_is_computed_in_float32():
    predictions = jnp.full(3, 1.0, jnp.bfloat16)
    assert losses.squared(predictions, jnp.ones(3)).dtype == jnp.float32
    found = losses.squared_gradient(predictions, jnp.zeros(3), jnp.ones((3, 2), jnp.bfloat16))
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("function", [losses.squared, losses.logistic])
def test_shapes_that_would_broadcast_are_refused(function):
    with pytest.raises(ValueError, match=r"has shape \(3,\): expected that of \w+, \(3, 1\)"):
        function(jnp.zeros((3, 1)), jnp.zeros(3))


def test_rows_that_are_no_predictions_are_refused():
    with pytest.raises(ValueError, match=r"rows of shape \(2, 4\): expected 3 of them"):
        losses.squared_gradient(jnp.zeros(3), jnp.zeros(3), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"rows of shape \(2, 4\): expected 3 of them"):
        losses.sigmoid_squared_gradient(jnp.zeros(3), jnp.zeros(3), jnp.zeros((2, 4)))
