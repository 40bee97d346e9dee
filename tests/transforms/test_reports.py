"""Reports of zeros, live groups and rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm.penalties.groups import grouping
from proxlm.transforms import reports
from tests.arrays import numpy_normal as normal

MLP = {"up": jnp.array([[1.0, 0, 0], [0, 0, 2]]), "down": jnp.array([[0.0], [0], [5]])}
PARAMS = {"block_0": MLP, "block_1": jax.tree.map(jnp.zeros_like, MLP), "scale": jnp.ones(4)}
NEURONS = grouping.linked({"up": 1, "down": 0})


def test_zeros_are_counted_by_path(variant):
    shares = variant(reports.sparsity)(PARAMS)
    expected = {"block_0/down": 2 / 3, "block_0/up": 4 / 6, "scale": 0.0}
    expected |= {"block_1/down": 1.0, "block_1/up": 1.0}
    assert shares.keys() == expected.keys()
    for path, share in expected.items():
        np.testing.assert_allclose(shares[path], share, rtol=1e-6)
    np.testing.assert_allclose(variant(reports.total_sparsity)(PARAMS), 15 / 22, rtol=1e-6)


def test_small_numbers_and_nan_are_no_zeros_and_negative_zeros_are():
    x = jnp.array([1e-30, jnp.nan, -0.0, 0.0], jnp.bfloat16)
    assert reports.sparsity({"x": x})["x"] == 0.5
    assert reports.sparsity({"empty": jnp.ones((0, 3)), "hole": None})["empty"] == 0.0
    assert reports.total_sparsity({}) == 0.0


def test_live_groups_are_counted_where_they_are(variant):
    live = variant(lambda x: reports.live_groups(x, NEURONS))(PARAMS)
    counts = {path: (int(group.live), int(group.total)) for path, group in live.items()}
    assert counts == {"block_0": (2, 3), "block_1": (0, 3)}
    by_leaf = reports.live_groups({"up": MLP["up"], "down": MLP["down"]}, grouping.axes(-1))
    assert [(int(g.live), g.total) for g in by_leaf.values()] == [(1, 3), (2, 2)]


def test_a_group_with_nan_is_live():
    live = reports.live_groups({"x": jnp.array([[jnp.nan, 0.0]])}, grouping.axes(0))
    assert live["x"].live == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rank_is_that_of_the_factors(dtype, variant):
    low = normal(0, (60, 5)) @ normal(1, (5, 80))
    params = {"low": low, "full": normal(2, (7, 9)), "zero": jnp.zeros((3, 3)), "bias": jnp.ones(3)}
    ranks = variant(reports.rank)(jax.tree.map(lambda x: x.astype(dtype), params))
    assert {path: int(rank) for path, rank in ranks.items()} == {"low": 5, "full": 7, "zero": 0}


def test_a_stack_has_a_rank_for_each_matrix():
    stack = jnp.stack([jnp.eye(4), jnp.ones((4, 4)), jnp.diag(jnp.array([1.0, 0.1, 0.01, 0.0]))])
    assert reports.rank({"w": stack})["w"].tolist() == [4, 1, 3]
    assert reports.rank({"w": stack}, tolerance=0.05)["w"].tolist() == [4, 1, 2]
    assert reports.rank({"w": 1e-9 * stack})["w"].tolist() == [4, 1, 3]


def test_the_table_says_it_all():
    lines = reports.report(PARAMS, NEURONS, with_rank=True).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["path"] == ["shape", "zeros", "live", "rank"]
    assert rows["block_0/up"] == ["2", "x", "3", "66.7", "%", "2"]
    assert rows["block_0"] == ["2", "/", "3"]
    assert rows["block_1"] == ["0", "/", "3"]
    assert rows["scale"] == ["4", "0.0", "%"]
    assert rows["total"] == ["22", "68.2", "%"]
    assert reports.report({"x": jnp.float32(0.0)}).splitlines()[1].split() == ["x", "1", "100.0", "%"]


def test_bad_input_is_refused():
    for over in (0, None):
        with pytest.raises(ValueError, match=r"live_groups: over must be a grouping"):
            reports.live_groups(PARAMS, over)
    with pytest.raises(ValueError, match=r"rank: x at tokens must be a real floating-point array"):
        reports.rank({"tokens": jnp.ones((2, 2), jnp.int32)})
