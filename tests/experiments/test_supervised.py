"""Supervised runs: passes over the data, closed forms, and kills that leave no trace."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.support.run import runs, supervised
from proxlm import lm
from tests.arrays import normal

MODEL = lm.ModelConfig(vocab_size=7, num_layers=1, width=4, num_heads=1)


class Killed(Exception):
    pass


def quadratic(params, batch):
    """½ mean ‖w − row‖², whose gradient is w − mean(rows)."""
    return jnp.mean(jnp.sum(jnp.square(params["w"][None] - batch["row"]), axis=1)) / 2


def fit(root, evaluate=lambda params: {}, rows=None, optimizer=None, resume=False, config=(), **options):
    """Twelve steps of a quadratic, two a chunk, evaluated and saved after chunks 2, 4 and 6."""
    run = dataclasses.replace(runs.open_run("quadratic", {}, root, resume), config=dict(config))
    rows = supervised.epochs(0, 10, 3, 12) if rows is None else rows
    options = {"chunk": 2, "evaluate_every": 2} | options
    state = supervised.fit(
        run,
        "fit",
        quadratic,
        optax.adam(0.1) if optimizer is None else optimizer,
        {"w": normal(0, (4,))},
        {"row": normal(1, (10, 4))},
        rows,
        evaluate=evaluate,
        **options,
    )
    return run, state


def test_every_row_comes_once_before_any_comes_again():
    rows = supervised.epochs(3, size=6, batch=4, steps=9)
    assert rows.shape == (9, 4)
    assert rows.dtype == np.int32
    for one_pass in rows.reshape(6, 6):
        assert sorted(one_pass.tolist()) == [*range(6)]
    assert len({tuple(one_pass) for one_pass in rows.reshape(6, 6).tolist()}) > 1


def test_passes_depend_on_the_seed_alone():
    np.testing.assert_array_equal(supervised.epochs(0, 50, 8, 9), supervised.epochs(0, 50, 8, 9))
    assert (supervised.epochs(0, 50, 8, 9) != supervised.epochs(1, 50, 8, 9)).any()
    # A longer run begins as the shorter one.
    np.testing.assert_array_equal(supervised.epochs(0, 50, 8, 30)[:9], supervised.epochs(0, 50, 8, 9))


@pytest.mark.parametrize("batch", [0, -2, 7])
def test_a_batch_that_the_windows_do_not_fill_is_refused(batch):
    with pytest.raises(ValueError, match=rf"batch={batch}: expected 1 to 6"):
        supervised.epochs(0, 6, batch, 2)


def test_gradient_descent_follows_its_closed_form(tmp_path):
    # All rows in every batch, so w − mean shrinks by 1 − 0.25 a step.
    rows = np.tile(np.arange(10, dtype=np.int32), (12, 1))
    _, state = fit(tmp_path, rows=rows, optimizer=optax.sgd(0.25))
    mean = jnp.mean(normal(1, (10, 4)), axis=0)
    expected = mean + 0.75**12 * (normal(0, (4,)) - mean)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5, atol=1e-6)
    assert state.step == 12


def test_steps_read_the_rows_they_are_given(tmp_path):
    # A step size of one jumps to the row itself.
    rows = np.array([[3], [9], [0], [7]], np.int32)
    seen = []
    note = lambda params: seen.append(np.asarray(params["w"])) or {}
    fit(tmp_path, note, rows, optax.sgd(1.0), chunk=1, evaluate_every=1)
    np.testing.assert_allclose(seen, normal(1, (10, 4))[rows[:, 0]], rtol=1e-5, atol=1e-6)


def test_logs_a_line_a_chunk_and_evaluates_every_so_many_and_last(tmp_path):
    calls = []
    evaluate = lambda params: calls.append(0) or {"norm": jnp.sum(jnp.square(params["w"]))}
    run, state = fit(tmp_path, evaluate, rows=supervised.epochs(0, 10, 3, 10))
    rows = runs.read_log(run, "fit")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
    assert [row["step"] for row in rows if "norm" in row] == [4, 8, 10]
    assert len(calls) == 3
    assert rows[-1]["norm"] == pytest.approx(float(jnp.sum(jnp.square(state.params["w"]))), 1e-4)


def test_a_line_holds_the_means_of_its_chunk(tmp_path):
    optimizer, rows = optax.sgd(0.25), supervised.epochs(0, 10, 3, 2)
    run, _ = fit(tmp_path, rows=rows, optimizer=optimizer)
    params, losses, norms = {"w": normal(0, (4,))}, [], []
    for batch in rows:
        loss, grads = jax.value_and_grad(quadratic)(params, {"row": normal(1, (10, 4))[batch]})
        params = jax.tree.map(lambda w, g: w - 0.25 * g, params, grads)
        losses += [loss]
        norms += [jnp.linalg.norm(grads["w"])]
    (line,) = runs.read_log(run, "fit")
    assert line["loss"] == pytest.approx(np.mean(losses), 1e-5)
    assert line["grad_norm"] == pytest.approx(np.mean(norms), 1e-5)


def test_steps_that_do_not_fill_the_chunks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="12 steps are not a multiple of chunk=5"):
        fit(tmp_path, chunk=5)


def go_on(root, run_chunk, **options):
    """Three chunks of four steps; returns the log and the numbers that were shown."""
    run = runs.open_run("walk", {}, root)
    options = {"key": jax.random.key(0), "every": 1, **options}
    state = supervised.run_resumable(run, "walk", run_chunk, jnp.zeros(()), 3, 4, **options)
    return state, runs.read_log(run, "walk")


@pytest.mark.parametrize(
    ("lines", "steps"), [(1, [4, 8, 12]), (2, [2, 4, 6, 8, 10, 12]), (4, [*range(1, 13)])]
)
def test_the_lines_of_a_chunk_carry_the_steps_they_end_at(tmp_path, lines, steps):
    advance = lambda state, _: (state + 1, [{"state": state, "line": i} for i in range(lines)])
    state, rows = go_on(tmp_path, advance)
    assert state == 3
    assert [row["step"] for row in rows] == steps
    assert [row["state"] for row in rows] == sorted([0, 1, 2] * lines)
    assert [row["line"] for row in rows] == 3 * [*range(lines)]


def test_the_progress_shows_the_last_line_as_means_over_seeds(tmp_path, capsys):
    last = {"reward": jnp.array([0.25, 0.75]), "kl": jnp.array([1.0, 2.0])}
    advance = lambda state, _: (state, [{"reward": 0.0, "kl": 0.0}, last])
    go_on(tmp_path / "all", advance)
    assert "walk 3/3" in (text := capsys.readouterr().out)
    assert "kl 1.5  reward 0.5" in text
    go_on(tmp_path / "some", advance, shown=("kl",))
    assert "left  kl 1.5" in (text := capsys.readouterr().out)
    assert "reward" not in text


def killed_at_evaluation(count):
    calls = []

    def evaluate(params):
        calls.append(0)
        if len(calls) == count:
            raise Killed
        return {"first": params["w"][0]}

    return evaluate


def same(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_fit_killed_while_it_evaluates_ends_at_the_same_bits(tmp_path, count):
    watch = lambda params: {"first": params["w"][0]}
    whole_run, whole = fit(tmp_path / "whole", watch)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", killed_at_evaluation(count))
    run, state = fit(tmp_path / "killed", watch, resume=True)
    same(state, whole)
    assert runs.read_log(run) == runs.read_log(whole_run)


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 10])
def test_a_fit_killed_between_checkpoints_ends_at_the_same_bits(tmp_path, monkeypatch, step):
    whole_run, whole = fit(tmp_path / "whole")
    log = runs.log

    def log_and_die(run, stage, **numbers):
        log(run, stage, **numbers)
        if numbers["step"] == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runs, "log", log_and_die)
        with pytest.raises(Killed):
            fit(tmp_path / "killed")
    run, state = fit(tmp_path / "killed", resume=True)
    same(state, whole)
    assert runs.read_log(run) == runs.read_log(whole_run)


def test_a_finished_fit_does_nothing_again(tmp_path):
    run, state = fit(tmp_path)
    lines = runs.read_log(run)
    again, restored = fit(tmp_path, killed_at_evaluation(1), resume=True)
    same(restored, state)
    assert runs.read_log(again) == lines


def rising_from(step):
    """A held-out loss that falls to this step, then rises; counts the evaluations."""
    calls = []
    # The count of steps is not among the params, so it is counted here: four a call.
    judge = lambda params: {"held_out_loss": abs(4 * (calls.append(0) or len(calls)) - step)}
    return judge, calls


def test_patience_ends_a_fit_with_its_best_params(tmp_path):
    seen = []
    judge, calls = rising_from(8)
    note = lambda params: seen.append(np.asarray(params["w"])) or judge(params)
    rows = supervised.epochs(0, 10, 3, 24)
    run, state = fit(tmp_path, note, rows, patience=2)
    # The evaluations after steps 4, 8, 12 and 16 say 4, 0, 4 and 8: the best is the second.
    assert len(calls) == 4 and state.step == 16
    np.testing.assert_array_equal(state.params["w"], seen[1])
    assert [row["step"] for row in runs.read_log(run, "fit")] == [*range(2, 17, 2)]
    # Enough patience takes all steps, and still gives the best.
    judge, calls = rising_from(8)
    _, state = fit(tmp_path, judge, rows, patience=9)
    assert len(calls) == 6 and state.step == 24
    np.testing.assert_array_equal(state.params["w"], seen[1])


def test_a_fit_that_waits_ends_at_the_same_bits_after_a_kill_and_stays_ended(tmp_path):
    # Distances to a point passed on the way: Adam goes on beyond it.
    judge = lambda params: {"held_out_loss": jnp.abs(params["w"][0] - 0.8)}
    rows, calls = supervised.epochs(0, 10, 3, 48), []
    whole_run, whole = fit(tmp_path / "whole", judge, rows, patience=2)
    assert whole.step == 16

    def dying(params):
        calls.append(0)
        if len(calls) == 3:
            raise Killed
        return judge(params)

    with pytest.raises(Killed):
        fit(tmp_path / "killed", dying, rows, patience=2)
    run, state = fit(tmp_path / "killed", judge, rows, patience=2, resume=True)
    same(state, whole)
    assert runs.read_log(run) == runs.read_log(whole_run)
    again, state = fit(tmp_path / "killed", killed_at_evaluation(1), rows, patience=2, resume=True)
    same(state, whole)
    assert runs.read_log(again) == runs.read_log(whole_run)


def test_a_negative_patience_is_refused(tmp_path):
    with pytest.raises(ValueError, match="patience=-1: expected at least 0"):
        fit(tmp_path, patience=-1)


def test_a_fit_of_another_config_is_refused(tmp_path):
    fit(tmp_path, config={"rate": 0.1})
    with pytest.raises(ValueError, match=r"rate: saved 0\.1, given 0\.2"):
        fit(tmp_path, config={"rate": 0.2}, resume=True)


def test_what_is_kept_comes_back_bit_for_bit(tmp_path):
    params = lm.init(jax.random.key(0), MODEL)
    supervised.save_params(tmp_path, params, {"seed": 0})
    same(supervised.load_params(tmp_path, MODEL, {"seed": 0}), params)


def test_the_first_parameters_kept_stay(tmp_path):
    params = lm.init(jax.random.key(0), MODEL)
    supervised.save_params(tmp_path, params, {})
    supervised.save_params(tmp_path, jax.tree.map(jnp.zeros_like, params), {})
    same(supervised.load_params(tmp_path, MODEL, {}), params)


def test_kept_parameters_of_another_config_or_shape_are_refused(tmp_path):
    supervised.save_params(tmp_path, lm.init(jax.random.key(0), MODEL), {"seed": 0})
    with pytest.raises(ValueError, match="seed: saved 0, given 1"):
        supervised.load_params(tmp_path, MODEL, {"seed": 1})
    wider = lm.ModelConfig(vocab_size=8, num_layers=1, width=4, num_heads=1)
    with pytest.raises(ValueError, match=r"embedding/kernel"):
        supervised.load_params(tmp_path, wider, {"seed": 0})


def test_nothing_kept_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        supervised.load_params(tmp_path, MODEL, {})


def lanes_quadratic(params, rows):
    return quadratic(params, {"row": rows})


def test_each_lane_is_trained_by_its_own_chain_on_the_same_batches(tmp_path):
    run = runs.open_run("lanes", {}, tmp_path)
    batches, rates = np.asarray(normal(5, (12, 3, 4))), np.array([0.0, 0.1, 0.5], np.float32)
    fit = supervised.make_fit_lanes(lanes_quadratic, optax.sgd, 4)
    given = (jnp.asarray(rates), {"w": jnp.ones(4)}, batches)
    params = fit(run, "lanes", *given)
    expected = np.ones((3, 4))
    for batch in batches:
        expected -= rates[:, None] * (expected - batch.mean(axis=0))
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)
    losses = [row["loss"] for row in runs.read_log(run, "lanes")]
    assert [len(loss) for loss in losses] == [3, 3, 3]
    # A finished fit is found, and nothing is trained or logged again.
    again = fit(run, "lanes", *given)
    np.testing.assert_array_equal(again["w"], params["w"])
    assert len(runs.read_log(run, "lanes")) == 3


def test_lanes_ask_for_chunks_that_fill_the_steps(tmp_path):
    run = runs.open_run("lanes", {}, tmp_path)
    fit = supervised.make_fit_lanes(lanes_quadratic, optax.sgd, 5)
    with pytest.raises(ValueError, match="12 steps are not a multiple of chunk=5"):
        given = (jnp.ones(1), {"w": jnp.ones(4)}, np.ones((12, 3, 4)))
        fit(run, "lanes", *given)
