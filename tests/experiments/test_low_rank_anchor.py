"""Deltas that go out and come back, and the experiment made small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import low_rank_anchor
from experiments.support.low_rank_anchor import deltas
from experiments.support.run import runs
from proxlm import lm
from tests.arrays import normal
from tests.experiments.starting import start

MODEL = lm.ModelConfig(vocab_size=7, num_layers=2, width=8, num_heads=2, hidden_width=6)
PATHS = ["blocks/attention/out/kernel", "blocks/attention/qkv/kernel", "blocks/mlp/down/kernel"]


@pytest.fixture(scope="module")
def anchor():
    return lm.init(jax.random.key(0), MODEL)


def moved(anchor, change):
    """The params with a change, path ↦ array, added at some leaves."""

    def add(path, leaf):
        return leaf + change.get(jax.tree_util.keystr(path, simple=True, separator="/"), 0.0)

    return jax.tree_util.tree_map_with_path(add, anchor)


def rank_one(shape, rows, seed):
    """Changes of rank one of a stack of two matrices whose rows are the next `rows` axes."""
    left = normal(seed, (2, int(np.prod(shape[1 : 1 + rows])), 1))
    right = normal(seed + 1, (2, 1, int(np.prod(shape[1 + rows :]))))
    return np.asarray(left @ right).reshape(shape)


def low_rank_params(anchor):
    leaves = deltas.by_path(anchor)
    rows = dict(zip(PATHS, (2, 1, 1), strict=True))
    change = {p: rank_one(leaves[p].shape, rows[p], 10 * i) for i, p in enumerate(PATHS)}
    return moved(anchor, change)


def test_a_sparse_delta_comes_back_to_the_bit(anchor, tmp_path):
    mask = np.zeros((7, 8), np.float32)
    mask[2, 3], mask[6, 7] = 0.1, -1e-6
    params = moved(anchor, {"embedding/kernel": mask, "norm/scale": np.ones(8, np.float32)})
    delta = deltas.sparse(params, anchor)
    assert delta.keys() == {"embedding/kernel:index", "embedding/kernel:value", "norm/scale:whole"}
    assert delta["embedding/kernel:index"].tolist() == [2 * 8 + 3, 6 * 8 + 7]
    size = deltas.save(tmp_path / "delta.safetensors", delta)
    assert size == (tmp_path / "delta.safetensors").stat().st_size
    again = deltas.apply(anchor, deltas.load(tmp_path / "delta.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_leaf_of_which_half_has_changed_is_kept_whole():
    old = {"w": np.zeros(8, np.float32)}
    names = lambda changed: [*deltas.sparse({"w": np.float32(np.arange(8) < changed)}, old)]
    assert names(3) == ["w:index", "w:value"] and names(4) == ["w:whole"]


def test_a_low_rank_delta_has_the_rank_of_the_change_and_comes_back(anchor, tmp_path):
    params = low_rank_params(anchor)
    delta = deltas.low_rank(params, anchor)
    for path in PATHS:
        assert delta[f"{path}:left:0"].shape[1] == delta[f"{path}:right:1"].shape[0] == 1
    assert delta["blocks/attention/out/kernel:left:0"].shape == (8, 1)
    assert delta["blocks/mlp/gate_up/kernel:left:0"].shape == (8, 0)
    deltas.save(tmp_path / "delta.safetensors", delta)
    again = deltas.apply(anchor, deltas.load(tmp_path / "delta.safetensors"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, params)


def test_nothing_changed_is_nothing_to_keep(anchor):
    assert deltas.size(deltas.sparse(anchor, anchor)) == 0
    assert deltas.size(deltas.low_rank(anchor, anchor)) == 0


def test_a_cut_delta_keeps_the_largest_and_no_more_than_it_may(anchor):
    params = low_rank_params(anchor)
    whole = deltas.size(deltas.low_rank(params, anchor))
    assert deltas.size(deltas.truncated(params, anchor, whole)) == whole
    half = deltas.truncated(params, anchor, whole // 2)
    assert 0 < deltas.size(half) <= whole // 2
    # What is no matrix is kept first, and counts.
    params = moved(params, {"norm/scale": np.ones(8, np.float32)})
    cut = deltas.truncated(params, anchor, whole + 31)
    assert "norm/scale:whole" in cut and deltas.size(cut) <= whole + 31
    change = np.arange(56, dtype=np.float32).reshape(7, 8) * np.float32([1, -1] * 4)
    three = deltas.largest(moved(anchor, {"embedding/kernel": change}), anchor, 3 * 8)
    assert three["embedding/kernel:index"].tolist() == [53, 54, 55]
    assert deltas.size(three) == 3 * 8


def test_a_delta_of_another_model_is_refused(anchor):
    params = low_rank_params(anchor)
    with pytest.raises(ValueError, match="is of no leaf of the anchor"):
        deltas.apply(anchor, {"head/kernel:whole": np.ones(3)})
    with pytest.raises(ValueError, match="embedding/kernel does not fit a leaf of shape"):
        deltas.apply(anchor, {"embedding/kernel:whole": np.ones(3)})
    wrong = {"embedding/kernel:index": np.array([99]), "embedding/kernel:value": np.ones(1)}
    with pytest.raises(ValueError, match="does not fit"):
        deltas.apply(anchor, wrong)
    with pytest.raises(ValueError, match="embedding/kernel differ in shape"):
        deltas.sparse({**params, "embedding": {"kernel": jnp.ones((9, 8))}}, anchor)


@pytest.mark.slow
def test_the_smoke_run_writes_deltas_that_give_the_same_logits(wheels, tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path), data=str(wheels))
    numbers = start(low_rank_anchor, options=options)
    assert numbers["l1"]["logits_differ_by"] == 0.0
    assert numbers["nuclear"]["logits_differ_by"] < 1e-4
    for method in ("nuclear", "l1"):
        (sizes,) = numbers[method]["bytes"]
        (losses,) = numbers[method]["loss"]
        assert sizes[1] < sizes[0]
        assert losses[0] < numbers["loss_before"]
    written = {path.name for path in next((tmp_path / "low_rank_anchor").iterdir()).iterdir()}
    expected = {"config.json", "metrics.jsonl", "report.txt", "tradeoff.png", "nuclear.safetensors"}
    assert expected | {"l1.safetensors"} <= written


def test_a_missing_text_is_said_before_anything_is_computed(tmp_path):
    options = runs.Options(smoke=True, runs=str(tmp_path / "runs"), data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make data"):
        start(low_rank_anchor, options=options)
    assert not (tmp_path / "runs").exists()
