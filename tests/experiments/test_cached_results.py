"""Work in parts: each is done once, and comes back with the bits it was kept with."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.support import Refusal
from experiments.support.run import cached_results, runs

CONFIG = {"seed": 0}


class Killed(Exception):
    pass


@pytest.fixture
def run(tmp_path):
    return runs.open_run("parts", CONFIG, tmp_path)


def counted(calls, killed_at=None):
    """A part of two arrays, one of them in a dict, that notes which members were asked for."""

    def compute(member):
        calls.append(member)
        if member == killed_at:
            raise Killed
        value = jnp.float32(len(member)) / 3
        return {"mean": value, "inner": {"x, y": jnp.array([value, jnp.nan])}}

    return compute


def test_what_is_kept_is_computed_once_and_comes_back_bit_for_bit(run):
    calls = []
    rows = {"bits": np.float64(0.1), "count": 3, "few": jnp.array([1.5], jnp.bfloat16) > 1}
    once = lambda: cached_results.compute_once(run, "a part", lambda: calls.append(0) or rows)
    first, second = once(), once()
    assert calls == [0]
    for name, value in rows.items():
        assert first[name].dtype == second[name].dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first[name], value)


def test_a_killed_run_goes_on_with_the_part_that_was_not_done(run):
    calls = []
    members = ("a", "bb", "ccc")
    with pytest.raises(Killed):
        cached_results.compute_each(run, "words", members, counted(calls, killed_at="bb"))
    found = cached_results.compute_each(run, "words", members, counted(calls))
    assert calls == ["a", "bb", "bb", "ccc"]
    assert [*found] == ["a", "bb", "ccc"]
    inner = np.float32([[1 / 3, np.nan], [2 / 3, np.nan], [1.0, np.nan]])
    stacked = cached_results.stacked(found)
    np.testing.assert_array_equal(stacked["mean"], inner[:, 0])
    np.testing.assert_array_equal(stacked["inner"]["x, y"], inner)


@pytest.mark.parametrize("lost", [1, 2])
def test_the_log_of_a_resumed_run_has_each_part_once_in_its_order(run, monkeypatch, lost):
    """Also where the kill came after a part was kept and before its line."""
    compute, members, log = counted([]), ("a", "bb", "ccc"), runs.log

    def log_or_die(run, stage, **numbers):
        if numbers["step"] == lost:
            raise Killed
        log(run, stage, **numbers)

    monkeypatch.setattr(runs, "log", log_or_die)
    with pytest.raises(Killed):
        cached_results.compute_each(run, "words", members, compute, shown=("mean",))
    monkeypatch.setattr(runs, "log", log)
    cached_results.compute_each(run, "words", members, compute, shown=("mean",))
    rows = runs.read_log(run, "words")
    assert [(row["step"], row["member"]) for row in rows] == [(1, "a"), (2, "bb"), (3, "ccc")]
    assert [row["mean"] for row in rows] == [0.333333, 0.666667, 1.0]


def test_a_file_that_a_kill_cut_is_not_taken_for_a_part(run, monkeypatch):
    def cut(part, path):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("os.replace", cut)
        cached_results.compute_once(run, "words", lambda: {"x": 1})
    assert not [*cached_results.path_of(run, "words").parent.iterdir()]
    assert cached_results.compute_once(run, "words", lambda: {"x": 2})["x"] == 2


def test_a_name_that_would_be_read_as_two_is_refused(run):
    with pytest.raises(ValueError, match="'first/last' holds a slash"):
        cached_results.compute_once(run, "words", lambda: {"first/last": 1.0})


def test_a_damaged_file_is_named(run):
    cached_results.compute_once(run, "words", lambda: {"x": 1})
    path = cached_results.path_of(run, "words")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(Refusal, match=r"words\.npz is damaged"):
        cached_results.compute_once(run, "words", lambda: {"x": 2})
