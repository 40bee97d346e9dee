"""Products of bfloat16 are those of wider numbers, rounded once, and so are their gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import lm
from proxlm.lm import _half_products
from tests import arrays

ROWS = _half_products.ROWS
X = jnp.asarray(arrays.normal(0, (2, ROWS, 24)), jnp.bfloat16)
W = jnp.asarray(arrays.normal(1, (2, 24, 5)), jnp.bfloat16)
WEIGHTS = jnp.asarray(arrays.normal(2, (2, ROWS, 5)), jnp.bfloat16)


def wide(x):
    return np.asarray(x, np.float64)


def same(found, expected):
    """One rounding to bfloat16 apart."""
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(wide(found), expected, rtol=2**-8, atol=2**-8 * np.abs(expected).max())


def weighted(x, kernel, weights):
    return jnp.sum((_half_products.product(x, kernel) * weights).astype(jnp.float32))


def test_a_product_and_its_gradients_are_those_of_wide_numbers():
    x, kernel, weights = X[0], W[0], WEIGHTS[0]
    same(jax.jit(_half_products.product)(x, kernel), wide(x) @ wide(kernel))
    of_x, of_kernel = jax.jit(jax.grad(weighted, (0, 1)))(x, kernel, weights)
    same(of_x, wide(weights) @ wide(kernel).T)
    same(of_kernel, wide(x).T @ wide(weights))


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_under_vmap_each_gradient_is_its_own(axes):
    pick = lambda array, axis, i: array[i] if axis == 0 else array[0]
    x, kernel = (array if axis == 0 else array[0] for array, axis in zip((X, W), axes, strict=True))
    found = jax.vmap(jax.grad(weighted, (0, 1)), (*axes, 0))(x, kernel, WEIGHTS)
    for i in range(2):
        same(found[0][i], wide(WEIGHTS[i]) @ wide(pick(W, axes[1], i)).T)
        same(found[1][i], wide(pick(X, axes[0], i)).T @ wide(WEIGHTS[i]))


def test_a_tangent_is_that_of_a_bilinear_map():
    x, kernel = X[0], W[0]
    _, tangent = jax.jvp(_half_products.product, (x, kernel), (X[1], W[1]))
    expected = wide(X[1]) @ wide(kernel) + wide(x) @ wide(W[1])
    np.testing.assert_allclose(wide(tangent), expected, atol=2**-6 * np.abs(expected).max())


def test_a_model_multiplies_only_bfloat16_in_its_layers_forwards_and_backwards():
    config = lm.ModelConfig(vocab_size=9, num_layers=1, width=24, num_heads=2, compute_dtype="bfloat16")
    params = lm.init(jax.random.key(0), config)
    tokens = jnp.arange(ROWS).reshape(4, -1) % 9
    wide_config = dataclasses.replace(config, compute_dtype="float32")
    weights = jnp.asarray(arrays.normal(3, (ROWS, 24)))
    loss = lambda params, config: jnp.sum(lm.encode(params, tokens, config) * weights)
    found = jax.grad(loss)(params, config)["blocks"]["mlp"]["down"]["kernel"]
    expected = jax.grad(loss)(params, wide_config)["blocks"]["mlp"]["down"]["kernel"]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max() + 1e-6
    text = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, config))
    assert text.count("half_product") == 7  # query, key, value, out, gate, up, down
