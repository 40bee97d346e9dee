"""The fit against closed forms: when it stops, why, what it returns, alone and in lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import proxlm
from proxlm import penalties, training

GOAL = jnp.array([4.0, -2.0])


def quadratic(params, goal):
    """½‖w − goal‖², so that gradient descent multiplies the distance by 1 − rate."""
    return 0.5 * jnp.sum(jnp.square(params - goal))


def fit(optimizer=None, batches=GOAL, params=None, **options):
    optimizer = optax.sgd(0.5) if optimizer is None else optimizer
    params = jnp.zeros(2) if params is None else params
    return training.fit(quadratic, params, optimizer, batches, **{"steps": 12, **options})


def test_a_budget_is_used_up_and_the_history_has_the_numbers_by_hand():
    found = fit(steps=4, every=2)
    # The distance halves from (4, -2): losses 10, 2.5, 0.625, 0.15625.
    np.testing.assert_array_equal(found.params, [3.75, -1.875])
    np.testing.assert_array_equal(found.history.loss, [6.25, 0.390625])
    assert found.loss == 0.390625
    assert found.steps == found.best_step == 4
    assert found.status == 1 and not found.converged
    assert "allow more" in found.reason
    assert np.isnan(found.change) and np.isnan(found.held_out_loss)


def test_it_converges_at_the_first_check_whose_steps_all_stay_within_the_tolerance(variant):
    # The first weight moves by 2, 1, 0.5, 0.25 in step 4, and so on.
    solve = variant(lambda start: fit(params=start, tolerance=0.25))
    found = solve(jnp.zeros(2))
    assert found.converged and found.steps == 4
    assert found.change == 0.25
    # Of steps 3 and 4 one moves too far.
    assert fit(tolerance=0.25, every=2).steps == 6
    assert np.isnan(found.history.loss[4:]).all() and not np.isnan(found.history.loss[:4]).any()


def test_a_proximal_chain_converges_where_the_gradient_does_not_vanish():
    optimizer = optax.chain(optax.sgd(0.5), proxlm.apply_prox(penalties.l1(2.5), 0.5))
    found = fit(optimizer, steps=100, tolerance=1e-6)
    assert found.converged
    np.testing.assert_allclose(found.params, [1.5, 0.0], atol=1e-5)
    assert found.params[1] == 0.0


def test_lanes_stop_each_at_its_own_step_with_the_result_of_a_fit_alone():
    rates = jnp.array([0.5, 0.75, 0.1])
    solve = lambda rate: fit(optax.sgd(rate), tolerance=0.25)
    together = jax.jit(jax.vmap(solve))(rates)
    # 4·rate·(1 - rate)^(k-1) ≤ 1/4 from k on.
    assert together.steps.tolist() == [4, 3, 6]
    for i, rate in enumerate(rates):
        alone = solve(rate)
        assert together.steps[i] == alone.steps and together.status[i] == alone.status
        np.testing.assert_allclose(together.params[i], alone.params, rtol=1e-6)
        np.testing.assert_allclose(together.history.loss[i], alone.history.loss, rtol=1e-6)


def test_the_best_params_by_the_held_out_loss_come_back_and_patience_ends_the_fit():
    # On the way 0, 2, 3, 3.5, ... the held-out loss |w - 2.9| is least after step 2.
    held_out = lambda params: jnp.abs(params[0] - 2.9)
    found = fit(held_out=held_out, patience=3)
    assert found.params[0] == 3.0 and found.best_step == 2
    assert found.held_out_loss == pytest.approx(0.1, rel=1e-5)
    assert found.steps == 5 and "held-out" in found.reason
    assert found.state.params[0] == 4 - 4 / 2**5
    # Without patience all steps are taken, and the best is the same.
    whole = fit(held_out=held_out)
    assert whole.steps == 12 and whole.params[0] == 3.0 and whole.status == 1
    np.testing.assert_allclose(whole.history.held_out_loss[:3], [0.9, 0.1, 0.6], rtol=1e-5)


def test_an_improvement_within_the_margin_is_none():
    # Of the held-out losses 2, 1, 0.5, 0.25, ... the third is not 0.6 below the second.
    held_out = lambda params: 4 - params[0]
    found = fit(held_out=held_out, patience=2, margin=0.6)
    assert found.best_step == 4 and found.steps == 6
    assert fit(held_out=held_out, patience=2).steps == 12
    with pytest.raises(ValueError, match="margin must be 0 without held_out"):
        fit(margin=0.6)
    # Nor is one of the margin exactly, and with a margin of 0 the same loss again.
    best = training.update_best_params(training.init_best_params(GOAL), GOAL, 1.0, 1)
    assert training.update_best_params(best, GOAL, 0.5, 2, margin=0.5).waited == 1
    assert training.update_best_params(best, GOAL, 1.0, 2).waited == 1


def test_a_fit_that_leaves_the_numbers_stops_and_says_so():
    found = fit(optax.sgd(1e30), tolerance=1e-6)
    assert found.status == 2 and "not finite" in found.reason
    assert found.steps < 12 and not found.converged
    assert not np.isfinite(found.state.params).all() and np.isfinite(found.params).all()
    # A fixed number of steps runs on, and says the same.
    found = fit(optax.sgd(1e30))
    assert found.status == 2 and np.isfinite(found.params).all()


def test_a_loss_that_is_nan_is_no_result_although_the_params_are_finite():
    loss_fn = lambda params, _: jnp.sum(params) * 0.0 + jnp.nan
    found = training.fit(loss_fn, jnp.ones(2), optax.set_to_zero(), (), steps=3, tolerance=1.0)
    assert found.status == 2 and not found.converged and found.steps == 1


def test_the_held_out_loss_keeps_the_params_of_before_the_divergence():
    found = fit(optax.sgd(1e30), held_out=lambda params: jnp.sum(jnp.abs(params)), patience=9)
    assert found.status == 2
    assert np.isfinite(found.params).all()


def test_each_step_sees_the_batch_of_its_number():
    rows = jnp.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
    # A step size of one jumps to the batch itself.
    found = fit(optax.sgd(1.0), lambda step: rows[step], steps=3, record=lambda params: params)
    np.testing.assert_array_equal(found.history.recorded, rows)


def loader():
    """A Python iterator behind a function of the step: traced once, it would give one batch forever."""
    batches = iter([GOAL, 2 * GOAL, 3 * GOAL, 4 * GOAL])
    return lambda step: next(batches)


def test_functions_that_are_not_pure_are_refused():
    generator = np.random.default_rng(0)
    for impure in (loader(), lambda step: GOAL * generator.normal(), lambda step: [generator.normal()]):
        with pytest.raises(ValueError, match=r"a pure function of the step: .* two batches, .*for batch in"):
            fit(batches=impure)


def test_pure_functions_may_close_over_arrays_and_traced_values():
    rows = np.stack([GOAL] * 12)
    assert fit(batches=lambda step: jnp.asarray(rows)[step], steps=4).steps == 4
    found = jax.jit(lambda goal: fit(batches=lambda step: goal + 0 * step, steps=2).params)(GOAL)
    np.testing.assert_array_equal(found, [3.0, -1.5])


def test_a_fit_of_fixed_length_can_be_differentiated():
    # After n steps the distance is (1 - rate)^n, so ∂L/∂rate = -n (1 - rate)^(2n-1) ‖goal‖².
    final = lambda rate: quadratic(fit(optax.sgd(rate), steps=3).params, GOAL)
    assert jax.grad(final)(0.5) == pytest.approx(-3 * 0.5**5 * 20, rel=1e-5)


def test_numbers_and_half_precision_keep_their_type():
    loss_fn = lambda params, _: jnp.square(params["a"] - 1.0) + jnp.sum(params["b"] ** 2)
    params = {"a": 3.0, "b": jnp.ones(2, jnp.bfloat16)}
    options = {"steps": 40, "tolerance": 1e-3, "held_out": lambda params: params["a"] ** 2}
    found = training.fit(loss_fn, params, optax.sgd(0.25), (), **options)
    assert found.converged
    assert found.state.params["a"].dtype == jnp.float32
    assert found.params["b"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer ≥ 1, got 0"),
        ({"steps": 10.0}, r"steps must be an integer ≥ 1, got 10\.0"),
        ({"steps": None}, "steps must be an integer ≥ 1, got None"),
        ({"every": 5}, "every must be a divisor of steps=12, got 5"),
        ({"every": 0}, "every must be an integer ≥ 1, got 0"),
        ({"tolerance": -1e-3}, r"tolerance must be a number ≥ 0, got -0\.001"),
        ({"tolerance": float("nan")}, "tolerance must be a number ≥ 0, got nan"),
        ({"margin": -1.0}, r"margin must be a number ≥ 0, got -1\.0"),
        ({"patience": 0, "held_out": jnp.sum}, "patience must be an integer ≥ 1, got 0"),
        ({"patience": 3}, "held_out must be given with patience=3, got None"),
        (
            {"batches": iter([GOAL, GOAL])},
            "batches must be one batch .* not an iterator.*for batch in loader",
        ),
        ({"batches": object()}, "batches must be one batch, a pytree of arrays, .*Stack the batches"),
    ],
)
def test_settings_no_loop_could_follow_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**options)


def test_a_loss_that_is_nan_is_never_the_best():
    best = training.update_best_params(training.init_best_params(jnp.zeros(1)), jnp.ones(1), jnp.nan, 1)
    assert best.waited == 1 and best.params[0] == 0.0 and best.loss == jnp.inf
    best = training.update_best_params(best, jnp.ones(1), 2.0, 2)
    assert best.waited == 0 and best.params[0] == 1.0 and best.step == 2
