"""Sparse deltas: exact, small, checked; and the strength at which few weights change."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from proxlm import lm, penalties, training, transforms
from proxlm.lm import _varints, delta
from tests.arrays import normal

rng = np.random.default_rng(0)


def trees():
    """A base and weights that differ from it in every way bits can."""
    base = {
        "w": rng.normal(size=(40, 50)).astype(np.float32),
        "half": {"b": rng.normal(size=300).astype(ml_dtypes.bfloat16), "same": np.ones(3, np.float16)},
        "double": rng.normal(size=7),
        "count": np.arange(5, dtype=np.int32),
        "none": np.zeros((0, 3), np.float32),
    }
    base["w"][1, :3] = [np.nan, np.nan, 0.0]  # stay as they are, and 0 becomes −0
    params = jax.tree.map(np.copy, base)
    places = rng.permutation(2000)[:60]
    params["w"].reshape(-1)[places] += rng.normal(size=60).astype(np.float32) * 1e-4
    params["w"][0, :6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, -params["w"][0, 5]]
    params["w"][1, :3] = [np.nan, np.nan, -0.0]
    params["half"]["b"][[0, -1]] *= -1
    params["double"][:] = -1e300
    params["count"][4] = -(2**31)
    return base, params


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def test_what_is_applied_has_the_bits_that_were_saved(tmp_path):
    base, params = trees()
    delta.save(tmp_path / "delta", base, params)
    found = delta.apply(base, tmp_path / "delta")
    same_bits(found, params)
    assert found["half"]["same"] is base["half"]["same"] and os.listdir(tmp_path) == ["delta"]
    delta.save(tmp_path / "none", base, base)
    same_bits(delta.apply(base, tmp_path / "none"), base)


def test_a_changed_weight_takes_less_than_four_and_a_half_bytes(tmp_path):
    base = {"w": jnp.asarray(0.03 * rng.normal(size=200_000).astype(np.float32))}
    moved = np.asarray(base["w"]) + 1e-4 * rng.normal(size=200_000).astype(np.float32)
    params = {"w": jnp.where(jnp.asarray(rng.random(200_000) < 0.05), moved, base["w"])}
    delta.save(tmp_path / "delta", base, params)
    assert (tmp_path / "delta").stat().st_size / delta.count(base, params) < 4.5
    assert isinstance(delta.apply(base, tmp_path / "delta")["w"], jax.Array)


def test_the_number_of_changes_is_counted_by_bits_inside_jit():
    base, params = trees()
    single = lambda tree: (
        {k: jnp.asarray(x) for k, x in tree.items() if k in ("w", "count")} | {"h": tree["half"]["b"]}
    )
    expected = sum(
        int(np.sum(x.view(f"u{x.dtype.itemsize}") != y.view(f"u{y.dtype.itemsize}")))
        for x, y in ((base[k], params[k]) for k in ("w", "count"))
    )
    assert jax.jit(delta.count)(single(base), single(params)).item() == expected + 2


def test_the_strength_is_the_quantile_of_sizes():
    tree = {"a": normal(0, (30, 7)), "b": -(normal(1, (40,)) ** 3)}
    sizes = np.abs(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]))
    strength = jax.jit(delta.strength)
    for share in (0.0, 0.1, 0.5, 1.0):
        found = float(strength(tree, share, 2.0)) * 2
        assert (sizes > found).sum() <= share * sizes.size < 1 + (sizes >= found).sum(), share


@pytest.mark.parametrize("adam", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_chain_anchored_at_the_base_moves_the_share_that_was_asked_for(adam, tmp_path):
    base, batch = {"w": normal(0, (200,))}, normal(1, (200,))
    loss = lambda params, batch: jnp.sum(jnp.square(params["w"] - batch))
    strength = delta.strength(jax.grad(loss)(base, batch), 0.1)
    penalty = penalties.l1(strength)
    chain = transforms.proximal_adam(1e-3, penalty, anchored=True)
    chain = chain if adam else transforms.proximal_step(penalty, 1e-3, anchored=True)
    step = jax.jit(functools.partial(training.make_step(loss, chain)))
    state = training.init(base, chain)
    for _ in range(3):
        state, _ = step(state, batch)
    assert delta.count(base, state.params) == 20
    delta.save(tmp_path / "delta", base, state.params)
    same_bits(delta.apply(base, tmp_path / "delta"), state.params)


def forged(tmp_path, **changes):
    """A file whose parts were changed, with the metadata of a good one."""
    base, params = {"w": np.zeros(4, np.float32)}, {"w": np.array([0, 1, 0, 2], np.float32)}
    delta.save(tmp_path / "good", base, params)
    with safetensors.safe_open(tmp_path / "good", "numpy") as file:
        about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    about |= changes.pop("about", {})
    tensors |= changes
    safetensors.numpy.save_file({k: x for k, x in tensors.items() if x is not None}, tmp_path / "bad", about)
    return base, tmp_path / "bad"


BYTES = functools.partial(np.array, dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w|gaps": BYTES([1, 7])}, "the places in w do not fit its 4 weights"),
        ({"w|gaps": BYTES([3, 3])}, "do not fit its 4 weights"),
        ({"w|gaps": BYTES([255] * 9 + [1, 1])}, "do not fit its 4 weights"),
        ({"w|gaps": BYTES([1, 129])}, "a number is cut"),
        ({"w|gaps": BYTES([129] * 11 + [0])}, "a number has 12 bytes"),
        ({"w|gaps": BYTES([1])}, "do not fit its 4 weights"),
        ({"w|gaps": BYTES([0] * 5), "w|bits": BYTES([0] * 5)}, "do not fit its 4 weights"),
        ({"w|bits": BYTES([2, 2])}, "its result is not the one that was saved"),
        ({"w|bits": _varints.encode(np.array([1, 2**32]))}, "do not fit its 4 weights"),
        ({"w|bits": None}, r"'w\|bits' is missing or not known"),
        ({"v|gaps": BYTES([]), "v|bits": BYTES([])}, "'v' is missing or not known"),
        ({"w|gaps": np.ones(2, np.float32)}, "w is not stored as bytes"),
        ({"about": {"format": "other"}}, "its format is 'other' '1', expected 'proxlm.delta' '1'"),
        ({"about": {"base": "0"}}, r"it was made for 0, and the base is .* Take the delta anew"),
    ],
)
def test_a_file_that_is_no_delta_of_the_base_is_refused(changes, message, tmp_path):
    base, path = forged(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        delta.apply(base, path)


def test_a_file_that_is_cut_or_of_another_kind_is_refused(tmp_path):
    base, path = forged(tmp_path)
    data = path.read_bytes()
    for cut in (b"", data[:4], data[:60], data[:-1], b"\xff" * 200):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="is not a delta of this base"):
            delta.apply(base, path)


def test_trees_that_differ_are_refused(tmp_path):
    base = {"w": jnp.ones(3)}
    for other in ({"w": jnp.ones(2)}, {"v": jnp.ones(3)}, {"w": jnp.ones(3, jnp.bfloat16)}):
        with pytest.raises(ValueError, match=r"delta.save: params at . must be .*, as in base, got"):
            delta.save(tmp_path / "delta", base, other)
    assert not os.listdir(tmp_path)
    with pytest.raises(ValueError, match=r"share must be a number in \[0, 1\], got 1.5"):
        delta.strength(base, 1.5)


@pytest.mark.parametrize("bits", range(0, 64, 9))
def test_numbers_of_all_lengths_come_back(bits):
    numbers = np.array([0, (1 << bits) - 1, 1 << bits, 2**64 - 1, 127, 128], np.uint64)
    np.testing.assert_array_equal(_varints.decode(_varints.encode(numbers)), numbers)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_patch_makes_of_the_old_checkpoint_the_new_one(dtype, tmp_path):
    switches = {"num_kv_heads": 1, "qkv_bias": True}
    config = lm.ModelConfig(vocab_size=16, num_layers=2, width=8, num_heads=2, **switches)
    shapes = jax.eval_shape(functools.partial(lm.init, config=config), jax.random.key(0))
    base = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    params = jax.tree.map(lambda x: np.where(rng.random(x.shape) < 0.2, x * np.float32(1.001), x), base)
    delta.save_patch(tmp_path / "patch", base, params, config, dtype=dtype, model_version=3)
    trained, frozen = lm.trainable.split(params, lm.trainable.last_layers(1))
    joined: Any = lm.trainable.join(trained, frozen)
    with pytest.raises(ValueError, match=r"stacked layers, got a trained part .* Use lm.trainable.merge"):
        delta.save_patch(tmp_path / "joined", base, joined, config)
    rounded = lambda tree: lm.pretrained.to_tensors(
        jax.tree.map(lambda x: x.astype(dtype or x.dtype), tree), config
    )
    before, after = rounded(base), rounded(params)
    with safetensors.safe_open(tmp_path / "patch", "numpy") as file:
        about, keys = file.metadata(), set(file.keys())
        names = {key.removesuffix(".val") for key in keys if key.endswith(".val")}
        for name in names:
            gaps, new = (file.get_tensor(f"{name}.{part}") for part in ("idx", "val"))
            assert gaps.dtype == np.uint16
            before[name].reshape(-1)[np.cumsum(gaps.astype(int) + 1) - 1] = new
    assert len(keys) == 2 * len(names) == 2 * int(about["num_changed_params"])
    assert about["encoding"] == "gap_delta" and about["model_version"] == "3" and about["sparse"] == "True"
    assert set(before) == set(after) and all(np.array_equal(before[name], x) for name, x in after.items())
    if dtype is None:
        assert int(about["total_changed_elements"]) == int(delta.count(base, params))
