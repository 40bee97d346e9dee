"""Masks, labels and strengths as trees: prefixes, trees that can be called, and leaves of other kinds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxlm import penalties


@functools.partial(jax.tree_util.register_dataclass, data_fields=["w", "b"], meta_fields=[])
class Net:
    """A model that is a tree and a function, as Equinox modules are."""

    def __init__(self, w, b):
        self.w, self.b = w, b

    def __call__(self, x, mask=None):
        raise AssertionError("a tree of labels is not a function of the path")


def dense():
    return {"dense": {"kernel": jnp.array([3.0, 0.25]), "bias": jnp.array([0.5])}, "scale": jnp.ones(2)}


def test_a_mask_that_can_be_called_is_a_tree():
    net, mask = Net(jnp.array([0.25, 2.0]), jnp.array([0.25])), Net(True, np.bool_(False))
    penalty = penalties.masked(penalties.l1(0.5), mask)
    moved = penalty.prox(net, 1.0)
    np.testing.assert_array_equal(moved.w, [0.0, 1.5])
    np.testing.assert_array_equal(moved.b, [0.25])
    assert penalty.value(net) == 1.125


def test_functions_remain_functions():
    for mask in (lambda path, leaf: path == "w", jax.tree_util.Partial(lambda path, leaf: path == "w")):
        moved = penalties.masked(penalties.l1(0.5), mask).prox(Net(jnp.ones(2), jnp.ones(1)), 1.0)
        np.testing.assert_array_equal(moved.w, 0.5)
        np.testing.assert_array_equal(moved.b, 1.0)


def test_a_mask_may_be_a_prefix_of_the_params():
    moved = penalties.masked(penalties.l1(0.5), {"dense": True, "scale": False}).prox(dense(), 1.0)
    np.testing.assert_array_equal(moved["dense"]["kernel"], [2.5, 0.0])
    np.testing.assert_array_equal(moved["dense"]["bias"], [0.0])
    np.testing.assert_array_equal(moved["scale"], 1.0)
    everything = penalties.masked(penalties.l1(0.5), False)
    assert everything.value(dense()) == 0


def test_strengths_and_step_sizes_may_be_prefixes_of_the_params():
    penalty = penalties.l1({"dense": 0.5, "scale": jnp.array([0.0, 0.75])})
    moved = penalty.prox(dense(), {"dense": 2.0, "scale": 1.0})
    np.testing.assert_array_equal(moved["dense"]["kernel"], [2.0, 0.0])
    np.testing.assert_array_equal(moved["dense"]["bias"], [0.0])
    np.testing.assert_array_equal(moved["scale"], [1.0, 0.25])
    assert penalty.value(dense()) == 0.5 * 3.75 + 0.75


def test_a_prefix_covers_holes_and_must_cover_every_leaf():
    x = {"dense": {"kernel": jnp.ones(2), "bias": None}, "gone": {"w": None}}
    np.testing.assert_array_equal(
        penalties.l1({"dense": 0.25, "gone": 1.0}).prox(x, 1.0)["dense"]["kernel"], 0.75
    )
    with pytest.raises(ValueError, match=r"prefix .* got nothing at dense/bias"):
        penalties.l1({"dense": {"kernel": 1.0}, "scale": 1.0}).value(dense())
    with pytest.raises(ValueError, match=r"got a leaf unknown to x at other"):
        penalties.l1({"dense": 1.0, "scale": 1.0, "other": 1.0}).value(dense())
    with pytest.raises(ValueError, match=r"strength at dense/bias must .* got shape \(2,\)"):
        penalties.l1({"dense": jnp.ones(2), "scale": 1.0}).value(dense())
