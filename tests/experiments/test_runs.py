"""Run folders: resumed runs end at the same bits, finished stages are found again."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import resource
import time
from typing import NamedTuple

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


def test_metrics_are_read_while_the_next_chunk_runs_and_before_a_save(tmp_path, monkeypatch):
    seen, start_save = [], stages.start_save
    monkeypatch.setattr(stages, "start_save", lambda *given: (seen.append("save"), start_save(*given))[1])
    number = lambda state, key: (seen.append("run"), (state + 1, state))[1]
    options = {"key": jax.random.key(0), "checkpoint_folder": tmp_path, "config": CONFIG, "every": 3}
    stages.run_chunks(number, 0, 4, on_chunk=lambda i, metrics: seen.append(metrics), **options)
    assert seen == ["run", "run", 0, "run", 1, 2, "save", "run", 3, "save"]


def test_a_full_disk_stops_the_run_after_the_chunks_that_ran_meanwhile(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    options = {"key": jax.random.key(0), "checkpoint_folder": tmp_path, "config": CONFIG}
    try:
        with pytest.raises(stages.StorageFailure, match=r"checkpoint 1 of .* could not be written"):
            stages.run_chunks(lambda state, key: (state, 0), normal(0, (1000, 100)), 2, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


def test_a_damaged_config_of_another_run_blocks_no_resume(tmp_path):
    wanted = runs.open_run("lasso", CONFIG, tmp_path)
    other = runs.open_run("lasso", CONFIG, tmp_path)
    (other.path / "config.json").write_text('{"seed": 0, "ra')
    assert runs.open_run("lasso", CONFIG, tmp_path, resume=True).path == wanted.path
    (wanted.path / "config.json").write_text("[]")
    with pytest.raises(Refusal, match=r"no run in .* has this config"):
        runs.open_run("lasso", CONFIG, tmp_path, resume=True)


def test_the_newest_run_is_the_one_begun_last_though_the_clock_was_set_back(tmp_path):
    early = runs.open_run("lasso", CONFIG, tmp_path)
    early.path.rename(early.path.parent / "20990101-000000-000000")
    later = runs.open_run("lasso", CONFIG, tmp_path)
    assert runs.open_run("lasso", CONFIG, tmp_path, resume=True).path == later.path


def test_a_run_after_one_from_the_future_gets_a_later_name(tmp_path):
    (tmp_path / "lasso" / "20990101-000000-000000").mkdir(parents=True)
    assert runs.open_run("lasso", CONFIG, tmp_path).path.name == "20990101-000000-000001"


def test_one_process_at_a_time_writes_a_run(tmp_path):
    options = runs.Options(runs=str(tmp_path))
    with (
        runs.opened("lasso", CONFIG, options),
        pytest.raises(Refusal, match=rf"process {os.getpid()} is writing .*lasso"),
        runs.opened("lasso", CONFIG, dataclasses.replace(options, resume=True)),
    ):
        pass
    with runs.opened("lasso", CONFIG, dataclasses.replace(options, resume=True)) as run:
        assert run.reused


def test_a_file_that_a_run_has_read_must_be_the_same_when_it_is_resumed(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one")
    runs.open_run("lasso", CONFIG, tmp_path).check_input(text)
    resumed = runs.open_run("lasso", CONFIG, tmp_path, resume=True)
    resumed.check_input(text)
    text.write_text("two")
    with pytest.raises(
        Refusal, match=r"text.txt has changed since .* read it \(sha256 7692c3ad, now 3fc4ccfe"
    ):
        resumed.check_input(text)


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
    with jax_optimizes():
        with cli.quick_compilation(quick=False):
            assert not wanted()
        with pytest.raises(Killed), cli.quick_compilation(quick=True):
            assert wanted()
            raise Killed
        assert not wanted()


@contextlib.contextmanager
def jax_optimizes():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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


@pytest.mark.parametrize("line", ['{"stage": "ppo", "st', "3", '{"step": 1}'])
def test_a_damaged_line_of_the_log_is_named(tmp_path, line):
    run = runs.open_run("lasso", CONFIG, tmp_path)
    runs.log(run, "ppo", step=1)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    runs.log(run, "ppo", step=2)
    with pytest.raises(Refusal, match=r"line 2 of .*metrics\.jsonl is damaged"):
        runs.read_log(run, "ppo")


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
        stages.stage(run, "chain/sum:3 pretrained", CONFIG, killed)
    found = []
    done = stages.stage(
        run, "chain/sum:3 pretrained", CONFIG, lambda path: found.append((path / "half").exists())
    )
    assert found == [True]
    assert done.path.parent == run.cache
    assert not done.reused


def test_runs_side_by_side_compute_a_stage_once(tmp_path, capsys):
    calls = []

    def compute(path):
        calls.append(path)
        time.sleep(0.2)

    def go(_):
        return stages.stage(runs.open_run("lm", CONFIG, tmp_path), "pretrain", CONFIG, compute).reused

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        reused = sorted(pool.map(go, range(3)))
    assert (reused, len(calls)) == ([False, True, True], 1)
    assert f"waiting for process {os.getpid()}" in capsys.readouterr().out


class State(NamedTuple):
    params: dict
    best: float


def test_params_that_are_not_finite_end_a_run_and_the_last_good_state_is_kept(tmp_path):
    def chunk(state, key):
        grown = {"w": state.params["w"] * 1e20}
        return State(grown, state.best), {}

    start = State({"w": jnp.ones(3)}, jnp.array(jnp.inf))
    go = lambda: stages.run_chunks(
        chunk, start, 5, key=jax.random.key(0), checkpoint_folder=tmp_path, config=CONFIG
    )
    for _ in range(2):
        message = (
            r"parameters \(w first\) are not finite after part 2; the last good state, that after part 1"
        )
        with pytest.raises(Refusal, match=message):
            go()
        assert stages.first_chunk(tmp_path) == 1


def test_a_damaged_checkpoint_is_named(tmp_path):
    walk(tmp_path, num_chunks=2)
    for path in (tmp_path / "2").rglob("*"):
        if path.is_file() and path.stat().st_size > 20:
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(Refusal, match=str(tmp_path)):
        walk(tmp_path, num_chunks=4)


def test_cached_stages_are_not_taken_for_runs(tmp_path):
    run = runs.open_run("lm", CONFIG, tmp_path)
    stages.stage(run, "pretrain", CONFIG, lambda path: None)
    assert runs.open_run("lm", CONFIG, tmp_path, resume=True).path == run.path
