import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.policy import aggregation
from tests import arrays
from tests.policy import vectors_on_disk
from tests.policy.table_actor import compiled

MASK = jnp.array([[True, True, True, True], [True, False, True, False], [False] * 4])
EMPTY = jnp.zeros((2, 3), bool)


@functools.cache
def all_weights():
    """The weights of every kind, in one program."""
    return compiled(lambda mask: {kind: fn(mask) for kind, fn in aggregation.WEIGHTS.items()})


def test_weights_reproduce_verls_aggregation():
    given, verl = vectors_on_disk.inputs(), vectors_on_disk.load("verl")["aggregation"]
    for kind, weights in all_weights()(given.mask).items():
        loss = aggregation.weighted_sum(given.advantages, weights)
        np.testing.assert_allclose(loss, verl[kind], rtol=1e-5, err_msg=kind)


def test_weights_by_hand():
    np.testing.assert_allclose(aggregation.token_weights(MASK) * 6, MASK)
    per_token = [[1 / 8] * 4, [1 / 4, 0, 1 / 4, 0], [0] * 4]
    np.testing.assert_allclose(aggregation.sequence_weights(MASK), per_token)
    np.testing.assert_allclose(aggregation.sequence_sum_weights(MASK) * 2, MASK)
    np.testing.assert_allclose(aggregation.constant_weights(MASK) * 2 * 4, MASK)
    np.testing.assert_allclose(aggregation.constant_weights(MASK, length=10) * 2 * 10, MASK)


def test_the_denominator_may_be_that_of_a_larger_batch():
    np.testing.assert_allclose(aggregation.token_weights(MASK, 24.0) * 24, MASK)
    np.testing.assert_allclose(aggregation.sequence_sum_weights(MASK, 8.0) * 8, MASK)
    per_token = [[1 / 4] * 4, [1 / 2, 0, 1 / 2, 0], [0] * 4]
    np.testing.assert_allclose(aggregation.sequence_weights(MASK, 8.0) * 8, per_token)
    np.testing.assert_allclose(aggregation.constant_weights(MASK, 5.0, 8.0) * 5 * 8, MASK)
    for fn in (aggregation.token_weights, aggregation.sequence_weights):
        with pytest.raises(ValueError, match=r"must be a number > 0, got 0\.0"):
            fn(MASK, 0.0)


def test_an_empty_row_leaves_numerator_and_denominator():
    x, without = arrays.normal(0, (3, 4)), all_weights()(MASK[:2])
    for kind, weights in all_weights()(MASK).items():
        whole = aggregation.weighted_sum(x, weights)
        np.testing.assert_allclose(whole, aggregation.weighted_sum(x[:2], without[kind]), atol=1e-6)


def test_microbatches_add_up_to_the_batch():
    x, scale = arrays.normal(0, (6, 7)), jnp.float32(1.3)

    def loss(scale, x, weights):
        return aggregation.weighted_sum(jnp.tanh(scale * x), weights)

    run = compiled(jax.value_and_grad(loss))
    for kind, weights in all_weights()(vectors_on_disk.inputs().mask).items():
        parts = [run(scale, x[cut], weights[cut]) for cut in (slice(0, 3), slice(3, 6))]
        whole = run(scale, x, weights)
        np.testing.assert_allclose(np.sum(parts, axis=0), np.array(whole), atol=1e-6, err_msg=kind)


def test_a_constant_loss_has_the_mean_of_that_constant():
    ones = jnp.ones(MASK.shape)
    for kind in ("token", "sequence"):
        np.testing.assert_allclose(
            aggregation.weighted_sum(ones, aggregation.weights(MASK, kind)), 1.0, rtol=1e-6
        )


def test_nothing_valid_weighs_nothing():
    for weights in all_weights()(EMPTY).values():
        assert aggregation.weighted_sum(jnp.full(EMPTY.shape, jnp.nan), weights) == 0.0
        assert not jnp.any(weights)


def test_poison_under_the_mask_changes_no_bit_of_value_or_gradient():
    x = arrays.normal(1, MASK.shape)
    reductions = (aggregation.masked_sum, aggregation.masked_mean, aggregation.masked_var)
    of = lambda reduce: jax.value_and_grad(lambda x: jnp.square(reduce(x, MASK)))
    run = compiled(lambda x: [of(reduce)(x) for reduce in reductions])
    clean = jax.tree.leaves(run(jnp.where(MASK, x, 0.25)))
    for poison in (jnp.nan, jnp.inf, -jnp.inf):
        for a, b in zip(clean, jax.tree.leaves(run(jnp.where(MASK, x, poison))), strict=True):
            np.testing.assert_array_equal(a, b)


def test_selected_inputs_keep_nan_out_of_a_gradient_that_passes_through_exp():
    x = jnp.array([0.0, jnp.nan])
    mask = jnp.array([True, False])
    select = aggregation.select
    late = jax.grad(lambda x: aggregation.masked_sum(jnp.exp(x), mask))(x)
    early = jax.grad(lambda x: aggregation.masked_sum(jnp.exp(select(x, mask)), mask))(x)
    assert jnp.isnan(late[1])
    np.testing.assert_array_equal(early, [1.0, 0.0])


@pytest.mark.parametrize("ddof", [0, 1])
def test_masked_mean_and_variance_are_numpys_over_the_valid(ddof, variant):
    x = arrays.normal(2, MASK.shape) + 3.0
    valid = np.asarray(x, np.float64)[np.asarray(MASK)]
    mean = variant(aggregation.masked_mean)(x, MASK)
    var = variant(lambda x, mask: aggregation.masked_var(x, mask, ddof=ddof))(x, MASK)
    np.testing.assert_allclose(mean, valid.mean(), rtol=1e-6)
    np.testing.assert_allclose(var, valid.var(ddof=ddof), rtol=1e-5)


def test_masked_variance_with_ddof_1_is_tunixs():
    given = vectors_on_disk.inputs()
    var = aggregation.masked_var(given.advantages, given.mask, ddof=1)
    np.testing.assert_allclose(var, vectors_on_disk.load("tunix")["masked_var"], rtol=1e-5)


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_valid_value_has_no_variance(ddof):
    mask = jnp.array([True, False])
    assert aggregation.masked_var(jnp.array([7.0, jnp.nan]), mask, ddof=ddof) == 0.0
    assert aggregation.masked_var(jnp.array([7.0, jnp.nan]), ~mask & False, ddof=ddof) == 0.0


def test_sums_of_half_precision_are_taken_in_float32():
    x = jnp.ones((4096,), jnp.bfloat16)
    total = aggregation.masked_sum(x, jnp.ones(x.shape, bool))
    assert total.dtype == jnp.float32 and total == 4096.0


def test_wrong_masks_are_named():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"mask\.dtype must be bool, got dtype\('float32'\)"):
        aggregation.masked_mean(x, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"x\.shape must be .*, got \(2, 3\)"):
        aggregation.masked_mean(x, jnp.ones((3,), bool))
    with pytest.raises(ValueError, match=r"kind must be one of 'token', 'sequence'.*, got 'mean'"):
        aggregation.weights(x == 0, "mean")
    with pytest.raises(ValueError, match=r"length must be .*, got 0"):
        aggregation.constant_weights(x == 0, length=0)
