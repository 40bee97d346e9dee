"""Run folders: resumed runs end at the same bits, finished stages are found again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.support import Refusal
from experiments.support.run import cli, runs, stages
from tests.arrays import normal

CONFIG = {"seed": 0, "rate": 0.1}


class Killed(Exception):
    pass


@jax.jit
def run_chunk(state, key):
    """A noisy walk of ten steps, which rounds differently if a step is repeated or left out."""

    def step(state, key):
        state = 0.9 * state + jax.random.normal(key, state.shape)
        return state, jnp.sum(state)

    return jax.lax.scan(step, state, jax.random.split(key, 10))


def walk(folder, num_chunks=7, on_chunk=lambda i, metrics: None, seed=0, every=2, config=CONFIG):
    return stages.run_chunks(
        run_chunk,
        normal(1, (3,)),
        num_chunks,
        key=jax.random.key(seed),
        checkpoint_folder=folder,
        config=config,
        every=every,
        on_chunk=on_chunk,
    )


def kill_at(chunk):
    def on_chunk(index, metrics):
        if index == chunk:
            raise Killed

    return on_chunk


@pytest.mark.parametrize("chunk", [0, 3, 4, 6])
def test_a_killed_run_ends_at_the_bits_of_one_that_was_not(tmp_path, chunk):
    whole = walk(tmp_path / "whole")
    with pytest.raises(Killed):
        walk(tmp_path / "killed", on_chunk=kill_at(chunk))
    np.testing.assert_array_equal(walk(tmp_path / "killed"), whole)


def test_chunks_are_those_of_a_plain_loop(tmp_path):
    state = normal(1, (3,))
    for index in range(7):
        state, _ = run_chunk(state, jax.random.fold_in(jax.random.key(0), index))
    np.testing.assert_array_equal(walk(tmp_path), state)


def test_chunks_report_host_metrics_from_where_they_resume(tmp_path):
    seen = []
    record = lambda index, metrics: seen.append((index, type(metrics), metrics.shape))
    walk(tmp_path, num_chunks=4)
    assert stages.first_chunk(tmp_path) == 4
    walk(tmp_path, num_chunks=6, on_chunk=record)
    assert seen == [(4, np.ndarray, (10,)), (5, np.ndarray, (10,))]


def test_a_finished_run_is_not_run_again(tmp_path):
    whole = walk(tmp_path)
    np.testing.assert_array_equal(walk(tmp_path, on_chunk=kill_at(0)), whole)


def test_chunks_of_another_key_config_or_count_are_refused(tmp_path):
    walk(tmp_path)
    with pytest.raises(ValueError, match=r"chunk_key: saved \[0, 0\], given \[0, 1\]"):
        walk(tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"rate: saved 0\.1, given 0\.2"):
        walk(tmp_path, config=CONFIG | {"rate": 0.2})
    with pytest.raises(ValueError, match=r"num_chunks=3, but .* after 7"):
        walk(tmp_path, num_chunks=3)
    with pytest.raises(ValueError, match="every=0"):
        walk(tmp_path, every=0)


def test_a_run_writes_its_config_and_two_runs_do_not_meet(tmp_path):
    first, second = (runs.open_run("lasso", CONFIG, tmp_path) for _ in range(2))
    assert first.path != second.path
    assert json.loads((first.path / "config.json").read_text()) == CONFIG
    assert first.path.parent == tmp_path / "lasso"
    assert not first.reused


def test_resume_takes_the_newest_run_of_the_same_config(tmp_path):
    runs.open_run("lasso", CONFIG, tmp_path)
    wanted = runs.open_run("lasso", CONFIG, tmp_path)
    runs.open_run("lasso", CONFIG | {"rate": 0.2}, tmp_path)
    resumed = runs.open_run("lasso", CONFIG, tmp_path, resume=True)
    assert resumed.path == wanted.path
    assert resumed.reused


def test_resume_names_what_differs_and_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        runs.open_run("lasso", CONFIG, tmp_path, resume=True)
    runs.open_run("lasso", CONFIG, tmp_path)
    with pytest.raises(ValueError, match=r"differs in rate: saved 0\.1, given 0\.2"):
        runs.open_run("lasso", CONFIG | {"rate": 0.2}, tmp_path, resume=True)


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(ValueError, match=r"runs: .*file.* cannot be made"):
            runs.open_run("lasso", CONFIG, root)


def test_a_folder_without_the_right_to_write_is_named(tmp_path, monkeypatch):
    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(runs.pathlib.Path, "mkdir", refused)  # root may write everywhere
    with pytest.raises(Refusal, match=r"cannot be made \(Permission denied\); give another"):
        runs.open_run("lasso", CONFIG, tmp_path / "runs")


def test_quick_compilation_ends_with_its_block():
    wanted = lambda: jax.config.values["jax_disable_most_optimizations"]
    with cli.quick_compilation(quick=False):
        assert not wanted()
    with pytest.raises(Killed), cli.quick_compilation(quick=True):
        assert wanted()
        raise Killed
    assert not wanted()


def test_metrics_are_rounded_json_lines(tmp_path):
    run = runs.open_run("lasso", CONFIG, tmp_path)
    runs.log(run, "ppo", step=3, loss=jnp.asarray(1 / 3), counts=jnp.arange(2), note="x")
    runs.log(run, "ppo", step=np.int64(4), loss=float("nan"), ok=True)
    assert (run.path / "metrics.jsonl").read_text() == (
        '{"stage": "ppo", "step": 3, "loss": 0.333333, "counts": [0, 1], "note": "x"}\n'
        '{"stage": "ppo", "step": 4, "loss": "nan", "ok": true}\n'
    )


def test_truncation_drops_the_lines_that_come_again_and_no_others(tmp_path):
    run = runs.open_run("lasso", CONFIG, tmp_path)
    for step in range(4):
        runs.log(run, "ppo", step=step)
    runs.log(run, "pretrain", step=9)
    runs.log(run, "ppo", final=1)
    runs.truncate_log(run, "ppo", 2)
    assert [row.get("step") for row in runs.read_log(run)] == [0, 1, 9, None]
    assert runs.read_log(run, "pretrain") == [{"stage": "pretrain", "step": 9}]


def test_resume_mends_a_line_that_a_kill_cut(tmp_path):
    run = runs.open_run("lasso", CONFIG, tmp_path)
    runs.log(run, "ppo", step=0)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "ppo", "st')
    run = runs.open_run("lasso", CONFIG, tmp_path, resume=True)
    runs.log(run, "ppo", step=1)
    assert [row["step"] for row in runs.read_log(run)] == [0, 1]


def two_stages(run, calls, width=4, rate=0.1):
    """A stage and one that stands on it; notes in calls which are computed."""

    def compute(name):
        def fill(path):
            calls.append(name)
            (path / "value").write_text(name)

        return fill

    first = stages.stage(run, "pretrain", {"width": width}, compute("pretrain"))
    second = stages.stage(run, "ppo", {"rate": rate}, compute("ppo"), depends_on=[first])
    return first, second


def test_a_second_run_reuses_finished_stages(tmp_path):
    calls = []
    before = two_stages(runs.open_run("lm", CONFIG, tmp_path), calls)
    after = two_stages(runs.open_run("lm", CONFIG, tmp_path), calls)
    assert calls == ["pretrain", "ppo"]
    assert [stage.path for stage in before] == [stage.path for stage in after]
    assert [stage.reused for stage in (*before, *after)] == [False, False, True, True]
    assert (after[1].path / "value").read_text() == "ppo"


def test_a_changed_setting_recomputes_what_stands_on_it(tmp_path):
    calls = []
    run = runs.open_run("lm", CONFIG, tmp_path)
    two_stages(run, calls)
    two_stages(run, calls, rate=0.2)
    assert calls == ["pretrain", "ppo", "ppo"]
    two_stages(run, calls, width=8)
    assert calls == ["pretrain", "ppo", "ppo", "pretrain", "ppo"]


def test_a_killed_stage_is_computed_again_in_its_folder(tmp_path):
    run = runs.open_run("lm", CONFIG, tmp_path)

    def killed(path):
        (path / "half").write_text("kept")
        raise Killed

    with pytest.raises(Killed):
        stages.stage(run, "pretrain", CONFIG, killed)
    found = []
    done = stages.stage(run, "pretrain", CONFIG, lambda path: found.append((path / "half").exists()))
    assert found == [True]
    assert not done.reused


def test_cached_stages_are_not_taken_for_runs(tmp_path):
    run = runs.open_run("lm", CONFIG, tmp_path)
    stages.stage(run, "pretrain", CONFIG, lambda path: None)
    assert runs.open_run("lm", CONFIG, tmp_path, resume=True).path == run.path
