"""The supervised step against numbers by hand, its scan and microbatches against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import training
from tests.arrays import normal


def quadratic(params, batch):
    """L(w) = mean over rows of ½‖w - row‖², whose gradient is w - mean(rows)."""
    gaps = params["w"][None] - batch
    return jnp.mean(jnp.sum(jnp.square(gaps), axis=1)) / 2


def regression(params, batch):
    features, targets = batch
    hidden = jnp.tanh(features @ params["in"])
    return jnp.mean(jnp.square(hidden @ params["out"] - targets))


def regression_problem():
    params = {"in": normal(0, (3, 4)), "out": normal(1, (4,))}
    return params, (normal(2, (12, 3)), normal(3, (12,)))


def test_one_sgd_step_on_a_quadratic_has_the_numbers_by_hand(variant):
    optimizer = optax.sgd(0.5)
    step = variant(training.make_step(quadratic, optimizer))
    state = training.init({"w": jnp.array([4.0, 2.0])}, optimizer)
    state, metrics = step(state, jnp.array([[0.0, 0.0], [2.0, -4.0]]))
    # The rows' mean is (1, -2), so ∇L = (3, 4) with norm 5, and L = (20/2 + 40/2) / 2 = 15.
    np.testing.assert_array_equal(state.params["w"], [2.5, 0.0])
    assert metrics.loss == 15.0
    assert metrics.grad_norm == 5.0
    assert metrics.aux == {}
    assert state.step == 1 and state.step.dtype == jnp.int32


def test_gradient_norm_is_taken_before_the_chain():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    state = training.init({"w": jnp.array([3.0, 4.0])}, optimizer)
    state, metrics = training.make_step(quadratic, optimizer)(state, jnp.zeros((1, 2)))
    assert metrics.grad_norm == 5.0
    np.testing.assert_allclose(state.params["w"], [2.4, 3.2], rtol=1e-6)


def test_step_is_a_scan_body_that_equals_the_loop():
    optimizer = optax.adam(0.1)
    step = training.make_step(quadratic, optimizer)
    batches = normal(0, (5, 4, 3))
    first = training.init({"w": normal(1, (3,))}, optimizer)
    scanned, metrics = jax.jit(lambda state: jax.lax.scan(step, state, batches))(first)
    looped, losses = first, []
    for batch in batches:
        looped, seen = step(looped, batch)
        losses.append(seen.loss)
    np.testing.assert_allclose(scanned.params["w"], looped.params["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, jnp.stack(losses), rtol=1e-6)
    assert scanned.step == 5


def test_steps_of_many_seeds_run_under_vmap():
    optimizer = optax.sgd(0.1)
    step = training.make_step(quadratic, optimizer)
    starts, batch = normal(0, (3, 2)), normal(1, (4, 2))
    together = jax.vmap(lambda w: step(training.init({"w": w}, optimizer), batch)[0].params["w"])(starts)
    alone = [step(training.init({"w": w}, optimizer), batch)[0].params["w"] for w in starts]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-6)


def test_aux_reaches_the_metrics():
    loss_fn = lambda params, batch: (quadratic(params, batch), {"rows": jnp.sum(batch)})
    optimizer = optax.sgd(0.1)
    step = training.make_step(loss_fn, optimizer, has_aux=True)
    _, metrics = step(training.init({"w": jnp.zeros(2)}, optimizer), jnp.ones((3, 2)))
    assert metrics.aux["rows"] == 6.0


@pytest.mark.parametrize("microbatches", [2, 3, 12])
def test_microbatches_equal_the_whole_batch(variant, microbatches):
    params, batch = regression_problem()
    optimizer = optax.sgd(0.3)
    state = training.init(params, optimizer)
    whole, expected = training.make_step(regression, optimizer)(state, batch)
    step = variant(training.make_step(regression, optimizer, microbatches=microbatches))
    pieces, metrics = step(state, batch)
    for name in params:
        np.testing.assert_allclose(pieces.params[name], whole.params[name], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, expected.grad_norm, rtol=1e-6)


def test_aux_of_microbatches_is_their_mean():
    loss_fn = lambda params, batch: (quadratic(params, batch), {"total": jnp.sum(batch)})
    optimizer = optax.sgd(0.1)
    step = training.make_step(loss_fn, optimizer, has_aux=True, microbatches=2)
    _, metrics = step(training.init({"w": jnp.zeros(1)}, optimizer), jnp.array([[1.0], [2], [3], [4]]))
    assert metrics.aux["total"] == (3 + 7) / 2


def test_bfloat16_gradients_add_up_in_float32():
    # Each of 512 pieces adds 1 to the sum; in bfloat16 that sum would stop growing at 256.
    optimizer = optax.sgd(1.0)
    loss_fn = lambda w, batch: jnp.sum(w) * jnp.mean(batch)
    step = training.make_step(loss_fn, optimizer, microbatches=512)
    state, _ = step(training.init(jnp.zeros(1, jnp.bfloat16), optimizer), jnp.ones((512, 1)))
    assert state.params.dtype == jnp.bfloat16
    assert state.params[0] == -1.0


def test_the_loss_reaches_links_that_ask_for_the_value():
    def update(updates, state, params=None, *, value, **extra_args):
        return updates, value

    read = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    optimizer = optax.chain(read, optax.sgd(0.1))
    state = training.init({"w": jnp.array([3.0, 4.0])}, optimizer)
    state, _ = training.make_step(quadratic, optimizer)(state, jnp.zeros((1, 2)))
    assert state.opt_state[0] == 12.5


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.apply_if_finite(optax.adam(0.1), 2),
        optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    ],
    ids=["apply_if_finite", "multi_steps", "inject_hyperparams", "plateau"],
)
def test_optax_wrappers_run_in_a_scan(optimizer):
    state = training.init({"w": jnp.array([3.0, 4.0])}, optimizer)
    step = training.make_step(quadratic, optimizer)
    state, metrics = jax.lax.scan(step, state, jnp.zeros((6, 1, 2)))
    assert metrics.loss[-1] < metrics.loss[0]


def test_a_batch_that_cannot_be_cut_is_named():
    params, (features, targets) = regression_problem()
    optimizer = optax.sgd(0.1)
    step = training.make_step(regression, optimizer, microbatches=5)
    with pytest.raises(
        ValueError, match=r"microbatches must be a divisor of the rows of 0, of shape \(12, 3\), got 5"
    ):
        step(training.init(params, optimizer), (features, targets))


def test_a_batch_without_rows_is_refused():
    optimizer = optax.sgd(0.1)
    step = training.make_step(quadratic, optimizer)
    with pytest.raises(ValueError, match=r"batch must be an array with rows, got \(0, 2\)"):
        step(training.init({"w": jnp.zeros(2)}, optimizer), jnp.zeros((0, 2)))


@pytest.mark.parametrize("microbatches", [0, -1, 2.0, None, True])
def test_microbatches_must_be_a_positive_integer(microbatches):
    with pytest.raises(ValueError, match="microbatches"):
        training.make_step(quadratic, optax.sgd(0.1), microbatches=microbatches)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA fuses on a CPU")
def test_gradient_norm_takes_no_memory():
    """The squares are not written out, as they are where XLA shares them with Adam's second moment."""
    optimizer, params = optax.adam(1e-3), jnp.zeros((512, 512))
    step = training.make_step(lambda params, batch: jnp.mean(jnp.square(batch @ params)), optimizer)
    state = training.init(params, optimizer)
    compiled = jax.jit(step, donate_argnums=0).lower(state, jnp.zeros((8, 512))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * params.nbytes  # one gradient
