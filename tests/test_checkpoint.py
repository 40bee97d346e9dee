"""Checkpoints: every bit back, nothing lost to a kill, nothing resumed under other settings."""

import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxlm import checkpoint, training
from tests.arrays import normal

CONFIG = {"seed": 0, "model": {"width": 4}}
DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "int4", "int32", "uint8", "bool"]


class State(NamedTuple):
    train: training.TrainState
    key: jax.Array
    extra: Any


def example_state(seed=0):
    params = {"block": {"kernel": normal(seed, (3, 2)), "bias": jnp.zeros(0)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    extra = {"keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3), "none": None, "n": 7}
    return State(training.init(params, optimizer), jax.random.key(seed), extra)


def bits(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(leaf).tobytes()


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(one) is type(other)
        if isinstance(one, int | float):
            assert one == other
        else:
            assert (one.dtype, one.shape, bits(one)) == (other.dtype, other.shape, bits(other))


def test_states_with_optimizer_and_keys_come_back_bitwise(tmp_path):
    checkpoint.save(tmp_path, 1, example_state(), CONFIG)
    assert_same(checkpoint.restore(tmp_path, example_state(seed=5), CONFIG), example_state())


def test_abstract_states_are_enough_to_restore(tmp_path):
    make = lambda: example_state()._replace(extra=jax.random.split(jax.random.key(1), 2))
    checkpoint.save(tmp_path, 1, make(), CONFIG)
    assert_same(checkpoint.restore(tmp_path, jax.eval_shape(make), CONFIG), make())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bitwise(tmp_path, dtype):
    state = {"jax": normal(0, (3, 5)).astype(dtype), "numpy": np.asarray(normal(1, (4,)).astype(dtype))}
    checkpoint.save(tmp_path, 0, state, CONFIG)
    like = {"jax": jnp.zeros((3, 5), dtype), "numpy": np.zeros(4, jnp.dtype(dtype))}
    assert_same(checkpoint.restore(tmp_path, like, CONFIG), state)


def test_nan_payloads_signed_zeros_and_numbers_come_back(tmp_path):
    odd = np.array([0x7FC00001, 0x80000000, 0xFF800000], np.uint32).view(np.float32)
    state = [jnp.asarray(odd), np.float64(0.1), np.int64(2**40), True, 3, 1 / 3, float("inf")]
    checkpoint.save(tmp_path, 0, state, CONFIG)
    assert_same(checkpoint.restore(tmp_path, state, CONFIG), state)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_weak_types_come_back_weak(tmp_path, shape):
    state = jnp.broadcast_to(jnp.asarray(0.25), shape)
    assert state.weak_type
    checkpoint.save(tmp_path, 0, state, CONFIG)
    restored = checkpoint.restore(tmp_path, state, CONFIG)
    assert restored.weak_type
    assert_same(restored, state)


def test_restored_arrays_are_as_free_to_move_as_the_saved_ones(tmp_path):
    placed = jax.device_put(jnp.ones(2), jax.devices()[0])
    state = {"free": jnp.zeros(2), "placed": placed}
    checkpoint.save(tmp_path, 0, state, CONFIG)
    restored = checkpoint.restore(tmp_path, state, CONFIG)
    assert not restored["free"].committed
    assert restored["placed"].committed
    assert restored["placed"].sharding == placed.sharding


def test_another_config_is_refused_with_both_values(tmp_path):
    checkpoint.save(tmp_path, 1, example_state(), CONFIG)
    other = {"seed": 0, "model": {"width": 8}}
    for attempt in (
        lambda: checkpoint.restore(tmp_path, example_state(), other),
        lambda: checkpoint.save(tmp_path, 2, example_state(), other),
    ):
        with pytest.raises(ValueError, match=r"model\.width: saved 4, given 8\. Use another"):
            attempt()
    assert checkpoint.latest(tmp_path) == 1


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": {"b": jnp.zeros(4)}}, r'a/b: saved "float32\[3\]", given "float32\[4\]"'),
        ({"a": {"b": jnp.zeros(3, jnp.bfloat16)}}, r'a/b: saved .* given "bfloat16\[3\]"'),
        ({"a": {"c": jnp.zeros(3)}}, r"a/b: saved .* given nothing; a/c: saved nothing"),
        ({"a": {"b": jnp.zeros(3), "c": 1}}, r'a/c: saved nothing, given "int"'),
    ],
)
def test_a_state_of_another_form_is_refused_by_path(tmp_path, like, message):
    checkpoint.save(tmp_path, 1, {"a": {"b": jnp.zeros(3)}}, CONFIG)
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path, like, CONFIG)


def test_keys_of_another_implementation_are_refused(tmp_path):
    checkpoint.save(tmp_path, 1, jax.random.key(0), CONFIG)
    with pytest.raises(ValueError, match=r"key<fry>\[\].*key<rbg>\[\]"):
        checkpoint.restore(tmp_path, jax.random.key(0, impl="rbg"), CONFIG)


def test_only_the_newest_two_are_kept_and_either_can_be_read(tmp_path):
    for step in (1, 2, 5):
        checkpoint.save(tmp_path, step, jnp.full(2, step), CONFIG)
    assert checkpoint.latest(tmp_path) == 5
    assert checkpoint.restore(tmp_path, jnp.zeros(2, jnp.int32), CONFIG)[0] == 5
    assert checkpoint.restore(tmp_path, jnp.zeros(2, jnp.int32), CONFIG, step=2)[0] == 2
    with pytest.raises(ValueError, match=r"checkpoint.restore: step must be a step in .* newest is 5, got 1"):
        checkpoint.restore(tmp_path, jnp.zeros(2, jnp.int32), CONFIG, step=1)


@pytest.mark.parametrize("step", [2, 3])
def test_steps_must_grow(tmp_path, step):
    checkpoint.save(tmp_path, 3, jnp.ones(2), CONFIG)
    with pytest.raises(ValueError, match=f"checkpoint.save: step must be an integer above 3, .*, got {step}"):
        checkpoint.save(tmp_path, step, jnp.zeros(2), CONFIG)
    assert checkpoint.restore(tmp_path, jnp.zeros(2), CONFIG)[0] == 1


@pytest.mark.parametrize("step", [5.0, 1.5, -1, True, np.float32(5), jnp.float32(5), None, "5"])
def test_a_step_is_an_integer(tmp_path, step):
    with pytest.raises(ValueError, match="step must be an integer ≥ 0"):
        checkpoint.save(tmp_path, step, jnp.zeros(2), CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_numpy_integers_are_steps(tmp_path):
    checkpoint.save(tmp_path, np.int64(4), jnp.zeros(2), CONFIG)
    assert checkpoint.latest(tmp_path) == 4


def array_files(folder):
    """The files of a step that hold its arrays, the largest first."""
    files = [path for path in (folder / "state").rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def flip_a_bit(step):
    largest = array_files(step)[0]
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_a_flipped_bit_is_found_and_the_older_step_offered(tmp_path):
    like = {"w": jnp.zeros(1000), "n": 0}
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": normal(step, (1000,)), "n": step}, CONFIG)
    flip_a_bit(tmp_path / "2")
    with pytest.raises(ValueError, match=r"step 2 in .* is damaged .*remove .*/2 to go on from step 1\."):
        checkpoint.restore(tmp_path, like, CONFIG)
    assert checkpoint.restore(tmp_path, like, CONFIG, step=1)["n"] == 1
    shutil.rmtree(tmp_path / "2")
    assert checkpoint.restore(tmp_path, like, CONFIG)["n"] == 1
    checkpoint.save(tmp_path, 2, like, CONFIG)
    flip_a_bit(tmp_path / "1")
    with pytest.raises(ValueError, match=r"step 1 in .* is damaged .*there is no older one"):
        checkpoint.restore(tmp_path, like, CONFIG, step=1)


@pytest.mark.parametrize("part", ["about", "state"])
def test_a_cut_file_is_damage_and_not_a_foreign_error(tmp_path, part):
    checkpoint.save(tmp_path, 1, {"w": normal(0, (100,))}, CONFIG)
    for path in (tmp_path / "1" / part).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"step 1 in .* is damaged .* start anew in another folder"):
        checkpoint.restore(tmp_path, {"w": jnp.zeros(100)}, CONFIG)


def test_a_state_that_has_diverged_does_not_replace_a_good_one(tmp_path):
    state = {"best": jnp.inf * jnp.ones(()), "w": jnp.ones(2)}  # the best loss is not known yet
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state, CONFIG)
    diverged = {"best": jnp.zeros(()), "w": jnp.array([1.0, jnp.nan])}
    with pytest.raises(ValueError, match=r"state must be finite as step 2 in .* was, got w, which is not"):
        checkpoint.save(tmp_path, 3, diverged, CONFIG)
    assert checkpoint.restore(tmp_path, state, CONFIG)["w"].tolist() == [1.0, 1.0]
    checkpoint.save(tmp_path, 3, diverged, CONFIG, allow_non_finite=True)
    assert checkpoint.latest(tmp_path) == 3
    checkpoint.save(tmp_path / "complex", 1, {"w": jnp.ones(2, complex)}, CONFIG)
    with pytest.raises(ValueError, match="got w, which is not"):
        checkpoint.save(tmp_path / "complex", 2, {"w": jnp.array([1.0, complex(0.0, jnp.nan)])}, CONFIG)


def test_nothing_to_restore_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.restore(tmp_path / "absent", jnp.zeros(2), CONFIG)
    assert not (tmp_path / "absent").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run.* cannot be made"):
        checkpoint.save(tmp_path / "file" / "run", 1, jnp.zeros(2), CONFIG)


@pytest.mark.parametrize("leaf", ["text", np.array(["text"]), object()])
def test_a_leaf_that_cannot_be_stored_is_named(tmp_path, leaf):
    with pytest.raises(ValueError, match="'a/b' is a"):
        checkpoint.save(tmp_path, 1, {"a": {"b": leaf}}, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_saving_says_nothing_and_leaves_logging_as_it_was(tmp_path, caplog):
    logger = logging.getLogger("absl")
    level = logger.level
    with caplog.at_level(logging.INFO):
        checkpoint.save(tmp_path, 1, jnp.ones(2), CONFIG)
        checkpoint.restore(tmp_path, jnp.ones(2), CONFIG)
    assert caplog.records == []
    assert logger.level == level


def test_a_save_goes_on_while_its_state_is_donated_and_the_next_one_waits_for_it(tmp_path):
    step, state, seen = jax.jit(lambda x: x * 1.5, donate_argnums=0), normal(0, (1000, 100)), []
    for number in (1, 2):
        seen.append(np.array(state))
        saving = checkpoint.start_save(tmp_path, number, state, CONFIG)
        state = step(state)
    for number in (2, 1):  # which waits
        found = checkpoint.restore(tmp_path, np.empty(state.shape, state.dtype), CONFIG, number)
        np.testing.assert_array_equal(found, seen[number - 1])
    saving.wait()


def test_a_fault_in_the_background_is_raised_by_the_wait_and_by_the_next_save(tmp_path):
    good, large = jnp.ones(3), normal(0, (1000, 100))
    checkpoint.save(tmp_path, 1, {"w": good}, CONFIG)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        saving = checkpoint.start_save(tmp_path, 2, {"w": large}, CONFIG)
        with pytest.raises(ValueError, match="Error writing"):
            saving.wait()
        checkpoint.start_save(tmp_path, 2, {"w": large}, CONFIG)
        with pytest.raises(ValueError, match="Error writing"):
            checkpoint.save(tmp_path, 3, {"w": good}, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.latest(tmp_path) == 1


def test_only_a_save_removes_what_a_killed_save_left(tmp_path):
    checkpoint.save(tmp_path, 1, jnp.ones(2), CONFIG)
    remains = tmp_path / "7.orbax-checkpoint-tmp"
    remains.mkdir()
    assert checkpoint.latest(tmp_path) == 1
    checkpoint.restore(tmp_path, jnp.ones(2), CONFIG)
    assert remains.exists()
    checkpoint.save(tmp_path, 2, jnp.ones(2), CONFIG)
    assert not remains.exists()


SAVE_LOOP = """
import itertools, sys
import jax.numpy as jnp
from proxlm import checkpoint
for step in itertools.count(1):
    checkpoint.save(sys.argv[1], step, {"w": jnp.full((200, 1000), step)}, {"seed": 0})
    print(step, flush=True)
"""


def test_a_kill_amid_a_save_loses_at_most_that_save(tmp_path):
    command = [sys.executable, "-c", SAVE_LOOP, str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(__file__).parent.parent
    like, announced = {"w": jnp.zeros((200, 1000), jnp.int32)}, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as process:
        while announced < 2:
            announced = int(process.stdout.readline())
        is_amid_save = lambda: any("tmp" in path.name for path in tmp_path.iterdir())
        deadline = time.monotonic() + 30
        while not is_amid_save():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        announced = max([announced, *map(int, process.stdout.read().split())])
    newest = checkpoint.latest(tmp_path)
    assert newest in (announced, announced + 1)
    np.testing.assert_array_equal(checkpoint.restore(tmp_path, like, {"seed": 0})["w"], newest)
    checkpoint.save(tmp_path, newest + 1, like, {"seed": 0})
    assert checkpoint.latest(tmp_path) == newest + 1
